"""The door to pool files: making one, and opening it with the engine that fits.

Owns the choice between the engines. It must not know how they work, nor what is stored.
"""

import logging
from pathlib import Path

from fusecache.api import Completions, FileSync
from fusecache_rwl.medium_base import Media, Medium
from fusecache_rwl.medium_pmem import PmemMedium, map_pool
from fusecache_rwl.medium_ssd import SsdMedium
from fusecache_rwl.pool_file import create_pool, open_pool_file

__all__ = ["Media", "Medium", "create_pool", "open_medium"]

log = logging.getLogger(__name__)


def open_medium(path: Path, media: Media, completions: Completions, file_sync: FileSync) -> Medium:
    """Open and lock the pool file *path*. Blocks; any thread.

    Args:
        media: "pmem" maps the file where it is on persistent memory; where it is not, or ``pmdk`` is missing, and with
            "ssd", the ssd engine serves the same bytes. ``Medium.durability`` tells which it is.

    Raises:
        ImageBusy: another opener holds the file.
        CorruptState: it is no pool file: not a regular file, or too short.
        OSError: it cannot be opened (ENOENT: it is not there), or what it held could not be made durable.
    """
    file = open_pool_file(path)
    try:
        if media == "pmem":
            mapping = map_pool(file)
            if mapping is not None:
                return PmemMedium(file, mapping, completions)
            log.info("%s is not used as persistent memory: durable by fdatasync", path)
        return SsdMedium(file, completions, file_sync)
    except BaseException:
        file.release()
        raise
