"""A layer over a volume of the kit, with a small pool file of its own, opened again and again.

Owns what stays between two openings: the pool, the mark and the level below. It must not know what is tested.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from fusecache.api import DECLINED, DONE, Identity, LayerContext, Volume
from fusecache.api.errors import unwrapped
from fusecache.testing import RecordingMark, layer_context, validated
from fusecache_rwl.format import RING_OFFSET
from fusecache_rwl.layer import RwlLayer, open_layer
from fusecache_rwl.medium import create_pool, open_medium
from fusecache_rwl.plugin import plugin

BLOCK = 4096
_IDENTITY = Identity("memory:predecessors")


@asynccontextmanager
async def _unwrapped() -> AsyncIterator[None]:
    """Raise what is alone in its groups as it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        failure = unwrapped(group)
    else:
        return
    raise failure


@dataclass
class Cache:
    """What one layer has outside the process.

    Attributes:
        pool: the path of its pool file; made by the first opening.
        below: the level below.
        ring: bytes of the pool's ring.
        mark: whether the image is marked as dirty.
        options: of the layer; its size is not looked at.
        events: kinds of what it told.
    """

    pool: Path
    below: Volume
    ring: int = 256 << 10
    mark: RecordingMark = field(default_factory=RecordingMark)
    options: dict[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)

    @asynccontextmanager
    async def context(self, **options: Any) -> AsyncIterator[LayerContext]:
        """Make what the layer is opened with, with *options* besides its own."""
        wanted = {"path": str(self.pool.parent), "size": "16MiB", **self.options, **options}
        async with (
            _unwrapped(),
            layer_context(
                validated(plugin, wanted),
                identity=_IDENTITY,
                dirty=self.mark,
                emit=lambda kind, text: self.events.append(kind),
            ) as context,
        ):
            yield context

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[RwlLayer]:
        """Open the layer with *options* besides its own; leaving closes it."""
        if not self.pool.exists():
            create_pool(self.pool, RING_OFFSET + self.ring)
        async with self.context(**options) as context:
            medium = open_medium(self.pool, context.config.media, context.completions, context.file_sync)
            try:
                async with open_layer(context, self.below, medium) as layer:
                    yield layer
            finally:
                with trio.CancelScope(shield=True):
                    await medium.close()

    def move_to(self, context: LayerContext) -> Path:
        """Give the pool file the name by which the plugin finds it, and return its path."""
        (path,) = plugin.artifacts(context)
        self.pool = self.pool.rename(path)
        return path

    def damaged(self, at: int, data: bytes) -> "Cache":
        """Return a cache whose pool is a copy of this one's with *data* at an offset of the file."""
        content = bytearray(self.pool.read_bytes())
        content[at : at + len(data)] = data
        copy = Cache(self.pool.with_name("damaged"), self.below, self.ring, options=self.options)
        copy.pool.write_bytes(content)
        copy.mark.is_set = self.mark.is_set
        return copy


def fill(layer: RwlLayer, offset: int, data: bytes) -> int:
    """Write *data* to one block after the other, from *offset* on, as long as the log has space.

    Nothing else runs meanwhile. The image is marked already. Returns how many were written.
    """
    count = 0
    while offset + (count + 1) * len(data) <= layer.size:
        outcome = layer.try_write(offset + count * len(data), memoryview(data), _never)
        if outcome is DECLINED:
            return count
        assert outcome is DONE
        count += 1
    raise AssertionError("the log took the whole image")


def _never(error: BaseException | None) -> None:
    raise AssertionError("done was called")


def forget_pages(path: Path) -> None:
    """Have the kernel drop what it holds of a file in memory."""
    fd = os.open(path, os.O_RDONLY)
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
