"""What every medium promises, whichever engine serves the pool file."""

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fusecache.api.errors import ImageBusy
from fusecache_rwl.format import HEADER_SIZE, RING_OFFSET, record_size
from fusecache_rwl.medium import Medium, create_pool
from fusecache_rwl.medium_base import PAGE
from fusecache_rwl.pool_file import open_pool_file
from layers.rwl.tests.support import pools

RING = 256 << 10
SIZE = RING_OFFSET + RING
SIZES = (None, 1, 63, 64, 65, 512, 4000, 4032, 4095, 4096, 4097, 8192, 20_000)
"""Data of records that end in all ways within a page; None: no data."""


@pytest.fixture(params=pools.ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def pool(engine: str) -> Iterator[Path]:
    with pools.pool_place(engine) as place:
        create_pool(place / "pool", SIZE)
        yield place / "pool"


class Writer:
    """Appends records of random bytes one after another, and knows what the ring holds."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.position = 0
        self.live: dict[int, bytes] = {}

    def append(self, medium: Medium | None, size: int | None) -> None:
        data = None if size is None else self.random.randbytes(size)
        header = self.random.randbytes(HEADER_SIZE)
        length = record_size(size or 0)
        left = RING - self.position % RING
        if length > left:
            self.store(medium, header, None, left)
        self.store(medium, header, data, length)

    def append_all(self, medium: Medium | None) -> None:
        for size in SIZES:
            self.append(medium, size)

    def store(self, medium: Medium | None, header: bytes, data: bytes | None, length: int) -> None:
        record = header + (data or b"")
        self.live[self.position] = record + bytes(-len(record) % 64)
        if medium is not None:
            medium.append(self.position, header, memoryview(data) if data is not None else None)
        self.position += length
        over = -(-self.position // PAGE) * PAGE - RING
        for old in [position for position, there in self.live.items() if position < over]:
            del self.live[old]

    async def check(self, medium: Medium) -> None:
        for position, there in self.live.items():
            assert pools.read_now(medium, position, len(there)) in {None, there}, position
            assert medium.read_blocking(position, len(there)) == there, position
            assert await pools.read(medium, position, len(there)) == there, position


async def test_records_read_back_however_they_lie_in_pages_and_round_the_ring(pool: Path, engine: str) -> None:
    writer = Writer(1)
    async with pools.opened(pool, engine) as medium:
        assert (medium.size, medium.ring_size) == (SIZE, RING)
        for number in range(200):
            writer.append(medium, writer.random.choice(SIZES))
            if number % 20 == 0:
                await writer.check(medium)
        await writer.check(medium)


async def test_another_opener_finds_everything_and_appends_behind_it(pool: Path, engine: str) -> None:
    writer = Writer(2)
    for _ in range(8):
        async with pools.opened(pool, engine) as medium:
            await writer.check(medium)
            for _ in range(3):
                writer.append(medium, writer.random.choice(SIZES))
            await writer.check(medium)


def killed_after(work: Callable[[], None]) -> None:
    """Do *work* in a process that is then killed."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os.kill(os.getpid(), 9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9


async def test_a_killed_process_leaves_what_it_appended(pool: Path, engine: str) -> None:
    writer = Writer(3)
    async with pools.opened(pool, engine) as medium:
        killed_after(lambda: writer.append_all(medium))
    writer.append_all(None)
    async with pools.opened(pool, engine) as medium:
        await writer.check(medium)


async def test_every_engine_leaves_the_same_records(engine: str) -> None:
    with pools.pool_place(engine) as place, pools.pool_place("ssd in memory") as other:
        writer = Writer(4)
        for path in (place / "pool", other / "pool"):
            create_pool(path, SIZE)
            writer = Writer(4)
            async with pools.opened(path, engine if path.parent == place else "ssd in memory") as medium:
                for number in range(100):
                    writer.append(medium, SIZES[number % len(SIZES)])
        both = (place / "pool").read_bytes(), (other / "pool").read_bytes()
        for position, there in writer.live.items():
            at = RING_OFFSET + position % RING
            assert both[0][at : at + len(there)] == both[1][at : at + len(there)] == there


async def test_superblocks_are_written_apart(pool: Path, engine: str) -> None:
    first, second = b"1" * 4096, b"2" * 4096
    async with pools.opened(pool, engine) as medium:
        assert medium.read_superblocks() == (bytes(4096), bytes(4096))
        assert await pools.ended(lambda done: medium.write_superblock(first, 0, done)) is None
        assert await pools.ended(lambda done: medium.write_superblock(second, 4096, done)) is None
        assert medium.read_superblocks() == (first, second)
        medium.append(0, b"h" * 64, None)
        assert medium.read_superblocks() == (first, second)
    async with pools.opened(pool, engine) as medium:
        assert medium.read_superblocks() == (first, second)


async def test_a_second_opener_is_refused_until_the_first_has_closed(pool: Path, engine: str) -> None:
    async with pools.opened(pool, engine):
        with pytest.raises(ImageBusy, match="open in another process"):
            open_pool_file(pool)
        with pytest.raises(ImageBusy):
            create_pool(pool, SIZE)
    async with pools.opened(pool, engine):
        pass


@contextmanager
def child_that_inherits() -> Iterator[None]:
    """Have a child that was handed every descriptor it can get."""
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    try:
        yield
    finally:
        child.communicate()


async def test_children_do_not_keep_the_lock(pool: Path, engine: str) -> None:
    with ExitStack() as stack:
        async with pools.opened(pool, engine):
            stack.enter_context(child_that_inherits())
        async with pools.opened(pool, engine):
            pass


async def test_closing_twice_is_once(pool: Path, engine: str) -> None:
    async with pools.opened(pool, engine) as medium:
        medium.append(0, b"h" * 64, b"data")
        assert await pools.synced(medium) is None
        await medium.close()
        await medium.close()
