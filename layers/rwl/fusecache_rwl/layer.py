"""The layer: a volume over the log and the level below.

Owns what each request becomes. It must not know record formats, media or when to write back.

A change is appended to the log, and acknowledged when the log has it: in the page cache or on pmem, or on the medium
for good where ``persist`` says so. Before the first one the image is marked as dirty, durably; until that is done the
attempts decline. A read takes from the log what it has, and the rest from the level below.
"""

import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from fusecache.api import (
    DECLINED,
    DONE,
    PENDING,
    Attempt,
    Buffer,
    Buffers,
    Done,
    Extent,
    ExtentKind,
    FusecacheError,
    Layer,
    LayerContext,
    LayerState,
    LayerStatus,
    ReadDone,
    ReadOutcome,
    Volume,
)
from fusecache.api.errors import LayerDirty, VolumeReadOnly
from fusecache_rwl import reading
from fusecache_rwl.failures import LogFailed
from fusecache_rwl.format import MAX_DATA, RecordType
from fusecache_rwl.index import GAP, ZERO
from fusecache_rwl.log import Log
from fusecache_rwl.medium import Medium
from fusecache_rwl.options import RwlOptions
from fusecache_rwl.recovery import name_log, new_log, recovered_log
from fusecache_rwl.stall import Stall
from fusecache_rwl.writeback import Writeback

log = logging.getLogger(__name__)

SECTOR: Final = 512
_DATA: Final = RecordType.DATA
_PATIENCE: Final = 3.0
"""Seconds that a close waits for the backend."""
_ZEROES: Final = memoryview(bytes(MAX_DATA))


class RwlLayer(Layer):
    """A persistent write-back log over the level below; made by :func:`open_layer`.

    On top of what the level below raises, changes raise:
        LogFull: see there.
        LogFailed: the medium failed, and what was acknowledged may not survive (EIO).
    """

    alignment = SECTOR

    def __init__(self, context: LayerContext, below: Volume, pool: Log) -> None:
        options: RwlOptions = context.config
        self.size = below.size
        self.alignment = max(SECTOR, below.alignment)
        self.preferred_io = below.preferred_io
        self.read_only = below.read_only
        self.writeback_rate = options.writeback_rate
        self._below = below
        self._log = pool
        self._space = pool.space
        self._index = pool.index
        self._medium = pool.medium
        self._dirty = context.dirty
        self._each = not pool.medium.persists and options.persists_each
        self.moving = Writeback(pool, below, options, context.dirty, context.emit, context.nursery)
        self._aside = self.moving.aside
        self._stall = Stall(pool, self.moving, context)
        self._hits = self._misses = self._writes = 0

    def __repr__(self) -> str:
        return f"<RwlLayer over {self._below!r}, {self._log.ledger.records} dirty records>"

    # ---- changes ----

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        """Attempt :meth:`write`; declines while the image is not marked as dirty, and while the log is full."""
        length = len(data)
        if not self._dirty.is_set or length > MAX_DATA:
            return DECLINED
        if not self._log.append(_DATA, offset, length, data, time.monotonic()):
            return DECLINED
        self._writes += 1
        # What Space.dirty_used says, without the call.
        moving, space = self.moving, self._space
        if space.head - space.tail > moving.wake_at:
            moving.wake()
        if self._each:
            return DONE if self._log.commit(done) else PENDING
        return DONE

    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        """Attempt :meth:`write_zeroes`; declines as :meth:`try_write`."""
        return self._try_clear(RecordType.ZERO, offset, length, done)

    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        """Attempt :meth:`discard`; declines as :meth:`try_write`."""
        return self._try_clear(RecordType.DISCARD, offset, length, done)

    def _try_clear(self, kind: RecordType, offset: int, length: int, done: Done) -> Attempt:
        if not self._dirty.is_set or not self._log.append(kind, offset, length, None, time.monotonic()):
            return DECLINED
        self._appended()
        if self._each:
            return DONE if self._log.commit(done) else PENDING
        return DONE

    def _appended(self) -> None:
        self._writes += 1
        if self._space.dirty_used > self.moving.wake_at:
            self.moving.wake()

    async def write(self, offset: int, data: memoryview) -> None:
        """Append *data*, in pieces of a mebibyte. A cancellation leaves the first pieces, or none, or all."""
        for at in range(0, len(data), MAX_DATA):
            piece = data[at : at + MAX_DATA]
            await self._change(_DATA, offset + at, len(piece), piece)

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Append that the range reads as zeroes; one record whatever the length."""
        await self._change(RecordType.ZERO, offset, length, None)

    async def discard(self, offset: int, length: int) -> None:
        """Append that the range is discarded; one record whatever the length."""
        await self._change(RecordType.DISCARD, offset, length, None)

    async def _change(self, kind: RecordType, offset: int, length: int, data: Buffer | None) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        until = trio.current_time() + self._stall.timeout
        while True:
            if self._log.failure is not None:
                if self._aside.active:
                    await self._aside.change(kind, offset, length, data)
                    self._writes += 1
                    return
                if self.moving.is_damaged:
                    raise self._log.refusal()
                await self._stall.wait(until)
            elif not self._dirty.is_set:
                await self._aside.mark()
            elif self._log.append(kind, offset, length, data, time.monotonic()):
                break
            elif self._log.failure is None:
                await self._stall.wait(until)
        if self._stall.waiting:
            self._stall.end()
        self._appended()
        if self._each:
            await self._log.waits.told(self._log.commit)

    def try_flush(self, done: Done) -> Attempt:
        """Attempt :meth:`flush`; declines where the log has failed."""
        if self._log.failure is not None:
            return DECLINED
        return DONE if self._log.sync(done) else PENDING

    async def flush(self) -> None:
        """Make all that was acknowledged durable in the pool; writes nothing back. A cancellation waits.

        Where the pool's medium fails it returns when all is durable below, or fails when that is not possible either.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._aside.active:
            await self._below.flush()
        else:
            await self._log.waits.told(self._log.sync)

    async def resize(self, size: int) -> None:
        """Set the length, of the level below too. A shrink writes back first, and so does a change of what the last
        sector is; cancelled before that, it changed nothing."""
        odd = self.size % SECTOR
        if size < self.size or odd:
            await self.moving.drain()
        try:
            await self.moving.stop()
            if odd:
                # It would not end where the image does any more.
                self._index.remove(self.size - odd, odd)
            await self._below.resize(size)
            # A flush makes durable what is written from now on, but only here.
            await self._below.flush()
        finally:
            self.size = self._below.size
            self._index.resize(self.size)
            self.moving.resume()

    # ---- reads ----

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        """Attempt :meth:`read`; declines what lies in several places."""
        where = self._index.find(offset, length)
        if where >= 0:
            if self._log.failure is not None:
                return DECLINED
            piece = self._medium.read_now(where, length)
            self._hits += 1
            if piece is not None:
                return (piece,)
            reading.read_on_thread(self._log, where, length, done)
            return PENDING
        if where == GAP:
            outcome = self._below.try_read(offset, length, done)
            if outcome is not DECLINED:
                self._misses += 1
            return outcome
        if where == ZERO and length <= MAX_DATA:
            self._hits += 1
            return (_ZEROES[:length],)
        return DECLINED

    async def read(self, offset: int, length: int) -> Buffers:
        """Return exactly *length* bytes from *offset*. A cancellation has no effect."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._index.find(offset, length) == GAP:
            self._misses += 1
        else:
            self._hits += 1
        return await reading.read(self._log, self._below, offset, length)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Describe the range: what the log has is data, what it knows as zeroes a hole, the rest the level below's."""
        found: list[Extent] = []
        for at, size, where in self._index.lookup(offset, length):
            if where == GAP:
                found += await self._below.extents(at, size)
            else:
                found.append(Extent(at, size, ExtentKind.HOLE if where == ZERO else ExtentKind.DATA))
        return found

    # ---- the layer ----

    async def writeback(self) -> None:
        """See :meth:`fusecache.api.Layer.writeback`. Where nothing is dirty any more, the image is marked as clean."""
        await self.moving.drain()
        await self._below.flush()
        await self._mark_clean()

    @property
    def torn(self) -> bool:
        """See :attr:`fusecache.api.Layer.torn`: a group is being written back."""
        return self.moving.torn

    async def _mark_clean(self) -> None:
        """Take back what the mark says without need."""
        if not self._log.ledger.records and self._dirty.is_set:
            await self.moving.clear_mark()
        else:
            await self.moving.mend()

    async def _try_to_mark_clean(self) -> None:
        try:
            await self._mark_clean()
        except (FusecacheError, OSError) as error:
            log.warning("the image stays marked as dirty, though nothing is: %s", error)

    async def invalidate(self, *, dirty: bool) -> None:
        """See :meth:`fusecache.api.Layer.invalidate`. A cancellation leaves all of it, or nothing."""
        self._check_clean(dirty)
        try:
            await self.moving.stop()
            # A layer above may have written something back meanwhile.
            self._check_clean(dirty)
            if self._log.failure is not None:
                # Void once the mark is cleared, which write-back then sees to again, and stands aside.
                await self._dirty.clear()
                self._log.forget()
            elif self._log.ledger.records:
                await self._log.begin_anew()
            else:
                self._log.drop_clean()
                self._index.clear()
            # What was dropped is dropped: an error would keep the layers above from dropping their copies.
            await self._try_to_mark_clean()
        finally:
            self.moving.resume()

    def _check_clean(self, dirty: bool) -> None:
        if self._log.ledger.records and not dirty:
            raise LayerDirty(f"{self._log.ledger.records} records are not written back")

    def set_writeback_rate(self, rate: int | None) -> None:
        self.writeback_rate = rate
        self.moving.set_rate(rate)

    def status(self) -> LayerStatus:
        ledger, space = self._log.ledger, self._space
        oldest = ledger.oldest_time
        return LayerStatus(
            state=self._state(),
            dirty_bytes=ledger.dirty_bytes,
            used_bytes=space.used,
            size_bytes=self._medium.size,
            oldest_dirty_seconds=None if oldest is None else max(0.0, time.monotonic() - oldest),
            hits=self._hits,
            misses=self._misses,
            writes=self._writes,
            writeback_bytes=self.moving.moved_bytes,
            errors=self._stall.refused + self._log.failures,
            note=self._stall.note,
        )

    def _state(self) -> LayerState:
        if self._log.failure is not None:
            return LayerState.DEGRADED if self._aside.active else LayerState.FAILED
        if self._stall.note:
            return LayerState.DEGRADED
        if self.moving.state is not LayerState.CLEAN:
            return self.moving.state
        return LayerState.DIRTY if self._log.ledger.records else LayerState.CLEAN

    async def close(self, moved: trio.Event) -> None:
        """Make durable what is in the log, and mark the image as clean where nothing is dirty. Not to be cancelled.

        Takes 3 seconds at the most, also over a medium or a backend that hangs: what is in the log is in the page cache
        then, and outlives the process; the image stays marked as dirty, which the core, or the next open, puts right.

        Args:
            moved: write-back, which has been cancelled, has ended.
        """
        with trio.move_on_after(_PATIENCE) as patience:
            await moved.wait()
            await self._sync_at_close()
            if not self.read_only:
                await self._try_to_mark_clean()
        if patience.cancelled_caught:
            log.warning("closed without an answer from the pool's medium, or from the backend")
            self._log.waits.give_up()
            with trio.move_on_after(_PATIENCE / 10):
                await moved.wait()

    async def _sync_at_close(self) -> None:
        if self._log.failure is not None:
            return
        ended = trio.Event()

        def done(error: BaseException | None) -> None:
            if error is not None:
                log.warning("the log is closed, and may not survive loss of power: %s", error)
            ended.set()

        try:
            if not self._log.sync(done):
                await ended.wait()
        except LogFailed as error:
            done(error)


@asynccontextmanager
async def open_layer(context: LayerContext, below: Volume, medium: Medium) -> AsyncIterator[RwlLayer]:
    """Open a layer over *below* with its pool on *medium*, which stays the caller's to close.

    A dirty layer is recovered, a clean one begins with an empty log.

    Entering raises:
        CorruptState, Fenced, LogFailed: see :mod:`fusecache_rwl.recovery`.
    """
    begin = recovered_log if context.dirty.is_set else new_log
    pool = await begin(context, medium, below.size)
    if context.dirty.is_set and not below.read_only:
        await name_log(context, pool)
    layer = RwlLayer(context, below, pool)
    ended = trio.Event()
    scope = trio.CancelScope()

    async def move() -> None:
        try:
            with scope:
                await layer.moving.run()
        finally:
            ended.set()

    if not below.read_only:
        context.nursery.start_soon(move)
    else:
        layer.moving.end(VolumeReadOnly("the level below is read-only: nothing can be written back"))
        ended.set()
    try:
        yield layer
    finally:
        scope.cancel()
        with trio.CancelScope(shield=True):
            await layer.close(ended)
