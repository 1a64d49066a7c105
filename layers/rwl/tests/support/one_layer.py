"""One layer over a volume of the test's, with a small pool in memory.

Owns how it is opened and closed. It must not know what is tested.
"""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from fusecache.api import DirtyMark, Identity, Volume
from fusecache.testing import layer_context
from fusecache_rwl.format import RING_OFFSET
from fusecache_rwl.layer import RwlLayer, open_layer
from fusecache_rwl.medium import create_pool, open_medium
from fusecache_rwl.options import RwlOptions

RING = 64 << 10
"""Bytes of the ring."""
_IDENTITY = Identity("memory:one")


@contextmanager
def pool_file() -> Iterator[Path]:
    """Make a pool file in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "pool"
        create_pool(path, RING_OFFSET + RING)
        yield path


@asynccontextmanager
async def opened(pool: Path, below: Volume, mark: DirtyMark, **options: object) -> AsyncIterator[RwlLayer]:
    """Open the layer with those options, its pool in *pool*; leaving closes it."""
    config = RwlOptions.model_validate({"path": "/nowhere", "size": "16MiB", **options})
    async with layer_context(config, identity=_IDENTITY, dirty=mark) as context:
        medium = open_medium(pool, "ssd", context.completions, context.file_sync)
        try:
            async with open_layer(context, below, medium) as layer:
                yield layer
        finally:
            await medium.close()


@asynccontextmanager
async def opened_once(below: Volume, mark: DirtyMark, **options: object) -> AsyncIterator[RwlLayer]:
    """Open the layer with a new pool."""
    with pool_file() as pool:
        async with opened(pool, below, mark, **options) as layer:
            yield layer
