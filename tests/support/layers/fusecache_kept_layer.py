"""The smallest layer that keeps dirty data in a file, for tests of real mounts.

An ordinary plugin, found by entry point. Every change goes to the end of the layer's pool file, and stays there until
somebody asks for a write-back. A test controls it through files in the directory ``switches``:

* while ``switches/stuck`` exists, a write-back waits after its first slice;
* while ``switches/below`` exists, a write-back fails with the errno in it.

The pool file ``kept.<identity digest>.<index>.pool`` holds changes one after another, each a line
``offset length crc32`` in decimal and then the bytes. A torn one at the end was never acknowledged.
"""

import os
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from fusecache.api import (
    API_VERSION,
    Buffers,
    Extent,
    ExtentKind,
    Inspection,
    Layer,
    LayerContext,
    LayerPlugin,
    LayerState,
    LayerStatus,
    Volume,
    joined,
)
from fusecache.api.errors import LayerDirty
from fusecache.testing.sparse import SparseBytes

_SLICE = 64 << 10


@dataclass
class KeptConfig:
    """Where the pool file and the switches are."""

    path: str
    switches: str


@dataclass(frozen=True)
class Change:
    """One change in a pool file: where its bytes are, and whether they are the ones that were written."""

    offset: int
    data: bytes
    end: int
    good: bool


def changes(pool: bytes) -> Iterator[Change]:
    """Yield the whole changes in the bytes of a pool file."""
    at = 0
    while (line_end := pool.find(b"\n", at)) >= 0:
        offset, length, checksum = map(int, pool[at:line_end].split())
        end = line_end + 1 + length
        if end > len(pool):
            return
        data = pool[line_end + 1 : end]
        yield Change(offset, data, end, zlib.crc32(data) == checksum)
        at = end


class KeptLayer(Layer):
    """Keeps every change until :meth:`writeback`. A byte is dirty where the content has no hole."""

    def __init__(self, context: LayerContext, below: Volume) -> None:
        self.size = below.size
        self.below = below
        self.mark = context.dirty
        self.switches = Path(context.config.switches)
        self.lock = trio.Lock()
        self.moved = 0
        self.fd = os.open(pool_of(context), os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.dirty = SparseBytes(self.size)
        if self.mark.is_set:
            for change in changes(os.pread(self.fd, os.fstat(self.fd).st_size, 0)):
                self.dirty.write(change.offset, change.data)
        else:
            os.ftruncate(self.fd, 0)

    async def read(self, offset: int, length: int) -> Buffers:
        result = bytearray(joined(await self.below.read(offset, length)))
        for extent in self.dirty.extents(offset, length):
            if extent.kind is ExtentKind.DATA:
                start = extent.offset - offset
                result[start : start + extent.length] = self.dirty.read(extent.offset, extent.length)
        return [result]

    async def write(self, offset: int, data: memoryview) -> None:
        async with self.lock:
            await self.mark.set()
            head = f"{offset} {len(data)} {zlib.crc32(data)}\n".encode()
            assert os.writev(self.fd, [head, data]) == len(head) + len(data)
            self.dirty.write(offset, data)

    async def write_zeroes(self, offset: int, length: int) -> None:
        await self.write(offset, memoryview(bytes(length)))

    async def discard(self, offset: int, length: int) -> None:
        await self.write_zeroes(offset, length)

    async def flush(self) -> None:
        await trio.to_thread.run_sync(os.fsync, self.fd)
        await self.below.flush()

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        await trio.lowlevel.checkpoint()
        return [Extent(offset, length, ExtentKind.DATA)]

    async def resize(self, size: int) -> None:
        await self.below.resize(size)
        self.dirty.resize(size)
        self.size = size

    async def writeback(self) -> None:
        while self.dirty.allocated:
            await self._ask()
            async with self.lock:
                await self._write_slice_back()
            while (self.switches / "stuck").exists():  # noqa: ASYNC110 - the event is in another process
                await trio.sleep(0.01)
        async with self.lock:
            await self.below.flush()
            if not self.dirty.allocated:
                os.ftruncate(self.fd, 0)

    async def _ask(self) -> None:
        try:
            number = int((self.switches / "below").read_text())
        except FileNotFoundError:
            return
        raise OSError(number, os.strerror(number))

    async def _write_slice_back(self) -> None:
        for extent in self.dirty.extents(0, self.size):
            if extent.kind is ExtentKind.DATA:
                length = min(extent.length, _SLICE)
                await self.below.write(extent.offset, memoryview(self.dirty.read(extent.offset, length)))
                self.dirty.punch(extent.offset, length)
                self.moved += length
                return

    async def invalidate(self, *, dirty: bool) -> None:
        async with self.lock:
            if self.dirty.allocated and not dirty:
                raise LayerDirty(f"{self.dirty.allocated} bytes are dirty")
            self.dirty = SparseBytes(self.size)
            os.ftruncate(self.fd, 0)

    def status(self) -> LayerStatus:
        dirty = self.dirty.allocated
        state = LayerState.DIRTY if dirty else LayerState.CLEAN
        return LayerStatus(state=state, dirty_bytes=dirty, size_bytes=self.size, writeback_bytes=self.moved)


def pool_of(context: LayerContext) -> Path:
    """Return the path of a layer's pool file."""
    return Path(context.config.path) / f"kept.{context.identity.digest}.{context.index}.pool"


class KeptPlugin(LayerPlugin):
    """Makes layers that keep dirty data in a file."""

    name = "kept"
    api_version = API_VERSION
    config_model = KeptConfig
    writes_back = True

    def artifacts(self, context: LayerContext) -> Sequence[Path]:
        return [pool_of(context)]

    @asynccontextmanager
    async def open(self, context: LayerContext, below: Volume) -> AsyncIterator[Layer]:
        layer = KeptLayer(context, below)
        try:
            yield layer
            if not layer.dirty.allocated:
                with trio.CancelScope(shield=True):
                    await context.dirty.clear()
        finally:
            os.close(layer.fd)

    def inspect(self, path: Path, *, verify: bool) -> Inspection:
        found = list(changes(path.read_bytes()))
        problems = [f"change {number}: its checksum is wrong" for number, one in enumerate(found) if not one.good]
        return Inspection(
            f"{path}: the pool of a kept layer",
            {"used_bytes": found[-1].end if found else 0, "changes": {"whole": len(found)}},
            picture=["#" * len(found)],
            problems=problems if verify else (),
        )


kept = KeptPlugin()
