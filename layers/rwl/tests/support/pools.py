"""Pool files on disks and in memory, opened by each engine.

Owns where tests make pools, and how they wait for what a medium does. It must not know what is tested.
"""

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from fusecache.api import Completions, Done
from fusecache.testing import ThreadFileSync
from fusecache_rwl.medium import Medium, open_medium
from fusecache_rwl.medium_pmem import PmemMedium
from fusecache_rwl.pool_file import open_pool_file

try:
    import pmdk
except ImportError:
    WITH_PMEM = False
else:
    WITH_PMEM = pmdk.available()

ENGINES = ("ssd on disk", "ssd in memory", "pmem") if WITH_PMEM else ("ssd on disk", "ssd in memory")


@contextmanager
def pool_place(engine: str) -> Iterator[Path]:
    """Make a directory for pools of one of ENGINES."""
    # Not pytest's: that may be in memory.
    with tempfile.TemporaryDirectory(dir="/var/tmp" if engine == "ssd on disk" else "/dev/shm") as path:
        yield Path(path)


@asynccontextmanager
async def delivered() -> AsyncIterator[Completions]:
    """Deliver completions until the end of the block; all must have come by then."""
    completions = Completions()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(completions.run)
        yield completions
        nursery.cancel_scope.cancel()
    assert completions.outstanding == 0
    completions.close()


@asynccontextmanager
async def opened(path: Path, engine: str) -> AsyncIterator[Medium]:
    """Open a pool with one of ENGINES, and close it."""
    async with delivered() as completions:
        if engine == "pmem":
            # Nothing of this engine but the choice of it asks whether the memory is persistent.
            file = open_pool_file(path)
            medium: Medium = PmemMedium(file, pmdk.map_file(f"/proc/self/fd/{file.fd}"), completions)
        else:
            medium = open_medium(path, "ssd", completions, ThreadFileSync(completions))
        try:
            yield medium
        finally:
            await medium.close()


async def ended(start: Callable[[Done], object]) -> BaseException | None:
    """Start what calls ``done(error)``, wait for that, and return the error."""
    over = trio.Event()
    errors: list[BaseException | None] = []

    def done(error: BaseException | None) -> None:
        errors.append(error)
        over.set()

    start(done)
    assert not over.is_set()
    await over.wait()
    assert len(errors) == 1
    return errors[0]


async def synced(medium: Medium) -> BaseException | None:
    """Wait until everything appended is durable; return the error if it will not be."""
    over = trio.Event()
    errors: list[BaseException | None] = []

    def done(error: BaseException | None) -> None:
        errors.append(error)
        over.set()

    if medium.sync(done):
        return None
    assert not over.is_set()
    await over.wait()
    return errors[0]


def read_now(medium: Medium, position: int, length: int) -> bytes | None:
    """Return a copy of what is there without waiting."""
    view = medium.read_now(position, length)
    return None if view is None else bytes(view)


async def read(medium: Medium, position: int, length: int) -> bytes:
    """Read on a thread."""
    over = trio.Event()
    outcome: list[tuple[BaseException | None, bytes]] = []

    def done(error: BaseException | None, data: bytes) -> None:
        outcome.append((error, data))
        over.set()

    medium.read(position, length, done)
    assert not over.is_set()
    await over.wait()
    error, data = outcome[0]
    if error is not None:
        raise error
    return data
