"""One request to an open image, from its arrival until its reply is out.

Owns the steps of a request that could not be answered on the spot: hold the range, attempt, else run the asynchronous
method in a task, read-modify-write where the stack wants more alignment than the caller keeps, reply, let go. It must
not know who asked, nor what the stack is made of.

A hold is released only after ``done`` has returned, and ``done`` writes the reply: a later request for the same bytes
starts after the earlier one's reply is out.

Where the stack comes down, whoever waits is answered at once; what was begun keeps its hold until it ends. A late end
is told to nobody, but for a write's: its caller lent the data, and wants to know when they are no longer in use.
"""

import errno
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import trio

from fusecache.api.errors import OutOfRange, VolumeClosed
from fusecache.api.ranges import is_aligned, widen
from fusecache.api.volume import DECLINED, DONE, PENDING, Attempt, Buffers, Done, ReadDone, ReadOutcome, Volume, joined
from fusecache.images.guard import BEYOND, EVERYTHING, Hold, RangeGuard
from fusecache.images.node import GivenUp


class ImageFailed(VolumeClosed):
    """The image's stack came down or was closed under the request; the image must be opened again (EIO)."""

    errno = errno.EIO


class Host(Protocol):
    """What a request needs of its open image."""

    @property
    def top(self) -> Volume: ...
    @property
    def alignment(self) -> int: ...
    @property
    def guard(self) -> RangeGuard: ...
    @property
    def nursery(self) -> trio.Nursery: ...


class Request(Hold):
    """A request under way. Its hold is widened to whole blocks."""

    __slots__ = ("_done", "_host", "aligned", "length", "offset")

    _exclusive = True
    _done: Callable[..., None]

    def __init__(self, host: Host) -> None:
        # Hold's own __init__, spelled out: one is made for every request that meets others.
        self.start = self.end = 0
        self.exclusive = self._exclusive
        self.released = False
        self._blockers = 0
        self._blocked = []
        self._host = host
        self.aligned = True

    def _place(self, offset: int, length: int) -> None:
        if self._host.alignment == 1:
            self.start, self.end = offset, offset + length
        else:
            # Past the end too: by the time the range is held, the image may have grown.
            self.start, self.end = widen(offset, length, self._host.alignment, EVERYTHING)
        self.offset = offset
        self.length = length

    @property
    def _blocks_end(self) -> int:
        return min(self.end, self._host.top.size)

    def adopt(self) -> None:
        """Hold the range for an attempt that was made with nothing in flight and is PENDING."""
        self._host.guard.acquire(self)

    def decline(self) -> None:
        """The same for an attempt that was DECLINED: run the asynchronous method."""
        self._host.guard.acquire(self)
        self._host.nursery.start_soon(self._run)

    def submit(self) -> ReadOutcome | Attempt:
        """Start, or wait for the range; returns what an attempt returns, but never DECLINED."""
        guard = self._host.guard
        if not guard.acquire(self):
            return PENDING
        try:
            outcome = self._begin()
        except BaseException:
            guard.release(self)
            raise
        if outcome is not PENDING:
            guard.release(self)
        return outcome

    def granted(self) -> None:
        try:
            outcome = self._begin()
        except Exception as error:
            self._end(error, ())
            return
        if outcome is DONE:
            self._end(None, ())
        elif not isinstance(outcome, Attempt):
            self._end(None, outcome)

    def abandoned(self, error: BaseException) -> None:
        if self.released:
            # It was never begun.
            self._reply(error, ())
        else:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        self._reply(error, ())
        self._done = _nobody

    def _begin(self) -> ReadOutcome | Attempt:
        if self._host.alignment > 1:
            self._check_alignment()
        outcome = self._attempt() if self.aligned else DECLINED
        if outcome is DECLINED:
            self._host.nursery.start_soon(self._run)
            return PENDING
        return outcome

    def _check_alignment(self) -> None:
        # Not before: the size may change while the request waits, and cannot while it is under way.
        end, size = self.offset + self.length, self._host.top.size
        self.aligned = is_aligned(self.offset, self.length, self._host.alignment, size)
        if not self.aligned and end > size:
            raise OutOfRange(f"found {self.length} bytes at {self.offset}, allowed: a range inside [0, {size})")

    async def _run(self) -> None:
        try:
            buffers = await (self._call() if self.aligned else self._call_unaligned())
        except Exception as error:
            self._end(error, ())
        except BaseException:
            self._end(VolumeClosed("the image was closed under the request"), ())
            raise
        else:
            self._end(None, buffers)

    def _end(self, error: BaseException | None, buffers: Buffers) -> None:
        if isinstance(error, VolumeClosed):
            # A volume's EBADF would blame the caller's descriptor, which is as good as ever.
            error = ImageFailed(str(error))
        try:
            self._reply(error, buffers)
        finally:
            self._host.guard.release(self)

    def _attempt(self) -> ReadOutcome | Attempt:
        raise NotImplementedError

    def _call(self) -> Coroutine[Any, Any, Buffers]:
        raise NotImplementedError

    def _call_unaligned(self) -> Coroutine[Any, Any, Buffers]:
        raise NotImplementedError

    def _reply(self, error: BaseException | None, buffers: Buffers) -> None:
        raise NotImplementedError


class ReadRequest(Request):
    """Read *length* bytes."""

    __slots__ = ()

    _exclusive = False

    def prepare(self, offset: int, length: int, done: ReadDone) -> "ReadRequest":
        """Say what to read; returns itself."""
        self._place(offset, length)
        self._done = done
        return self

    def _attempt(self) -> ReadOutcome:
        return self._host.top.try_read(self.offset, self.length, self.read_ended)

    def read_ended(self, error: BaseException | None, buffers: Buffers) -> None:
        """The ``done`` given to the stack."""
        self._end(error, buffers)

    def _call(self) -> Coroutine[Any, Any, Buffers]:
        return self._host.top.read(self.offset, self.length)

    async def _call_unaligned(self) -> Buffers:
        data = memoryview(joined(await self._host.top.read(self.start, self._blocks_end - self.start)))
        at = self.offset - self.start
        return (data[at : at + self.length],)

    def _reply(self, error: BaseException | None, buffers: Buffers) -> None:
        self._done(error, buffers)


class ChangeRequest(Request):
    """A request that changes its range; the base of write, write-zeroes and discard."""

    __slots__ = ()

    def ended(self, error: BaseException | None) -> None:
        """The ``done`` given to the stack."""
        self._end(error, ())

    def _reply(self, error: BaseException | None, buffers: Buffers) -> None:
        self._done(error)

    async def _overwrite(self, start: int, end: int, data: memoryview) -> None:
        # Read-modify-write of the aligned span [start, end) with data at its place inside; the edges keep their bytes.
        block, top = self._host.alignment, self._host.top
        at = max(self.offset, start)
        merged = bytearray(end - start)
        for edge in {start, (end - 1) // block * block}:
            length = min(block, end - edge)
            merged[edge - start : edge - start + length] = joined(await top.read(edge, length))
        merged[at - start : at - start + len(data)] = data
        await top.write(start, memoryview(merged))


class WriteRequest(ChangeRequest):
    """Write *data*."""

    __slots__ = ("_data",)

    def prepare(self, offset: int, data: memoryview, done: Done) -> "WriteRequest":
        """Say what to write; returns itself."""
        self._place(offset, len(data))
        self._data = data
        self._done = done
        return self

    def _attempt(self) -> Attempt:
        return self._host.top.try_write(self.offset, self._data, self.ended)

    def _give_up(self, error: BaseException) -> None:
        # The end is still told: until then the stack, or a system call that hangs, may use the data.
        self._done(GivenUp(str(error)))

    async def _call(self) -> Buffers:
        await self._host.top.write(self.offset, self._data)
        return ()

    async def _call_unaligned(self) -> Buffers:
        await self._overwrite(self.start, self._blocks_end, self._data)
        return ()


class FlushRequest(Request):
    """Make durable what was acknowledged. Lies beyond every volume, so that it meets nothing but barriers."""

    __slots__ = ()

    _exclusive = False

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.start, self.end = BEYOND, EVERYTHING
        self.offset = self.length = 0

    def prepare(self, done: Done) -> "FlushRequest":
        """Say who is to be told; returns itself."""
        self._done = done
        return self

    def ended(self, error: BaseException | None) -> None:
        """The ``done`` given to the stack."""
        self._end(error, ())

    def _attempt(self) -> Attempt:
        return self._host.top.try_flush(self.ended)

    async def _call(self) -> Buffers:
        await self._host.top.flush()
        return ()

    def _reply(self, error: BaseException | None, buffers: Buffers) -> None:
        self._done(error)


class ClearRequest(ChangeRequest):
    """The base of write-zeroes and discard."""

    __slots__ = ()

    def prepare(self, offset: int, length: int, done: Done) -> "ClearRequest":
        """Say what to clear; returns itself."""
        self._place(offset, length)
        self._done = done
        return self

    async def _clear(self, offset: int, length: int) -> None:
        raise NotImplementedError

    async def _call(self) -> Buffers:
        await self._clear(self.offset, self.length)
        return ()

    async def _call_unaligned(self) -> Buffers:
        block, end = self._host.alignment, self.offset + self.length
        inner_start = -(-self.offset // block) * block
        inner_end = end if end == self._host.top.size else end // block * block
        if inner_start > inner_end:
            await self._overwrite(self.start, self._blocks_end, memoryview(bytes(self.length)))
            return ()
        if self.offset < inner_start:
            await self._overwrite(self.start, inner_start, memoryview(bytes(inner_start - self.offset)))
        if inner_start < inner_end:
            await self._clear(inner_start, inner_end - inner_start)
        if inner_end < end:
            await self._overwrite(inner_end, self._blocks_end, memoryview(bytes(end - inner_end)))
        return ()


class ZeroRequest(ClearRequest):
    """Make the range read as zeroes, keeping its space."""

    __slots__ = ()

    def _attempt(self) -> Attempt:
        return self._host.top.try_write_zeroes(self.offset, self.length, self.ended)

    async def _clear(self, offset: int, length: int) -> None:
        await self._host.top.write_zeroes(offset, length)


class DiscardRequest(ClearRequest):
    """Make the range read as zeroes and free its space."""

    __slots__ = ()

    def _attempt(self) -> Attempt:
        return self._host.top.try_discard(self.offset, self.length, self.ended)

    async def _clear(self, offset: int, length: int) -> None:
        await self._host.top.discard(offset, length)


def _nobody(*_: object) -> None:
    """The ``done`` of a request that was answered before its end."""
