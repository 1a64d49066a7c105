"""Writing a superblock.

Owns where it goes, and when it counts as written. It must not know what it says.
"""

from collections.abc import Callable

from fusecache_rwl.failures import LogFailed
from fusecache_rwl.medium import Medium
from fusecache_rwl.superblock import Superblock, encode, place
from fusecache_rwl.waits import Waits


async def write_superblock(medium: Medium, superblock: Superblock, waits: Waits) -> None:
    """Write a superblock at its place and return when it is durable. Not to be cancelled.

    Raises:
        LogFailed: the medium failed.
        VolumeClosed: see :class:`Waits`.
    """

    def write(done: Callable[[BaseException | None], None]) -> bool:
        medium.write_superblock(encode(superblock), place(superblock.sequence), done)
        return False

    try:
        await waits.told(write, firm=True)
    except OSError as error:
        raise LogFailed(f"the pool's superblock could not be written: {error}") from error
