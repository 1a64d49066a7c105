"""What the kernel keeps of an image: never anything that is not true any more, and what is true as long as it may."""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Iterator

import pytest

from tests.support.callers import in_thread
from tests.support.mounts import PATIENCE, Mount, Place, wait_until

SIZE = 1 << 20
PAGE = mmap.PAGESIZE


@pytest.fixture
def mount(place: Place, mounted: Callable[..., Mount]) -> Mount:
    """A mount of one image."""
    place.image("disk", b"." * SIZE)
    return mounted()


@pytest.fixture
def buffered(mount: Mount) -> Iterator[int]:
    """The image open through the page cache."""
    fd = os.open(mount.path / "disk", os.O_RDWR)
    yield fd
    os.close(fd)


@pytest.fixture
def direct(mount: Mount) -> Iterator[int]:
    """The image open past the page cache."""
    fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
    yield fd
    os.close(fd)


@pytest.fixture
def page() -> Iterator[mmap.mmap]:
    """A page of memory as O_DIRECT wants it."""
    with mmap.mmap(-1, PAGE) as memory:
        yield memory


def misses(mount: Mount, name: str = "disk") -> int:
    """Return how many reads of an image reached its layer."""
    (image,) = [image for image in mount.status()["images"] if image["name"] == name]
    return int(image["layers"][0]["misses"])


def is_open(mount: Mount, name: str = "disk") -> bool:
    (image,) = [image for image in mount.status()["images"] if image["name"] == name]
    return bool(image["open"])


def test_direct_and_buffered_openers_see_each_others_writes_at_once(
    buffered: int, direct: int, page: mmap.mmap
) -> None:
    for number in range(100):
        offset = number % 7 * PAGE
        os.pread(buffered, 10 * PAGE, 0)
        page[:] = bytes([number]) * PAGE
        assert os.pwrite(direct, page, offset) == PAGE
        assert os.pread(buffered, PAGE, offset) == page[:]
        assert os.pwrite(buffered, b"buffered", offset + 5) == 8
        assert os.preadv(direct, [page], offset) == PAGE
        assert page[:15] == bytes([number]) * 5 + b"buffered" + bytes([number]) * 2


def test_a_direct_write_need_not_be_aligned(buffered: int, direct: int) -> None:
    assert os.pread(buffered, SIZE, 0) == b"." * SIZE
    assert os.pwrite(direct, b"odd", 4095) == 3
    assert os.pread(buffered, 5, 4094) == b".odd."
    assert os.pread(direct, 5, 4094) == b".odd."


@pytest.mark.parametrize("opener", ["buffered", "direct"])
def test_a_shared_mapping_and_all_openers_see_each_other_at_once(
    buffered: int, direct: int, page: mmap.mmap, opener: str
) -> None:
    with mmap.mmap(buffered if opener == "buffered" else direct, SIZE, mmap.MAP_SHARED) as mapping:
        for number in range(20):
            offset = number % 3 * PAGE
            mapping[offset : offset + 6] = b"mapped"
            assert os.pread(buffered, 7, offset) == b"mapped" + mapping[offset + 6 : offset + 7]
            assert os.preadv(direct, [page], offset) == PAGE
            assert page[:6] == b"mapped"
            page[:] = bytes([number]) * PAGE
            assert os.pwrite(direct, page, offset) == PAGE
            assert mapping[offset : offset + PAGE] == page[:]
            assert os.pwrite(buffered, b"buffered", offset + 100) == 8
            assert mapping[offset + 99 : offset + 109] == page[:1] + b"buffered" + page[:1]


@pytest.mark.parametrize("flags", [0, os.O_DIRECT])
def test_what_was_written_to_a_mapping_is_in_the_backend_after_msync(mount: Mount, place: Place, flags: int) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR | flags)
    with mmap.mmap(fd, SIZE, mmap.MAP_SHARED) as mapping:
        os.close(fd)
        mapping[5000:5006] = b"mapped"
        mapping.flush()
        assert (place.images / "disk").read_bytes()[4999:5007] == b".mapped."
        mapping[9000:9005] = b"later"
    assert (mount.path / "disk").read_bytes()[8999:9006] == b".later."


def test_the_kernel_keeps_pages_while_the_image_is_not_released(mount: Mount) -> None:
    disk = mount.path / "disk"
    assert disk.read_bytes() == b"." * SIZE
    asked = misses(mount)
    assert asked > 0
    for _ in range(5):
        assert disk.read_bytes() == b"." * SIZE
    assert misses(mount) == asked


def test_a_write_keeps_the_pages_true(mount: Mount) -> None:
    disk = mount.path / "disk"
    disk.read_bytes()
    with disk.open("r+b", buffering=0) as file:
        file.write(b"fresh")
    asked = misses(mount)
    assert disk.read_bytes() == b"fresh" + b"." * (SIZE - 5)
    assert misses(mount) == asked


def test_what_another_process_did_between_release_and_open_is_seen(place: Place, mounted: Callable[..., Mount]) -> None:
    below = place.image("disk", b"." * SIZE)
    mount = mounted(release_after="0s")
    disk = mount.path / "disk"
    for content in (b"a" * SIZE, b"b" * (SIZE + 100), b"c" * 100):
        disk.read_bytes()
        wait_until(lambda: not is_open(mount), "the image is released")
        below.write_bytes(content)
        assert disk.read_bytes() == content
        assert disk.stat().st_size == len(content)


def test_an_image_is_released_after_the_last_close_and_can_then_be_locked(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    below = place.image("disk", b"." * SIZE)
    mount = mounted(release_after="100ms")

    def lockable() -> bool:
        return not os.spawnlp(os.P_WAIT, "flock", "flock", "--nonblock", str(below), "true")

    with (mount.path / "disk").open("rb") as first:
        with (mount.path / "disk").open("rb") as second:
            second.read(10)
        assert first.read(10) == b"." * 10
        assert not lockable()
    wait_until(lockable, "the lock is given up")


def test_an_image_that_somebody_else_has_locked_is_ebusy(place: Place, mounted: Callable[..., Mount]) -> None:
    below = place.image("disk", b"." * SIZE)
    place.image("other", b"other")
    mount = mounted()
    fd = os.open(below, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="busy") as caught:
            (mount.path / "disk").open("rb")
        assert caught.value.errno == errno.EBUSY
        assert (mount.path / "disk").stat().st_size == SIZE
        assert (mount.path / "other").read_bytes() == b"other"
    finally:
        os.close(fd)
    assert (mount.path / "disk").read_bytes() == b"." * SIZE


def test_a_file_that_is_shrunk_under_a_mapping_faults_and_nothing_hangs(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    place.image("disk", b"." * SIZE)
    disk = mounted(resize=True).path / "disk"
    fd = os.open(disk, os.O_RDWR)
    with mmap.mmap(fd, SIZE, mmap.MAP_SHARED) as mapping:
        assert mapping[SIZE - 1 :] == b"."
        in_thread(os.ftruncate, fd, PAGE).result(PATIENCE)
        assert mapping[:PAGE] == b"." * PAGE
        os.ftruncate(fd, SIZE)
        assert mapping[PAGE:] == bytes(SIZE - PAGE)
    os.close(fd)


def test_many_openers_write_one_file_at_once(mount: Mount, place: Place) -> None:
    count, each = 16, 64

    def write(writer: int) -> None:
        fd = os.open(mount.path / "disk", os.O_RDWR | (os.O_DIRECT if writer % 2 else 0))
        try:
            with mmap.mmap(-1, 512) as block:
                block[:] = bytes([writer + 1]) * 512
                for number in range(each):
                    assert os.pwrite(fd, block, (number * count + writer) * 512) == 512
        finally:
            os.close(fd)

    writers = [in_thread(write, writer) for writer in range(count)]
    for writer in writers:
        writer.result(PATIENCE)
    expected = b"".join(bytes([writer + 1]) * 512 for writer in range(count)) * each
    assert (mount.path / "disk").read_bytes()[: len(expected)] == expected
    assert (place.images / "disk").read_bytes()[: len(expected)] == expected
