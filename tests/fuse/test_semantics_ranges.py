"""Ranges of an image: holes, zeroes, data; and what ``stat`` says of them."""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mounts import Mount, Place

MIB = 1 << 20
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT, UNSHARE = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """Return the errno, 0 for success."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long
    return 0 if libc.fallocate(fd, mode, offset, length) == 0 else ctypes.get_errno()


@pytest.fixture
def below(place: Place) -> Path:
    """An image full of data, of an odd size, in the backend directory."""
    return place.image("disk", b"d" * (4 * MIB + 1))


@pytest.fixture
def disk(below: Path, mounted: Callable[..., Mount]) -> Path:
    """The same, mounted."""
    return mounted().path / "disk"


@pytest.fixture
def fd(disk: Path) -> Iterator[int]:
    """The same, open for reading and writing."""
    fd = os.open(disk, os.O_RDWR)
    yield fd
    os.close(fd)


def test_punching_a_hole_reads_as_zeroes_and_frees_the_space(fd: int, below: Path) -> None:
    blocks = below.stat().st_blocks
    assert fallocate(fd, PUNCH_HOLE | KEEP_SIZE, MIB, MIB) == 0
    assert os.pread(fd, 3 * MIB, 0) == b"d" * MIB + bytes(MIB) + b"d" * MIB
    assert blocks - below.stat().st_blocks == MIB // 512
    assert os.fstat(fd).st_blocks == below.stat().st_blocks
    assert os.fstat(fd).st_size == 4 * MIB + 1


def test_zeroing_a_range_reads_as_zeroes_and_keeps_the_space(fd: int, below: Path) -> None:
    blocks = below.stat().st_blocks
    for mode in (ZERO, ZERO | KEEP_SIZE):
        assert os.pwrite(fd, b"x" * MIB, MIB) == MIB
        assert fallocate(fd, mode, MIB, MIB) == 0
        assert os.pread(fd, 3 * MIB, 0) == b"d" * MIB + bytes(MIB) + b"d" * MIB
    assert below.stat().st_blocks == blocks


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO | KEEP_SIZE])
def test_ranges_of_any_alignment_are_cleared_to_the_byte(fd: int, below: Path, mode: int) -> None:
    expected = bytearray(below.read_bytes())
    for offset, length in ((1, 1), (511, 4098), (4096, 4097), (2 * MIB - 1, MIB), (4 * MIB - 5, 6)):
        assert fallocate(fd, mode, offset, length) == 0
        expected[offset : offset + length] = bytes(length)
        assert os.pread(fd, 5 * MIB, 0) == expected
    assert below.read_bytes() == expected


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO | KEEP_SIZE])
def test_clearing_across_or_past_the_end_clears_what_is_there(fd: int, mode: int) -> None:
    assert fallocate(fd, mode, 4 * MIB, 8 * MIB) == 0
    assert fallocate(fd, mode, 6 * MIB, MIB) == 0
    assert os.fstat(fd).st_size == 4 * MIB + 1
    assert os.pread(fd, 10, 4 * MIB - 1) == b"d\0"


def test_zeroing_does_not_grow_the_image(fd: int) -> None:
    assert fallocate(fd, ZERO, 4 * MIB, MIB) in (errno.EPERM, errno.EOPNOTSUPP)
    assert os.fstat(fd).st_size == 4 * MIB + 1
    assert os.pread(fd, 10, 4 * MIB - 1) == b"dd"


def test_allocating_inside_the_image_succeeds_and_changes_no_data(fd: int, below: Path) -> None:
    for mode in (0, KEEP_SIZE):
        assert fallocate(fd, mode, MIB, MIB) == 0
    assert fallocate(fd, KEEP_SIZE, 3 * MIB, 3 * MIB) == 0
    assert below.read_bytes() == b"d" * (4 * MIB + 1)


def test_other_modes_are_refused_and_change_nothing(fd: int, below: Path) -> None:
    for mode in (PUNCH_HOLE, COLLAPSE, INSERT, UNSHARE, UNSHARE | KEEP_SIZE, PUNCH_HOLE | ZERO | KEEP_SIZE):
        assert fallocate(fd, mode, MIB, MIB) in (errno.EOPNOTSUPP, errno.EINVAL), hex(mode)
    assert below.read_bytes() == b"d" * (4 * MIB + 1)


def test_a_cleared_range_is_seen_through_pages_that_were_cached(fd: int, disk: Path) -> None:
    with disk.open("rb", buffering=0) as other:
        assert other.read(3 * MIB) == b"d" * (3 * MIB)
        assert fallocate(fd, PUNCH_HOLE | KEEP_SIZE, MIB, 4096) == 0
        assert os.pread(other.fileno(), 4098, MIB - 1) == b"d" + bytes(4096) + b"d"


def test_a_reader_may_not_clear(disk: Path) -> None:
    fd = os.open(disk, os.O_RDONLY)
    try:
        assert fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096) == errno.EBADF
    finally:
        os.close(fd)


def test_seek_finds_holes_and_data(place: Place, mounted: Callable[..., Mount]) -> None:
    below = place.image("disk", size=16 * MIB)
    with below.open("r+b") as file:
        for offset in (2 * MIB, 10 * MIB):
            file.seek(offset)
            file.write(b"d" * MIB)
    with (mounted().path / "disk").open("rb", buffering=0) as file:
        fd = file.fileno()
        half = MIB // 2
        for offset, hole, data in [(0, 0, 4), (5, 6, 5), (6, 6, 20), (20, 22, 20), (10, 10, 20)]:
            assert os.lseek(fd, offset * half, os.SEEK_HOLE) == hole * half
            assert os.lseek(fd, offset * half, os.SEEK_DATA) == data * half
        assert os.lseek(fd, 11 * MIB, os.SEEK_HOLE) == 11 * MIB
        for whence, offset in [(os.SEEK_DATA, 11 * MIB), (os.SEEK_DATA, 16 * MIB), (os.SEEK_HOLE, 16 * MIB)]:
            with pytest.raises(OSError, match="No such device or address") as caught:
                os.lseek(fd, offset, whence)
            assert caught.value.errno == errno.ENXIO


def test_seek_to_the_end_of_full_data_is_the_end(fd: int) -> None:
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 4 * MIB + 1
    assert os.lseek(fd, 4 * MIB, os.SEEK_DATA) == 4 * MIB
    assert os.lseek(fd, 0, os.SEEK_END) == 4 * MIB + 1


def test_seek_sees_what_was_written_and_punched_at_once(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", size=8 * MIB)
    with (mounted().path / "disk").open("r+b", buffering=0) as file:
        fd = file.fileno()
        os.pwrite(fd, b"d" * MIB, 4 * MIB)
        assert os.lseek(fd, 0, os.SEEK_DATA) == 4 * MIB
        assert fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 4 * MIB, MIB // 2) == 0
        assert os.lseek(fd, 0, os.SEEK_DATA) == 4 * MIB + MIB // 2


def test_blocks_are_what_is_allocated(place: Place, mounted: Callable[..., Mount]) -> None:
    below = place.image("disk", size=1 << 30)
    disk = mounted().path / "disk"
    assert disk.stat().st_blocks == below.stat().st_blocks < 100
    with disk.open("r+b", buffering=0) as file:
        file.write(b"d" * MIB)
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_blocks == below.stat().st_blocks >= MIB // 512


def test_mtime_moves_with_writes_and_only_with_them(fd: int, disk: Path, below: Path) -> None:
    os.utime(below, ns=(0, 10**18))
    changes: list[Callable[[], object]] = [
        lambda: os.pwrite(fd, b"x", 5),
        lambda: fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096),
        lambda: fallocate(fd, ZERO, 0, 4096),
    ]
    for change in changes:
        before = os.fstat(fd).st_mtime_ns
        os.pread(fd, 100, 0)
        os.fsync(fd)
        assert os.fstat(fd).st_mtime_ns == before
        change()
        assert os.fstat(fd).st_mtime_ns > before


def test_the_mtime_of_an_image_nobody_opened_is_the_backends(place: Place, mounted: Callable[..., Mount]) -> None:
    os.utime(place.image("disk"), ns=(0, 1234567890123456789))
    assert (mounted().path / "disk").stat().st_mtime_ns == 1234567890123456789


def test_statfs_answers(disk: Path) -> None:
    found = os.statvfs(disk)
    assert found.f_bsize == 4096
    assert found.f_namemax == 255
