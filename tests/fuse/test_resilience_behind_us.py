"""What others do to the backend's directory while it is mounted: errors for whom it concerns, never wrong data."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.callers import in_thread, outcome, shell
from tests.support.mounts import PATIENCE, Mount, Place, fusecache, wait_until

SIZE = 1 << 20


@pytest.fixture
def below(place: Place) -> Path:
    """An image in the backend directory, beside another one."""
    place.image("other", b"." * SIZE)
    return place.image("disk", b"." * SIZE)


@pytest.fixture
def mount(below: Path, mounted: Callable[..., Mount]) -> Mount:
    """The same, mounted."""
    return mounted()


def assert_all_is_well_otherwise(mount: Mount) -> None:
    assert (mount.path / "other").read_bytes() == b"." * SIZE
    assert mount.status()["images"]
    assert shell("echo all > .control/images/other/flush", mount.path).returncode == 0


def test_an_image_removed_while_it_is_open_is_estale_to_its_openers(mount: Mount, below: Path) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
    assert os.pwrite(fd, b"w" * 4096, 0) == 4096
    below.unlink()
    assert outcome(os.fsync, fd) == errno.ESTALE
    wait_until(lambda: outcome(os.fstat, fd) == errno.ESTALE, "what the kernel knew of the image is too old")
    assert outcome(os.pread, fd, 4096, 0) in (0, errno.ESTALE)
    assert outcome(os.pwrite, fd, b"w", 0) in (0, errno.ESTALE)
    assert outcome(os.stat, mount.path / "disk") == errno.ENOENT
    assert outcome(os.open, mount.path / "disk", os.O_RDONLY) == errno.ENOENT
    os.close(fd)
    assert_all_is_well_otherwise(mount)


def test_an_image_removed_while_nobody_has_it_open_is_enoent(mount: Mount, below: Path) -> None:
    assert (mount.path / "disk").stat().st_size == SIZE
    below.unlink()
    assert outcome(os.open, mount.path / "disk", os.O_RDONLY) == errno.ENOENT
    assert sorted(path.name for path in mount.path.iterdir()) == [".control", "other"]
    assert not (mount.control / "images" / "disk").exists()
    assert_all_is_well_otherwise(mount)


def test_an_image_replaced_while_it_is_open_is_the_new_one_to_new_openers(
    mount: Mount, below: Path, place: Place
) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR)
    assert os.pread(fd, SIZE, 0) == b"." * SIZE
    inode = os.fstat(fd).st_ino
    (place.root / "fresh").write_bytes(b"fresh" * 1000)
    (place.root / "fresh").replace(below)
    assert in_thread((mount.path / "disk").read_bytes).result(PATIENCE) == b"fresh" * 1000
    assert (mount.path / "disk").stat().st_ino != inode
    assert os.pread(fd, SIZE, 0) == b"." * SIZE
    assert outcome(os.fsync, fd) == errno.ESTALE
    with (mount.path / "disk").open("r+b", buffering=0) as file:
        assert file.write(b"F") == 1
        os.fsync(file.fileno())
    os.close(fd)
    assert below.read_bytes() == b"F" + (b"fresh" * 1000)[1:]
    assert_all_is_well_otherwise(mount)


def test_an_image_replaced_while_nobody_has_it_open_is_the_new_one(mount: Mount, below: Path, place: Place) -> None:
    assert (mount.path / "disk").read_bytes() == b"." * SIZE
    (place.root / "fresh").write_bytes(b"fresh" * 1000)
    (place.root / "fresh").replace(below)
    assert (mount.path / "disk").read_bytes() == b"fresh" * 1000


def test_an_image_replaced_by_what_is_none_is_enoent(mount: Mount, below: Path) -> None:
    assert (mount.path / "disk").stat().st_size == SIZE
    below.unlink()
    below.mkdir()
    assert outcome(os.open, mount.path / "disk", os.O_RDONLY) == errno.ENOENT
    assert_all_is_well_otherwise(mount)


def test_an_image_renamed_while_it_is_open_goes_on_under_its_new_name(mount: Mount, below: Path) -> None:
    with (mount.path / "disk").open("r+b", buffering=0) as file:
        below.rename(below.with_name("moved"))
        assert file.write(b"still here") == 10
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_size == SIZE
        with (mount.path / "moved").open("rb") as other:
            assert other.read(10) == b"still here"
            assert other.fileno() != file.fileno()
        assert shell("echo all > .control/images/moved/flush", mount.path).returncode == 0
    assert below.with_name("moved").read_bytes()[:10] == b"still here"


def test_an_image_truncated_while_it_is_open_is_eio_where_it_ends_and_at_fsync(mount: Mount, below: Path) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
    os.truncate(below, 8192)
    assert outcome(os.pread, fd, 4096, 16384) == errno.EIO
    assert outcome(os.fsync, fd) == errno.EIO
    assert os.pread(fd, 4096, 4096) == b"." * 4096
    assert "image-shrank" in mount.events()
    os.close(fd)
    assert_all_is_well_otherwise(mount)


def test_an_image_truncated_under_cached_pages_is_never_wrong_data(mount: Mount, below: Path) -> None:
    with (mount.path / "disk").open("rb", buffering=0) as file:
        assert file.read(65536) == b"." * 65536
        os.truncate(below, 8192)
        for offset in range(0, SIZE, 65536):
            assert outcome(os.pread, file.fileno(), 65536, offset) in (0, errno.EIO)
            with contextlib.suppress(OSError):
                assert set(os.pread(file.fileno(), 65536, offset)) <= {ord(".")}


def test_a_size_changed_between_two_opens_is_seen(place: Place, below: Path, mounted: Callable[..., Mount]) -> None:
    mount = mounted(release_after="0s")
    assert len((mount.path / "disk").read_bytes()) == SIZE
    wait_until(lambda: not any(image["open"] for image in mount.status()["images"]), "the image is released")
    for size in (100, 2 * SIZE):
        os.truncate(below, size)
        assert len((mount.path / "disk").read_bytes()) == size
        wait_until(lambda: not any(image["open"] for image in mount.status()["images"]), "the image is released")


def test_new_images_show_at_once(mount: Mount, place: Place) -> None:
    assert not (mount.path / "new").exists()
    place.image("new", b"content")
    assert (mount.path / "new").read_bytes() == b"content"
    assert (mount.path / "new") in mount.path.iterdir()
    assert (mount.control / "images/new/flush").read_text() == "idle\n"


def test_a_removed_directory_is_an_error_and_not_an_empty_one(mount: Mount, below: Path) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
    shutil.rmtree(below.parent)
    assert outcome(os.listdir, mount.path) == errno.EIO
    assert outcome(os.open, mount.path / "other", os.O_RDONLY) == errno.EIO
    assert outcome(os.fsync, fd) in (errno.EIO, errno.ESTALE)
    status = in_thread(mount.status).result(PATIENCE)
    assert status["pid"] == mount.process.pid
    assert outcome((mount.control / "events").read_text) == 0
    assert outcome((mount.control / "status").read_text) == 0
    os.close(fd)
    assert fusecache("unmount", mount.path).returncode == 1
    assert mount.path.is_mount()
    assert mount.terminate() == 0


def test_a_directory_that_was_moved_goes_on(mount: Mount, below: Path, place: Place) -> None:
    place.images.rename(place.root / "elsewhere")
    assert (mount.path / "disk").read_bytes() == b"." * SIZE
    with (mount.path / "other").open("r+b", buffering=0) as file:
        file.write(b"w")
        os.fsync(file.fileno())
    assert (place.root / "elsewhere" / "other").read_bytes()[:2] == b"w."
