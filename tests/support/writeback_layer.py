"""The smallest layer that keeps dirty data, for tests of what is made for such layers.

Owns a write-back layer whose pool outlives it: memory of this process, found again by the name of an empty pool file.
It must not be more than tests need: it writes back only when asked.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import trio

from fusecache.api import (
    API_VERSION,
    DECLINED,
    DONE,
    Attempt,
    Buffers,
    DirtyMark,
    Done,
    Extent,
    ExtentKind,
    Layer,
    LayerContext,
    LayerPlugin,
    LayerState,
    LayerStatus,
    ReadDone,
    ReadOutcome,
    Span,
    Volume,
    joined,
)
from fusecache.api.errors import LayerDirty
from fusecache.api.ranges import align_up, subtract
from fusecache.testing.sparse import SparseBytes


@dataclass(eq=False)
class Pool:
    """What outlives the layer. A byte is dirty where it is not in a hole.

    Attributes:
        dirty: what was written since the last write-back began.
        leaving: what the write-back in progress is about; dirty as well until that has ended.
    """

    dirty: SparseBytes
    leaving: SparseBytes
    since: float | None = None


POOLS: dict[Path, Pool] = {}


class WritebackLayer(Layer):
    """Keeps every change until :meth:`writeback`.

    At any time each byte is found in ``dirty``, else in ``leaving``, else below.
    """

    def __init__(self, pool: Pool, below: Volume, mark: DirtyMark) -> None:
        self.size = below.size
        self.alignment = below.alignment
        self.preferred_io = below.preferred_io
        self.below = below
        self.pool = pool
        self.mark = mark
        self.lock = trio.Lock()

    async def read(self, offset: int, length: int) -> Buffers:
        held = [(span, self.pool.leaving.read(*_range(span))) for span in _dirty(self.pool.leaving, offset, length)]
        held += [(span, self.pool.dirty.read(*_range(span))) for span in _dirty(self.pool.dirty, offset, length)]
        result = bytearray(length)
        for span in subtract(Span(offset, offset + length), sorted(span for span, _ in held)):
            result[span.start - offset : span.end - offset] = joined(await self.below.read(*_range(span)))
        for span, data in held:
            result[span.start - offset : span.end - offset] = data
        return [result]

    async def write(self, offset: int, data: memoryview) -> None:
        await trio.lowlevel.checkpoint()
        await self.mark.set()
        self.keep(offset, data)

    async def write_zeroes(self, offset: int, length: int) -> None:
        await trio.lowlevel.checkpoint()
        await self.mark.set()
        self.keep(offset, bytes(length))

    async def discard(self, offset: int, length: int) -> None:
        await self.write_zeroes(offset, length)

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        await trio.lowlevel.checkpoint()
        return [Extent(offset, length, ExtentKind.DATA)]

    async def resize(self, size: int) -> None:
        await self.below.resize(size)
        end = min(align_up(self.size, self.alignment), size)
        for content in (self.pool.dirty, self.pool.leaving):
            cut_unit = self.size < end and any(_dirty(content, self.size - 1, 1))
            content.resize(size)
            if cut_unit:
                # The last unit was dirty up to the old end; it is written back as a whole.
                content.write(self.size, bytes(end - self.size))
        self.size = size

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        held = list(_dirty(self.pool.dirty, offset, length))
        return [self.pool.dirty.read(offset, length)] if held == [Span(offset, offset + length)] else DECLINED

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        if not self.mark.is_set:
            return DECLINED
        self.keep(offset, data)
        return DONE

    def try_flush(self, done: Done) -> Attempt:
        return DONE

    async def writeback(self) -> None:
        async with self.lock:
            self.pool.leaving, self.pool.dirty = self.pool.dirty, SparseBytes(self.size)
            try:
                for span in list(_dirty(self.pool.leaving, 0, self.size)):
                    await self.below.write(span.start, memoryview(self.pool.leaving.read(*_range(span))))
                await self.below.flush()
            except BaseException:
                self.take_back()
                raise
            self.pool.leaving = SparseBytes(self.size)

    async def invalidate(self, *, dirty: bool) -> None:
        async with self.lock:
            if self.dirty_bytes and not dirty:
                raise LayerDirty(f"{self.dirty_bytes} bytes are dirty")
            self.pool.dirty = SparseBytes(self.size)

    def status(self) -> LayerStatus:
        dirty = self.dirty_bytes
        age = None if self.pool.since is None else trio.current_time() - self.pool.since
        return LayerStatus(
            state=LayerState.DIRTY if dirty else LayerState.CLEAN,
            dirty_bytes=dirty,
            used_bytes=dirty,
            size_bytes=2 * self.size,
            oldest_dirty_seconds=max(0.0, age or 0.0) if dirty else None,
        )

    @property
    def dirty_bytes(self) -> int:
        """How much is not below yet."""
        return self.pool.dirty.allocated + self.pool.leaving.allocated

    def keep(self, offset: int, data: bytes | memoryview) -> None:
        """Make *data* dirty."""
        if not self.dirty_bytes:
            self.pool.since = trio.current_time()
        self.pool.dirty.write(offset, data)

    def take_back(self) -> None:
        """Make everything that was leaving dirty again, under what was written since."""
        for span in _dirty(self.pool.dirty, 0, self.size):
            self.pool.leaving.write(span.start, self.pool.dirty.read(*_range(span)))
        self.pool.dirty, self.pool.leaving = self.pool.leaving, SparseBytes(self.size)


class WritebackPlugin(LayerPlugin):
    """Makes write-back layers of the class given."""

    @dataclass
    class Config:
        """No options."""

    name = "writeback"
    api_version = API_VERSION
    config_model: ClassVar[type[Any]] = Config
    writes_back = True

    def __init__(self, layer: type[WritebackLayer] = WritebackLayer) -> None:
        self.layer = layer

    def artifacts(self, context: LayerContext) -> Sequence[Path]:
        return [context.state_dir / f"writeback.{context.index}.pool"]

    def open(self, context: LayerContext, below: Volume) -> AbstractAsyncContextManager[WritebackLayer]:
        return self._opened(context, below)

    @asynccontextmanager
    async def _opened(self, context: LayerContext, below: Volume) -> AsyncIterator[WritebackLayer]:
        (path,) = self.artifacts(context)
        path.touch()
        empty = Pool(SparseBytes(below.size), SparseBytes(below.size))
        if not context.dirty.is_set:
            POOLS.pop(path, None)
        layer = self.layer(POOLS.setdefault(path, empty), below, context.dirty)
        yield layer
        if context.dirty.is_set and not layer.dirty_bytes:
            await context.dirty.clear()


def _dirty(content: SparseBytes, offset: int, length: int) -> Iterator[Span]:
    if length:
        for extent in content.extents(offset, length):
            if extent.kind is ExtentKind.DATA:
                yield Span(extent.offset, extent.end)


def _range(span: Span) -> tuple[int, int]:
    return span.start, span.end - span.start
