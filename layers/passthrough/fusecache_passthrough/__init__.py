"""The simplest complete layer: it holds nothing and passes every request to the level below.

Owns nothing but two counters. A pattern for layer authors: every method and every attempt is written out, because a
method that a layer forgets must be an error and not a hole in the cache.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from fusecache.api import (
    API_VERSION,
    DECLINED,
    Attempt,
    Buffers,
    Done,
    Extent,
    Layer,
    LayerContext,
    LayerPlugin,
    LayerStatus,
    ReadDone,
    ReadOutcome,
    Volume,
)


@dataclass(frozen=True, slots=True)
class PassthroughConfig:
    """No options."""


class PassthroughLayer(Layer):
    """A layer without content: never dirty, every read a miss.

    Attempts hand the caller's ``done`` to the level below as it is; cancellation and errors are those of the level
    below.
    """

    def __init__(self, below: Volume) -> None:
        self.size = below.size
        self.alignment = below.alignment
        self.preferred_io = below.preferred_io
        self.read_only = below.read_only
        self._below = below
        self._misses = 0
        self._writes = 0

    def __repr__(self) -> str:
        return f"<PassthroughLayer over {self._below!r}>"

    async def read(self, offset: int, length: int) -> Buffers:
        """Read from the level below."""
        self._misses += 1
        return await self._below.read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to the level below."""
        self._writes += 1
        await self._below.write(offset, data)

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Write zeroes to the level below."""
        self._writes += 1
        await self._below.write_zeroes(offset, length)

    async def discard(self, offset: int, length: int) -> None:
        """Discard in the level below."""
        self._writes += 1
        await self._below.discard(offset, length)

    async def flush(self) -> None:
        """Flush the level below."""
        await self._below.flush()

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Describe what the level below holds."""
        return await self._below.extents(offset, length)

    async def resize(self, size: int) -> None:
        """Resize the level below."""
        try:
            await self._below.resize(size)
        finally:
            self.size = self._below.size

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        """Attempt the read in the level below."""
        outcome = self._below.try_read(offset, length, done)
        if outcome is not DECLINED:
            self._misses += 1
        return outcome

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        """Attempt the write in the level below."""
        outcome = self._below.try_write(offset, data, done)
        if outcome is not DECLINED:
            self._writes += 1
        return outcome

    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        """Attempt to write zeroes in the level below."""
        outcome = self._below.try_write_zeroes(offset, length, done)
        if outcome is not DECLINED:
            self._writes += 1
        return outcome

    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        """Attempt the discard in the level below."""
        outcome = self._below.try_discard(offset, length, done)
        if outcome is not DECLINED:
            self._writes += 1
        return outcome

    def try_flush(self, done: Done) -> Attempt:
        """Attempt the flush in the level below."""
        return self._below.try_flush(done)

    async def writeback(self) -> None:
        """Flush the level below; there is nothing to write back."""
        await self._below.flush()

    async def invalidate(self, *, dirty: bool) -> None:
        """Drop nothing: there is no content."""

    def status(self) -> LayerStatus:
        """Return the counters: reads as misses; writes, zeroes and discards as writes."""
        return LayerStatus(misses=self._misses, writes=self._writes)


class PassthroughPlugin(LayerPlugin):
    """Makes passthrough layers; they own no files."""

    name = "passthrough"
    api_version = API_VERSION
    config_model = PassthroughConfig

    def open(self, context: LayerContext, below: Volume) -> AbstractAsyncContextManager[PassthroughLayer]:
        """Open the layer; there is nothing to recover and nothing to close."""
        return _opened(below)


@asynccontextmanager
async def _opened(below: Volume) -> AsyncIterator[PassthroughLayer]:
    yield PassthroughLayer(below)


plugin = PassthroughPlugin()
