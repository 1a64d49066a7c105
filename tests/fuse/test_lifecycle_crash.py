"""kill -9 of the daemon: what was acknowledged is there, and the mount can be made again."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.test_lifecycle_ending import Writer
from tests.support.callers import Caller, shell
from tests.support.mounts import Mount, Place, fusecache


@pytest.fixture
def mount(place: Place, mounted: Callable[..., Mount]) -> Mount:
    """A mount of one image."""
    place.image("disk", size=1 << 20)
    return mounted()


def test_after_a_crash_and_umount_the_same_mount_works_again(
    mount: Mount, place: Place, mounted: Callable[..., Mount]
) -> None:
    (mount.path / "disk").write_bytes(b"before")
    mount.kill()
    with pytest.raises(OSError, match="not connected"):
        (mount.path / "disk").read_bytes()
    assert shell("umount -l mnt", place.root).returncode == 0
    again = mounted()
    assert (again.path / "disk").read_bytes()[:7] == b"before\0"
    (again.path / "disk").write_bytes(b"after")
    again.unmount()
    assert not list((place.state / "mounts").glob("*.json"))


def test_mounting_over_the_remains_of_a_crash_clears_them_away(
    mount: Mount, place: Place, mounted: Callable[..., Mount]
) -> None:
    with Caller("fd = os.open(sys.argv[1], os.O_RDWR); say('open'); sys.stdin.readline()", mount.path / "disk") as user:
        assert user.answer() == "open"
        mount.kill()
        again = mounted()
        assert (again.path / "disk").read_bytes() == bytes(1 << 20)
    again.unmount()
    assert not place.mountpoint.is_mount()


def test_unmount_clears_the_remains_of_a_crash_away(mount: Mount) -> None:
    mount.kill()
    result = fusecache("unmount", mount.path)
    assert (result.returncode, mount.path.is_mount()) == (0, False), result.stderr


def test_a_crash_under_load_loses_nothing_that_was_acknowledged(
    place: Place, mounted: Callable[..., Mount], seed: int
) -> None:
    chance = random.Random(seed)
    below = place.image("disk", size=1 << 20)
    for round_number in range(3):
        mount = mounted()
        writer = Writer(mount.path / "disk", sync=bool(round_number % 2))
        writer.wait_until_under_way(chance.randrange(100, 1000))
        mount.kill()
        writer.end()
        writer.check(below)


def test_a_waiting_caller_gets_an_error_when_the_daemon_crashes(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", size=1 << 20)
    place.layers = [{"plugin": "gate"}]
    mount = mounted()
    mount.close_gate()
    code = "fd = os.open(sys.argv[1], os.O_RDWR)\nsay('open')\nsay(errno_of(libc.write, fd, b'x' * 10, 10))"
    with Caller(code, mount.path / "disk") as caller:
        assert caller.answer() == "open"
        caller.wait_until_blocked()
        mount.kill()
        assert caller.answer() in ("ECONNABORTED", "ENOTCONN")


def test_the_image_of_a_crashed_daemon_is_not_locked(
    mount: Mount, tmp_path: Path, mounted: Callable[..., Mount]
) -> None:
    other = Place(tmp_path / "second")
    other.images.rmdir()
    other.images.symlink_to(mount.place.images)
    second = mounted(other)
    fd = os.open(mount.path / "disk", os.O_RDONLY)
    with pytest.raises(OSError, match="busy"):
        os.open(second.path / "disk", os.O_RDONLY)
    mount.kill()
    assert (second.path / "disk").read_bytes() == bytes(1 << 20)
    with pytest.raises(OSError, match="not connected"):
        os.close(fd)
