"""The ssd engine: whole pages, nothing read to write, and what a failing disk leaves."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from fusecache.api import Done
from fusecache.api.errors import ImageBusy
from fusecache.testing import ThreadFileSync
from fusecache_rwl import medium_ssd
from fusecache_rwl.format import HEADER_SIZE, RING_OFFSET
from fusecache_rwl.medium import create_pool, open_medium
from fusecache_rwl.medium_ssd import SsdMedium
from fusecache_rwl.pool_file import open_pool_file
from layers.rwl.tests.support import pools
from layers.rwl.tests.support.failing_disk import DISK_FAILED, failing_disk

RING = 1 << 20
SIZE = RING_OFFSET + RING
HEADER = b"H" * HEADER_SIZE


@pytest.fixture
def pool() -> Iterator[Path]:
    with pools.pool_place("ssd on disk") as place:
        create_pool(place / "pool", SIZE)
        yield place / "pool"


def forget_pages(path: Path) -> None:
    """Have the kernel drop what it holds of a file in memory."""
    fd = os.open(path, os.O_RDONLY)
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def bytes_read_from_disks() -> int:
    """Return how many bytes this process has had read from devices."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Have the kernel refuse writes behind *size*, and cut those short that cross it."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


async def test_the_rest_of_the_last_page_is_zeroes(pool: Path) -> None:
    old = b"\xff" * RING
    with pool.open("r+b") as file:
        file.seek(RING_OFFSET)
        file.write(old)
    async with pools.opened(pool, "ssd") as medium:
        medium.append(0, HEADER, b"a" * 100)
        medium.append(192, HEADER, b"b" * 5000)
        ring = bytes(medium.read_blocking(0, RING))
    expected = HEADER + b"a" * 100 + bytes(28) + HEADER + b"b" * 5000
    assert ring[:8192] == expected.ljust(8192, b"\0")
    assert ring[8192:] == old[8192:]


async def test_no_append_reads_from_the_device(pool: Path) -> None:
    async with pools.opened(pool, "ssd") as medium:
        forget_pages(pool)
        before = bytes_read_from_disks()
        for position in range(0, RING - 4160, 4160):
            medium.append(position, HEADER, b"d" * 4096)
        assert bytes_read_from_disks() == before


async def test_a_record_across_the_end_of_the_ring_is_refused(pool: Path) -> None:
    async with pools.opened(pool, "ssd") as medium:
        with pytest.raises(ValueError, match="crosses the ring's end"):
            medium.append(RING - 4096, HEADER, b"d" * 4096)
        assert os.stat(pool).st_size == SIZE  # noqa: PTH116 - does not wait


async def test_read_now_does_not_wait_for_the_device(pool: Path) -> None:
    async with pools.opened(pool, "ssd") as medium:
        medium.append(0, HEADER, b"d" * 4096)
        assert pools.read_now(medium, HEADER_SIZE, 4096) == b"d" * 4096
        forget_pages(pool)
        assert pools.read_now(medium, HEADER_SIZE, 4096) is None
        assert await pools.read(medium, HEADER_SIZE, 4096) == b"d" * 4096
        assert pools.read_now(medium, HEADER_SIZE, 4096) == b"d" * 4096


async def test_many_reads_on_threads_all_come_back(pool: Path) -> None:
    async with pools.opened(pool, "ssd") as medium:
        for number in range(100):
            medium.append(number * 4160, HEADER, bytes([number]) * 4096)
        forget_pages(pool)
        found: dict[int, bytes] = {}
        all_there = trio.Event()

        def read(number: int) -> None:
            def done(error: BaseException | None, data: bytes) -> None:
                assert error is None
                found[number] = data
                if len(found) == 100:
                    all_there.set()

            medium.read(number * 4160 + HEADER_SIZE, 4096, done)

        for number in range(100):
            read(number)
        await all_there.wait()
        assert found == {number: bytes([number]) * 4096 for number in range(100)}


async def test_a_pool_file_cut_short_is_an_error_and_not_zeroes(pool: Path) -> None:
    async with pools.opened(pool, "ssd") as medium:
        os.truncate(pool, SIZE // 2)
        assert pools.read_now(medium, RING - 4096, 4096) is None
        with pytest.raises(OSError, match="bytes and had"):
            await pools.read(medium, RING - 4096, 4096)
        with pytest.raises(OSError, match="bytes and had"):
            medium.read_blocking(RING - 4096, 4096)


@pytest.mark.parametrize("end", [RING_OFFSET + 4096, RING_OFFSET])
async def test_an_append_that_fails_harms_nothing_before_it_and_may_be_repeated(pool: Path, end: int) -> None:
    async with pools.opened(pool, "ssd") as medium:
        medium.append(0, HEADER, b"a" * 100)
        with files_end_at(end), pytest.raises(OSError, match=r"written|large") as caught:
            medium.append(192, HEADER, b"b" * 5000)
        assert caught.value.errno in {errno.EIO, errno.EFBIG}
        assert medium.read_blocking(0, 164) == HEADER + b"a" * 100
        medium.append(192, HEADER, b"c" * 5000)
        assert medium.read_blocking(0, 5256) == HEADER + b"a" * 100 + bytes(28) + HEADER + b"c" * 5000
        assert await pools.synced(medium) is None


async def test_a_superblock_that_cannot_be_written_is_told(pool: Path) -> None:
    async with pools.opened(pool, "ssd") as medium:
        with files_end_at(4096):
            error = await pools.ended(lambda done: medium.write_superblock(b"s" * 4096, 4096, done))
        assert isinstance(error, OSError)
        assert medium.read_superblocks() == (bytes(4096), bytes(4096))


async def test_after_a_failed_sync_nothing_is_stored_although_the_disk_works_again() -> None:
    with failing_disk() as disk:
        create_pool(disk.path / "pool", SIZE)
        async with pools.opened(disk.path / "pool", "ssd") as medium:
            medium.append(0, HEADER, b"a" * 4096)
            assert await pools.synced(medium) is None
            medium.append(4160, HEADER, b"b" * 4096)
            disk.fail()
            error = await pools.synced(medium)
            assert isinstance(error, OSError)
            assert error.errno == DISK_FAILED
            disk.mend()
            for _ in range(2):
                error = await pools.synced(medium)
                assert isinstance(error, OSError)
                assert error.errno == DISK_FAILED
                with pytest.raises(OSError, match="an earlier sync failed"):
                    medium.append(8320, HEADER, b"c" * 4096)
                error = await pools.ended(lambda done: medium.write_superblock(b"s" * 4096, 0, done))
                assert isinstance(error, OSError)
            assert medium.read_superblocks() == (bytes(4096), bytes(4096))


async def test_the_next_opener_sees_what_the_disk_has_and_not_what_it_failed_to_write() -> None:
    with failing_disk() as disk:
        create_pool(disk.path / "pool", SIZE)
        async with pools.opened(disk.path / "pool", "ssd") as medium:
            medium.append(0, HEADER, b"a" * 4096)
            disk.fail()
            assert await pools.synced(medium) is not None
            disk.mend()
            # The kernel shows what is nowhere but in its memory.
            assert pools.read_now(medium, 0, 64) == HEADER
        async with pools.opened(disk.path / "pool", "ssd") as medium:
            assert medium.read_blocking(0, 4160) == bytes(4160)


async def test_a_pool_whose_content_cannot_be_made_durable_does_not_open() -> None:
    with failing_disk() as disk:
        path = disk.path / "pool"
        create_pool(path, SIZE)
        with path.open("r+b") as file:
            file.seek(RING_OFFSET)
            file.write(HEADER)
        disk.fail()
        async with pools.delivered() as completions:
            with pytest.raises(OSError, match="No space") as caught:
                open_medium(path, "ssd", completions, ThreadFileSync(completions))
            assert caught.value.errno == DISK_FAILED
            disk.mend()
            await open_medium(path, "ssd", completions, ThreadFileSync(completions)).close()


async def test_closing_leaves_a_hanging_commit_behind_and_the_file_locked(
    pool: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Hanging:
        def __init__(self) -> None:
            self.under_way: list[Done] = []

        def fdatasync(self, fd: int, done: Done) -> None:
            self.under_way.append(done)

    monkeypatch.setattr(medium_ssd, "PATIENCE", 0.01)
    async with pools.delivered() as completions:
        hanging = Hanging()
        medium = SsdMedium(open_pool_file(pool), completions, hanging)
        medium.append(0, HEADER, None)
        told: list[BaseException | None] = []
        assert medium.sync(told.append) is False
        await medium.close()
        assert "left behind, waiting for the kernel: a sync of" in caplog.text
        with pytest.raises(ImageBusy):
            open_pool_file(pool)
        hanging.under_way.pop()(None)
        assert told == [None]
        open_pool_file(pool).release()
