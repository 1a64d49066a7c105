"""The end of an image: nothing lies behind it, and nothing moves it unless the configuration lets it."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.callers import shell
from tests.support.mounts import Mount, Place

KIB = 1024


@pytest.fixture
def content() -> bytes:
    """An image's bytes, of an odd size."""
    return bytes(range(251)) * 41


@pytest.fixture
def disk(place: Place, mounted: Callable[..., Mount], content: bytes) -> Path:
    """A mounted image of an odd size."""
    place.image("disk", content)
    return mounted().path / "disk"


def test_a_write_at_the_end_is_enospc(disk: Path, content: bytes) -> None:
    with disk.open("r+b", buffering=0) as file:
        for offset in (len(content), len(content) + 1, 1 << 40, (1 << 63) - 2):
            with pytest.raises(OSError, match="No space left") as caught:
                os.pwrite(file.fileno(), b"x", offset)
            assert caught.value.errno == errno.ENOSPC
    assert disk.read_bytes() == content


def test_a_write_across_the_end_is_short(disk: Path, content: bytes) -> None:
    with disk.open("r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), b"abcdefgh", len(content) - 3) == 3
    assert disk.read_bytes() == content[:-3] + b"abc"


def test_a_large_write_across_the_end_is_short(place: Place, mounted: Callable[..., Mount]) -> None:
    below = place.image("disk", size=3 << 20)
    with (mounted().path / "disk").open("r+b", buffering=0) as file:
        assert os.pwrite(file.fileno(), b"w" * (4 << 20), 1 << 20) == 2 << 20
    assert below.read_bytes() == bytes(1 << 20) + b"w" * (2 << 20)


def test_reads_at_and_over_the_end_are_short(disk: Path, content: bytes) -> None:
    with disk.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 100, len(content) - 7) == content[-7:]
        assert os.pread(file.fileno(), 100, len(content)) == b""
        assert os.pread(file.fileno(), 100, 1 << 40) == b""
        assert os.pread(file.fileno(), len(content) * 2, 0) == content


@pytest.mark.parametrize("size", [0, 1, 511, 513, 4095, 4097, (1 << 20) + 1])
def test_images_of_any_size_are_read_and_written_to_their_last_byte(
    place: Place, mounted: Callable[..., Mount], size: int
) -> None:
    below = place.image("disk", os.urandom(size))
    disk = mounted().path / "disk"
    assert disk.stat().st_size == size
    assert disk.read_bytes() == below.read_bytes()
    fresh = os.urandom(size)
    with disk.open("r+b", buffering=0) as file:
        assert file.write(fresh) == size
        os.fsync(file.fileno())
    assert below.read_bytes() == fresh


def test_an_o_direct_read_of_the_odd_tail_is_short(disk: Path, content: bytes) -> None:
    fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
    try:
        tail = len(content) // 512 * 512
        assert os.pread(fd, 4096, tail) == content[tail:]
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "command",
    [
        ": > mnt/disk",
        "true >| mnt/disk",
        "dd if=/dev/null of=mnt/disk status=none",
        "cp empty mnt/disk",
        'python3 -c \'open("mnt/disk", "w").close()\'',
    ],
)
def test_emptying_an_image_changes_nothing(disk: Path, content: bytes, place: Place, command: str) -> None:
    (place.root / "empty").touch()
    result = shell(command, place.root)
    assert result.returncode == 0, result.stderr
    assert disk.stat().st_size == len(content)
    assert disk.read_bytes() == content == (place.images / "disk").read_bytes()


@pytest.mark.parametrize(
    "command", ["cp short mnt/disk", "dd if=short of=mnt/disk status=none", "cat short > mnt/disk"]
)
def test_overwriting_an_image_changes_only_the_written_bytes(
    disk: Path, content: bytes, place: Place, command: str
) -> None:
    (place.root / "short").write_bytes(b"fresh bytes")
    result = shell(command, place.root)
    assert result.returncode == 0, result.stderr
    assert disk.read_bytes() == b"fresh bytes" + content[11:] == (place.images / "disk").read_bytes()


def test_echo_changes_byte_0_alone(disk: Path, content: bytes, place: Place) -> None:
    assert shell("echo > mnt/disk", place.root).returncode == 0
    assert disk.read_bytes() == b"\n" + content[1:]


AFTER_O_TRUNC: dict[str, Callable[[int, int], object]] = {
    "size": lambda fd, size: os.fstat(fd).st_size == size,
    "end": lambda fd, size: os.lseek(fd, 0, os.SEEK_END) == size,
    "hole": lambda fd, size: os.lseek(fd, 0, os.SEEK_HOLE) == size,
    "read": lambda fd, size: len(os.read(fd, 2 * size)) == size,
    "read of the last byte": lambda fd, size: len(os.pread(fd, 1, size - 1)) == 1,
    "write to the last byte": lambda fd, size: os.pwrite(fd, b"x", size - 1) and os.fstat(fd).st_size == size,
}


def test_the_end_is_right_at_once_after_o_trunc(disk: Path, content: bytes) -> None:
    for what, holds in AFTER_O_TRUNC.items():
        fd = os.open(disk, os.O_RDWR | os.O_TRUNC)
        try:
            assert holds(fd, len(content)), what
        finally:
            os.close(fd)


def test_o_append_writes_at_the_end_and_so_finds_no_space(disk: Path, content: bytes) -> None:
    fd = os.open(disk, os.O_WRONLY | os.O_APPEND)
    try:
        with pytest.raises(OSError, match="No space left"):
            os.write(fd, b"more")
    finally:
        os.close(fd)
    assert disk.read_bytes() == content


@pytest.mark.parametrize("size", [0, 100, 1 << 20])
def test_without_resize_truncation_is_eperm(disk: Path, content: bytes, size: int) -> None:
    with disk.open("r+b", buffering=0) as file:
        with pytest.raises(PermissionError) as caught:
            os.ftruncate(file.fileno(), size)
        assert caught.value.errno == errno.EPERM
    with pytest.raises(PermissionError) as caught:
        os.truncate(disk, size)
    assert caught.value.errno == errno.EPERM
    assert disk.stat().st_size == len(content)
    assert disk.read_bytes() == content


def test_without_resize_growing_by_fallocate_is_eperm(disk: Path, content: bytes) -> None:
    with disk.open("r+b", buffering=0) as file:
        with pytest.raises(PermissionError) as caught:
            os.posix_fallocate(file.fileno(), 0, len(content) + 1)
        assert caught.value.errno == errno.EPERM
    assert disk.stat().st_size == len(content)


@pytest.fixture
def resizable(place: Place, mounted: Callable[..., Mount], content: bytes) -> Path:
    """A mounted image that may be resized."""
    place.image("disk", content)
    return mounted(resize=True).path / "disk"


def test_with_resize_an_image_grows_and_what_is_new_is_zeroes(resizable: Path, content: bytes, place: Place) -> None:
    os.truncate(resizable, 1 << 20)
    assert resizable.stat().st_size == 1 << 20
    assert resizable.read_bytes() == content + bytes((1 << 20) - len(content))
    assert (place.images / "disk").stat().st_size == 1 << 20


def test_with_resize_an_image_shrinks_and_what_was_cut_off_is_gone(resizable: Path, content: bytes) -> None:
    with resizable.open("r+b", buffering=0) as file:
        assert file.read() == content
        os.ftruncate(file.fileno(), 5000)
        assert os.fstat(file.fileno()).st_size == 5000
        assert os.pread(file.fileno(), 10000, 0) == content[:5000]
        with pytest.raises(OSError, match="No space left"):
            os.pwrite(file.fileno(), b"x", 5000)
        os.ftruncate(file.fileno(), len(content))
        assert os.pread(file.fileno(), 20000, 0) == content[:5000] + bytes(len(content) - 5000)


def test_a_new_size_is_seen_at_once_by_other_openers(resizable: Path, content: bytes) -> None:
    direct = os.open(resizable, os.O_RDWR | os.O_DIRECT)
    try:
        with resizable.open("rb", buffering=0) as other:
            assert other.read() == content
            for size in (64 * KIB, 4096, 128 * KIB):
                os.ftruncate(direct, size)
                assert os.fstat(other.fileno()).st_size == size
                assert resizable.stat().st_size == size
                assert len(os.pread(other.fileno(), 1 << 20, 0)) == size
    finally:
        os.close(direct)


def test_with_resize_fallocate_grows(resizable: Path, content: bytes) -> None:
    with resizable.open("r+b", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, 100_000)
        assert os.fstat(file.fileno()).st_size == 100_000
        assert os.pread(file.fileno(), 200_000, 0) == content + bytes(100_000 - len(content))


def test_with_resize_writing_past_the_end_still_is_enospc(resizable: Path, content: bytes) -> None:
    with resizable.open("r+b", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        os.pwrite(file.fileno(), b"x", len(content))
    assert resizable.read_bytes() == content


def test_a_size_that_the_backend_cannot_have_fails_and_changes_nothing(resizable: Path, content: bytes) -> None:
    with pytest.raises(OSError, match=r"File too large|Invalid argument"):
        os.truncate(resizable, (1 << 63) - 1)
    assert resizable.read_bytes() == content
