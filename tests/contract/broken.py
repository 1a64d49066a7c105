"""How broken volumes are handed to the checks that must catch them."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fusecache.api import Volume
from fusecache.testing import MemoryVolume


@asynccontextmanager
async def opened(make: Callable[[int], MemoryVolume], size: int) -> AsyncIterator[Volume]:
    """Open a volume that *make* makes."""
    volume = make(size)
    try:
        yield volume
    finally:
        volume.close()
