"""An image stayed open, and locked, where its last request ended in the very moment in which closing gave up on it."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from fusecache.api import Identity

pytest.importorskip("rbd")

from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.handle import OpenHandle
from fusecache.backends.rbd.image import _PATIENCE, RbdImage


class Handle:
    """Stands for an image whose requests end when the test says so: no cluster can be made to answer that exactly."""

    name = "disk"
    size = object_size = 1 << 22
    closed = 0

    def __init__(self) -> None:
        calls = ("aio_read", "aio_write", "aio_write_zeroes", "aio_flush")
        self.image = SimpleNamespace(**dict.fromkeys(calls, lambda *_: None))

    def close(self, ended: object) -> None:
        self.closed += 1


class EndsAsPatienceDoes(trio.abc.Instrument):
    """Ends the image's request when the wait for it is over, and before *task* knows."""

    def __init__(self, task: trio.lowlevel.Task, image: RbdImage) -> None:
        self._task = task
        self._image = image

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task and trio.current_time() >= _PATIENCE and self._image._under_way:
            self._image._leave()


def test_an_image_is_closed_though_its_last_request_ends_in_the_moment_of_giving_up() -> None:
    handle = Handle()
    nothing: Any = lambda *_: None  # noqa: E731
    completions = SimpleNamespace(post=nothing, expect=nothing)
    client = SimpleNamespace(completions=completions, on_lost=lambda _: nothing, check=nothing)

    async def close() -> None:
        image = RbdImage(
            cast(OpenHandle, handle),
            Identity("rbd:disk"),
            client=cast(Client, client),
            emit=nothing,
            describe=nothing,
        )
        image.try_read(0, 512, nothing)
        trio.lowlevel.add_instrument(EndsAsPatienceDoes(trio.lowlevel.current_task(), image))
        await image.close()

    trio.run(close, clock=MockClock(autojump_threshold=0))
    assert handle.closed == 1
