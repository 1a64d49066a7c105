"""The plugin: from options to an open layer with its pool file.

Owns where pool files are, and when one is made. It must not know what is in them.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import trio

from fusecache.api import API_VERSION, Inspection, LayerContext, LayerPlugin, Volume
from fusecache_rwl.inspection import inspect_pool
from fusecache_rwl.layer import RwlLayer, open_layer
from fusecache_rwl.medium import create_pool, open_medium
from fusecache_rwl.naming import pool_name
from fusecache_rwl.options import RwlOptions


class RwlPlugin(LayerPlugin):
    """Makes rwl layers; each owns one pool file."""

    name = "rwl"
    api_version = API_VERSION
    config_model = RwlOptions
    writes_back = True

    def artifacts(self, context: LayerContext) -> Sequence[Path]:
        """Return the pool file's path."""
        return (_pool(context),)

    def inspect(self, path: Path, *, verify: bool) -> Inspection:
        """Describe a pool file; changes nothing. Blocks."""
        return inspect_pool(path, verify=verify)

    def open(self, context: LayerContext, below: Volume) -> AbstractAsyncContextManager[RwlLayer]:
        """Open the layer; makes its pool file where the layer is clean and has none of the wanted size."""
        return _opened(context, below)


def _pool(context: LayerContext) -> Path:
    options: RwlOptions = context.config
    return Path(options.path) / pool_name(context.identity, context.index)


@asynccontextmanager
async def _opened(context: LayerContext, below: Volume) -> AsyncIterator[RwlLayer]:
    options: RwlOptions = context.config
    pool = _pool(context)
    if not context.dirty.is_set:
        await trio.to_thread.run_sync(_make, pool, options)
    medium = await trio.to_thread.run_sync(open_medium, pool, options.media, context.completions, context.file_sync)
    try:
        async with open_layer(context, below, medium) as layer:
            yield layer
    finally:
        with trio.CancelScope(shield=True):
            await medium.close()


def _make(pool: Path, options: RwlOptions) -> None:
    """See to it that there is a pool file of the wanted size; blocks."""
    try:
        if pool.stat().st_size == options.size:
            return
    except (FileNotFoundError, NotADirectoryError):
        # Also where the directory is not there, which is told when the file is made.
        pass
    create_pool(pool, options.size)


plugin = RwlPlugin()
