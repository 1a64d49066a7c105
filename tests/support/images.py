"""Open images over volumes of the kit, and a registry whose stacks a test opens, holds back and breaks.

Owns what a caller of an image sees of one request. It must not know what is tested.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, cast

import trio

from fusecache.api import PENDING, Attempt, BackendImage, Buffers, Identity, ImageInfo, Volume, joined
from fusecache.images.guard import RangeGuard
from fusecache.images.image import Image
from fusecache.images.registry import Registry
from fusecache.stack.assemble import Stack
from fusecache.stack.link import Link
from fusecache.testing.claims import FreeClaim
from fusecache.testing.memory import MemoryBackend
from fusecache.testing.watched import WatchedVolume

Begin: TypeAlias = Callable[[Callable[..., None]], Buffers | Attempt]
"""Begins a request with the ``done`` it is given."""


def stack_of(volume: Volume, nursery: trio.Nursery, image: BackendImage | None = None) -> Stack:
    """Make a stack without layers of any volume."""
    link = Link(volume, "the volume")
    return Stack(link, link, image or cast(BackendImage, volume), (), (), Identity("memory:test"), 1, nursery)


@asynccontextmanager
async def opened(volume: Volume, content_changed: Callable[[Image], None] = lambda image: None) -> AsyncIterator[Image]:
    """Open an image over *volume*; leaving ends its tasks."""
    async with trio.open_nursery() as nursery:
        yield Image(stack_of(volume, nursery), ImageInfo("disk", "key", volume.size), content_changed)
        nursery.cancel_scope.cancel()


def is_idle(guard: RangeGuard) -> bool:
    """Say whether nothing is left in *guard*."""
    return not guard.active and not guard._chunks and not guard._wide and not guard._ready


class Call:
    """One request, begun at once; what it raises is raised here.

    Attributes:
        at_once: it did not have to wait.
        replies: how often its end was told.
        error, data: its end.
    """

    def __init__(self, begin: Begin, on_end: Callable[[], object] = lambda: None) -> None:
        self.replies = 0
        self.error: BaseException | None = None
        self.data = b""
        self.ended = trio.Event()
        self._on_end = on_end
        outcome = begin(self._done)
        assert not self.replies, "done was called from inside the attempt"
        self.at_once = outcome is not PENDING
        if self.at_once:
            self._done(None, () if isinstance(outcome, Attempt) else outcome)

    def _done(self, error: BaseException | None, buffers: Buffers = ()) -> None:
        self.replies += 1
        assert self.replies == 1, "done was called twice"
        self.error, self.data = error, joined(buffers)
        self.ended.set()
        self._on_end()

    async def result(self) -> bytes:
        """Wait for the end; raise its error, or return what was read."""
        await self.ended.wait()
        if self.error is not None:
            raise self.error
        return self.data


def read(image: Any, offset: int, length: int, on_end: Callable[[], object] = lambda: None) -> Call:
    """Begin to read an image or an open file."""
    return Call(lambda done: image.read(offset, length, done), on_end)


def write(image: Any, offset: int, data: bytes, on_end: Callable[[], object] = lambda: None) -> Call:
    """Begin to write an image or an open file."""
    return Call(lambda done: image.write(offset, memoryview(data), done), on_end)


class Shelf:
    """A registry over images in memory.

    Attributes:
        gate: stacks open once it is set, as it is at first.
        failures: raised by the next openings, one each.
        begun: the names whose opening was begun, in that order.
        closed: the names of stacks that were closed.
        nurseries: of the open stacks, by name.
        volumes: what was opened last under each name.
        events: kinds of what was reported.
    """

    def __init__(
        self, nursery: trio.Nursery, *names: str, release_after: float = 0.0, size: int = 4096, **options: Any
    ) -> None:
        self.backend = MemoryBackend(names=dict.fromkeys(names or ("disk",), size))
        self.gate = trio.Event()
        self.gate.set()
        self.failures: list[Exception] = []
        self.begun: list[str] = []
        self.closed: list[str] = []
        self.nurseries: dict[str, trio.Nursery] = {}
        self.volumes: dict[str, WatchedVolume] = {}
        self.events: list[str] = []
        self.read_only = False
        self.registry = Registry(
            self.backend,
            open_stack=self._open_stack,
            stack_for=lambda name: None,
            nursery=nursery,
            release_after=release_after,
            emit=lambda kind, text: self.events.append(kind),
            **options,
        )

    @asynccontextmanager
    async def _open_stack(self, name: str) -> AsyncIterator[Stack]:
        self.begun.append(name)
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        async with (
            self.backend.open(name, FreeClaim(), read_only=self.read_only) as image,
            trio.open_nursery() as nursery,
        ):
            self.nurseries[name] = nursery
            self.volumes[name] = WatchedVolume(image)
            try:
                yield stack_of(self.volumes[name], nursery, image)
            finally:
                self.closed.append(name)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def shelf(*names: str, **options: Any) -> AsyncIterator[Shelf]:
    """Make a registry over images of 4 KiB; the tasks of what is still open end with the block."""
    async with trio.open_nursery() as nursery:
        yield Shelf(nursery, *names, **options)
        nursery.cancel_scope.cancel()
