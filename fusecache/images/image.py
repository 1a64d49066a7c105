"""One open image: the range guard, the alignment and the barriers above its stack.

Owns what makes a stack of volumes usable by many unruly callers at once. It must not know files, handles or FUSE, nor
how a stack is put together.

The methods named like a volume's (``read`` … ``flush``) are attempts in the sense of :mod:`fusecache.api.volume` that
never decline: they return DONE (or the buffers), or PENDING and call ``done`` later. They accept any offset and length
inside ``[0, size)``.

Where the stack comes down (:meth:`Image.fail`) everybody who waits gets :class:`ImageFailed` at once, and so does
everybody later; what the stack was doing may go on, or hang, without them.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import trio

from fusecache.api.backend import ImageInfo
from fusecache.api.errors import ImageBusy, VolumeClosed, VolumeReadOnly
from fusecache.api.ranges import Extent, ExtentKind, widen
from fusecache.api.volume import DECLINED, PENDING, Attempt, Buffers, Done, ReadDone
from fusecache.images.calls import Calls
from fusecache.images.guard import BEYOND, EVERYTHING, Hold, RangeGuard
from fusecache.images.requests import (
    ChangeRequest,
    DiscardRequest,
    FlushRequest,
    ImageFailed,
    ReadRequest,
    WriteRequest,
    ZeroRequest,
)
from fusecache.images.snapshot import make_snapshot, written_back
from fusecache.stack.assemble import MissingLayer, Stack, StackLayer

T = TypeVar("T")

_SEEK_SLICE = 1 << 30


class _Awaited(Hold):
    __slots__ = ("_error", "_event")

    def __init__(self, start: int, *, exclusive: bool) -> None:
        super().__init__(start, EVERYTHING, exclusive=exclusive)
        self._event = trio.Event()
        self._error: BaseException | None = None

    def granted(self) -> None:
        self._event.set()

    def abandoned(self, error: BaseException) -> None:
        self._error = error
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        if self._error is not None:
            raise self._error


class Image:
    """An image while its stack is open.

    Attributes:
        name: its present name.
        info: its description when it was opened.
        openers, writers: how many files are open on it, and how many of those for writing.
        cache_valid: what the kernel kept of earlier opens is still true.
        lost: the lock was taken away; what the kernel kept is true no more.
        guard, top, alignment, nursery: for the requests of this package.
    """

    def __init__(self, stack: Stack, info: ImageInfo, content_changed: Callable[["Image"], None]) -> None:
        self.name = info.name
        self.info = info
        self.openers = 0
        self.writers = 0
        self.cache_valid = False
        self.lost = False
        self.stack = stack
        self.top = stack.top
        self.alignment = stack.alignment
        self.nursery = stack.nursery
        self.guard = RangeGuard()
        self._mask = stack.alignment - 1
        self._spare_read = ReadRequest(self)
        self._spare_write = WriteRequest(self)
        self._spare_flush = FlushRequest(self)
        self._content_changed = content_changed
        self._calls = Calls(stack.nursery)
        self._failure: BaseException | None = None
        self._abandoned = False
        self._touched = False
        self._mtime_ns = info.mtime_ns

    def __repr__(self) -> str:
        return f"<Image {self.name!r}, {self.openers} openers, {self.guard.active} requests>"

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self.top.size

    @property
    def read_only(self) -> bool:
        """Nothing can be changed."""
        return self.lost or self.top.read_only

    @property
    def cacheable(self) -> bool:
        """The kernel may keep what it reads."""
        return self.stack.image.cacheable and not self.lost

    @property
    def note(self) -> str:
        """What is not as usual, and what to do about it; otherwise empty."""
        return self.stack.image.note

    @property
    def layers(self) -> Sequence[StackLayer]:
        """The layers that are open, bottom up."""
        return self.stack.layers

    @property
    def missing(self) -> Sequence[MissingLayer]:
        """The configured layers that the image was opened without."""
        return self.stack.missing

    @property
    def dirty(self) -> bool:
        """A layer holds data that is not in the backend."""
        return self.stack.dirty

    @property
    def mtime_ns(self) -> int:
        """Time of the last change through this mount, or of the image when it was opened."""
        if self._touched:
            self._touched = False
            self._mtime_ns = time.time_ns()
        return self._mtime_ns

    def fail(self, error: BaseException) -> None:
        """Answer every request under way, and every later one, with an error: the stack came down.

        A request that was begun may go on: in a call that hangs, in a layer that will never end it. It keeps its hold
        until it ends, as nothing else could tell when; there is nobody whom that hold could stop. Calling again only
        changes the reason that is told.
        """
        self._refuse(error)
        if self._abandoned:
            return
        self._abandoned = True
        failed = ImageFailed(f"image {self.name!r}: its stack came down under the request")
        for hold in self.guard.abandon():
            hold.abandoned(failed)
        self._calls.give_up(failed)

    def close(self) -> None:
        """Answer every later request with an error: the stack is being closed. What is under way ends by itself."""
        if self._failure is None:
            self._refuse(VolumeClosed("the image has been closed"))

    def _refuse(self, error: BaseException) -> None:
        self._failure = error
        # Sends every request past the fast path, to the check.
        self.guard.active += 1

    def lose(self) -> None:
        """Refuse changes from now on, and have the kernel drop what it keeps: the image may be somebody else's."""
        self.lost = True
        self.cache_valid = False
        # Sends every request past the fast path, to the check.
        self._mask = -1
        self._content_changed(self)

    def _check(self) -> None:
        if self._failure is not None:
            raise ImageFailed(f"image {self.name!r}: its stack failed: {self._failure!r}") from self._failure

    def _check_change(self) -> None:
        self._check()
        if self.lost:
            raise VolumeReadOnly(f"image {self.name!r}: its lock was taken away; close it and open it again")

    def start(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        """Start a task of the stack.

        Raises:
            ImageFailed: the stack is gone.
        """
        self._check()
        self.nursery.start_soon(task, *args)

    async def _in_stack(self, call: Callable[[], Awaitable[T]]) -> T:
        self._check()
        return await self._calls.run(call)

    # The fast path: with nothing in flight and an aligned request there is nothing to hold, because attempt and reply
    # happen in one go on one thread. A spare request lends its ``done``; it is used up only where the attempt goes on.

    def read(self, offset: int, length: int, done: ReadDone) -> Buffers | Attempt:
        """Read *length* bytes."""
        if self.guard.active or (offset | length) & self._mask:
            self._check()
            return ReadRequest(self).prepare(offset, length, done).submit()
        spare = self._spare_read
        outcome = self.top.try_read(offset, length, spare.read_ended)
        if outcome is PENDING:
            self._spare_read = ReadRequest(self)
            spare.prepare(offset, length, done).adopt()
        elif outcome is DECLINED:
            ReadRequest(self).prepare(offset, length, done).decline()
            return PENDING
        return outcome

    def write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        """Write *data*, which stays unchanged until the end."""
        self._touched = True
        if self.guard.active or (offset | len(data)) & self._mask:
            self._check_change()
            return _end_of(WriteRequest(self).prepare(offset, data, done))
        spare = self._spare_write
        outcome = self.top.try_write(offset, data, spare.ended)
        if outcome is PENDING:
            self._spare_write = WriteRequest(self)
            spare.prepare(offset, data, done).adopt()
        elif outcome is DECLINED:
            WriteRequest(self).prepare(offset, data, done).decline()
            return PENDING
        return outcome

    def write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        """Make a range read as zeroes, keeping its space."""
        self._touched = True
        self._check_change()
        return _end_of(ZeroRequest(self).prepare(offset, length, done))

    def discard(self, offset: int, length: int, done: Done) -> Attempt:
        """Make a range read as zeroes and free its space."""
        self._touched = True
        self._check_change()
        return _end_of(DiscardRequest(self).prepare(offset, length, done))

    def flush(self, done: Done) -> Attempt:
        """Make durable all that was acknowledged before; waits for nothing that is in flight but a barrier."""
        if self.guard.active:
            self._check()
            return _end_of(FlushRequest(self).prepare(done))
        spare = self._spare_flush
        outcome = self.top.try_flush(spare.ended)
        if outcome is PENDING:
            self._spare_flush = FlushRequest(self)
            spare.prepare(done).adopt()
        elif outcome is DECLINED:
            FlushRequest(self).prepare(done).decline()
            return PENDING
        return outcome

    async def seek(self, offset: int, *, hole: bool) -> int | None:
        """Return the next offset from *offset* on that lies in a hole (or in data); None where data ends before.

        The end of the image counts as a hole.
        """
        return await self._in_stack(partial(self._seek, offset, hole=hole))

    async def _seek(self, offset: int, *, hole: bool) -> int | None:
        wanted = ExtentKind.HOLE if hole else ExtentKind.DATA
        async with self._holding(_Awaited(BEYOND, exclusive=False)):
            at, size = offset, self.size
            while at < size:
                extents: Sequence[Extent] = await self.top.extents(*self._aligned(at, min(_SEEK_SLICE, size - at)))
                for extent in extents:
                    if extent.kind is wanted and extent.end > at:
                        return max(at, extent.offset)
                at = extents[-1].end
        return size if hole else None

    def _aligned(self, offset: int, length: int) -> tuple[int, int]:
        span = widen(offset, length, self.alignment, self.size)
        return span.start, span.end - span.start

    @asynccontextmanager
    async def barrier(self) -> AsyncIterator[None]:
        """Wait for everything in flight and keep everything new waiting until the end of the block."""
        async with self._holding(_Awaited(0, exclusive=True)):
            yield

    @asynccontextmanager
    async def changes_held(self) -> AsyncIterator[None]:
        """Wait for all changes in flight and keep new ones waiting until the end of the block; reads and flushes go
        on."""
        async with self._holding(_Awaited(0, exclusive=False)):
            yield

    @asynccontextmanager
    async def _holding(self, hold: _Awaited) -> AsyncIterator[None]:
        try:
            if not self.guard.acquire(hold):
                await hold.wait()
            yield
        finally:
            if not hold.released:
                self.guard.release(hold)

    async def resize(self, size: int) -> None:
        """Set the length, between all requests before and all after."""
        self._check_change()
        await self._in_stack(partial(self._resize, size))

    async def _resize(self, size: int) -> None:
        if size < self.size and self.stack.layers:
            # A layer that writes back before it shrinks then finds little to do, while everybody waits.
            await written_back(self.stack)
        async with self.barrier():
            self._touched = True
            await self.top.resize(size)
            self._content_changed(self)

    async def grow(self, size: int) -> None:
        """Make the image at least *size* long."""
        if size > self.size:
            await self._in_stack(partial(self._grow, size))

    async def _grow(self, size: int) -> None:
        async with self.barrier():
            self._check_change()
            if size > self.size:
                await self.top.resize(size)

    async def writeback(self, index: int | None) -> None:
        """Write a layer's dirty data to the level below; with None, everything down into the backend."""
        await self._in_stack(partial(self.stack.writeback, index))

    async def snapshot(self, name: str) -> None:
        """Write everything back and have the backend make a snapshot; see :mod:`fusecache.images.snapshot`."""
        self._check_change()
        await self._in_stack(partial(make_snapshot, self.stack, name, self.changes_held))

    async def invalidate(self, index: int, *, dirty: bool, torn: bool = False) -> None:
        """Drop a layer's content, between all requests before and all after.

        Raises:
            ImageBusy: dirty data is to be dropped, and a file is open for writing.
            LayerDirty: the layer, or one above it, is dirty; or the level below is torn, and *torn* is false.
            BadCommand: there is no such layer.
        """
        self._check_writers(dirty)
        await self._in_stack(partial(self._invalidate, index, dirty=dirty, torn=torn))

    async def _invalidate(self, index: int, *, dirty: bool, torn: bool) -> None:
        async with self.barrier():
            # Somebody may have come while the barrier was waited for.
            self._check_writers(dirty)
            await self.stack.invalidate(index, dirty=dirty, torn=torn)
            self._content_changed(self)

    def _check_writers(self, dirty: bool) -> None:
        if dirty and self.writers:
            raise ImageBusy(f"image {self.name!r} is open for writing: close it before its dirty data is dropped")


def _end_of(request: ChangeRequest | FlushRequest) -> Attempt:
    outcome = request.submit()
    assert isinstance(outcome, Attempt)
    return outcome
