"""Lookups in a directory that hung were never given up, and when enough of them waited the whole mount stood still."""

import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import Backend
from fusecache.backends.directory import DirectoryBackend
from fusecache.backends.questions import ask
from fusecache.backends.workers import Lane
from fusecache.testing.claims import FreeClaim
from tests.support.image_directory import opened


@pytest.fixture
def hanging() -> Callable[[Lane], threading.Event]:
    """Have calls hang on all threads of a lane until the event is set."""

    def hang(lane: Lane) -> threading.Event:
        go = threading.Event()
        for _ in range(lane.turns):
            lane.submit(lambda error: None, go.wait)
        return go

    return hang


@pytest.mark.parametrize("look", [lambda backend: backend.lookup("disk"), lambda backend: backend.list()])
async def test_who_looks_does_not_wait_for_a_hanging_directory_when_cancelled(
    tmp_path: Path, hanging: Callable[[Lane], threading.Event], look: Callable[[Backend], Awaitable[object]]
) -> None:
    (tmp_path / "disk").write_bytes(b"a")
    async with opened(tmp_path) as backend:
        assert isinstance(backend, DirectoryBackend)
        go = hanging(backend._names)
        try:
            with trio.move_on_after(0.01) as patience:
                await look(backend)
            assert patience.cancelled_caught
        finally:
            go.set()
        assert (await backend.lookup("disk")).size == 1


async def test_who_describes_an_open_image_does_not_wait_when_cancelled(
    tmp_path: Path, hanging: Callable[[Lane], threading.Event]
) -> None:
    (tmp_path / "disk").write_bytes(b"a")
    async with opened(tmp_path) as backend, backend.open("disk", FreeClaim()) as image:
        go = hanging(image._others)  # type: ignore[attr-defined]
        try:
            with trio.move_on_after(0.01) as patience:
                await image.info()
            assert patience.cancelled_caught
        finally:
            go.set()
        assert (await image.info()).size == 1


async def test_what_nobody_waits_for_any_more_is_not_begun(
    tmp_path: Path, hanging: Callable[[Lane], threading.Event]
) -> None:
    looked: list[int] = []
    async with opened(tmp_path) as backend:
        assert isinstance(backend, DirectoryBackend)
        go = hanging(backend._names)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, backend._names, looked.append, 1)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
        finally:
            go.set()
        await backend._names.drained()
    assert not looked
