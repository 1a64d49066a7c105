"""How a mount ends: without losing what was acknowledged, without hanging, and without leaving anything behind."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fusecache.fuse.mounting import is_stale
from tests.support.callers import GONE, in_thread, outcome, shell
from tests.support.mounts import GATE, PATIENCE, Mount, Place, fusecache, wait_until

WITHIN = 10.0
"""Seconds in which a daemon ends after a signal."""

BLOCK = 4096


@pytest.fixture
def mount(place: Place, mounted: Callable[..., Mount]) -> Mount:
    """A mount of one image."""
    place.image("disk", size=1 << 20)
    return mounted()


class Writer:
    """Overwrites a file with numbered blocks until writing fails, and knows which number each block was acknowledged
    with."""

    def __init__(self, path: Path, *, sync: bool = False) -> None:
        self.acknowledged: dict[int, int] = {}
        self._sync = sync
        self._last = 0
        self._fd = os.open(path, os.O_RDWR)
        self._blocks = os.fstat(self._fd).st_size // BLOCK
        self._ended = in_thread(self._run)

    def _run(self) -> None:
        try:
            for number in range(1, 1 << 40):
                block = number * 7919 % self._blocks
                os.pwrite(self._fd, number.to_bytes(8, "little") * (BLOCK // 8), block * BLOCK)
                if self._sync:
                    os.fsync(self._fd)
                self.acknowledged[block] = self._last = number
        except OSError:
            pass

    def wait_until_under_way(self, writes: int = 500) -> None:
        """Wait for that many acknowledged writes."""
        wait_until(lambda: self._last >= writes, f"{writes} writes")

    def end(self) -> None:
        """Wait until writing has failed."""
        self._ended.result(PATIENCE)
        # Fails where the mount is gone.
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def check(self, path: Path) -> None:
        """Everything acknowledged is in the backend's file, or was overwritten later by a write that nobody
        acknowledged."""
        content = path.read_bytes()
        assert self.acknowledged
        for block, number in self.acknowledged.items():
            found = content[block * BLOCK : (block + 1) * BLOCK]
            first = int.from_bytes(found[:8], "little")
            assert found == found[:8] * (BLOCK // 8), "no block is torn"
            assert first >= number, f"block {block} holds write {first}, and {number} was acknowledged"


def ends_in_time(end: Callable[[], int]) -> int:
    begin = time.monotonic()
    status = end()
    assert time.monotonic() - begin < WITHIN
    return status


def test_unmount_with_an_open_file_is_refused_and_the_mount_stays(mount: Mount) -> None:
    with (mount.path / "disk").open("r+b", buffering=0) as file:
        result = fusecache("unmount", mount.path)
        assert result.returncode == 1
        assert "still mounted" in result.stderr
        assert file.write(b"goes on") == 7
        os.fsync(file.fileno())
    assert (mount.path / "disk").read_bytes()[:7] == b"goes on"
    mount.unmount()
    assert not mount.path.is_mount()


def test_unmount_from_inside_is_refused(mount: Mount) -> None:
    result = fusecache("unmount", ".", cwd=mount.path)
    assert (result.returncode, mount.path.is_mount()) == (1, True)


def test_a_link_to_the_mountpoint_is_as_good_as_the_mountpoint(mount: Mount, place: Place) -> None:
    (link := place.root / "link").symlink_to(mount.path)
    for command in (["status"], ["flush"], ["discard", "--layer", "0"], ["events"]):
        image = ["disk"] if command[0] in ("flush", "discard") else []
        result = fusecache(command[0], link, *image, *command[1:])
        assert result.returncode == 0, result.stderr
    result = fusecache("unmount", link)
    assert result.returncode == 0, result.stderr
    assert mount.wait() == 0
    assert not mount.path.is_mount()
    assert fusecache("mount", place.config, link).returncode == 0
    os.kill(mount.status()["pid"], signal.SIGKILL)
    wait_until(lambda: is_stale(link), "the daemon is gone")
    assert "daemon was gone" in fusecache("unmount", link).stderr
    assert not mount.path.is_mount()


def test_unmount_returns_when_the_daemon_is_gone(mount: Mount, place: Place) -> None:
    (mount.path / "disk").write_bytes(b"written")
    assert fusecache("unmount", mount.path).returncode == 0
    assert mount.process.poll() == 0
    assert not mount.path.is_mount()
    assert not list((place.state / "mounts").glob("*.json"))
    assert (place.images / "disk").read_bytes()[:7] == b"written"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_mount(mount: Mount, place: Place, number: int) -> None:
    assert ends_in_time(lambda: mount.terminate(number)) == 0
    assert not mount.path.is_mount()
    assert not list((place.state / "mounts").glob("*.json"))
    assert "Traceback" not in mount.log.read_text()


def test_plain_umount_ends_the_daemon_well(mount: Mount, place: Place) -> None:
    (mount.path / "disk").write_bytes(b"written")
    assert shell("umount mnt", place.root).returncode == 0
    assert mount.wait() == 0
    assert (place.images / "disk").read_bytes()[:7] == b"written"
    assert "Traceback" not in mount.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_loses_nothing_that_was_acknowledged(mount: Mount, place: Place, number: int) -> None:
    writer = Writer(mount.path / "disk")
    writer.wait_until_under_way()
    assert ends_in_time(lambda: mount.terminate(number)) == 0
    assert not mount.path.is_mount()
    writer.end()
    writer.check(place.images / "disk")
    assert "Traceback" not in mount.log.read_text()


def test_a_signal_with_an_open_file_detaches_the_mount(mount: Mount, place: Place) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR)
    os.write(fd, b"written")
    assert ends_in_time(mount.terminate) == 0
    assert not mount.path.is_mount()
    with pytest.raises(OSError, match=GONE):
        os.pwrite(fd, b"x", 0)
    with pytest.raises(OSError, match=GONE):
        os.close(fd)
    assert (place.images / "disk").read_bytes()[:7] == b"written"


def test_a_signal_with_somebodys_working_directory_inside_detaches_the_mount(mount: Mount) -> None:
    # It ends with its input.
    with subprocess.Popen(["cat"], cwd=mount.path, stdin=subprocess.PIPE):
        assert "busy" in shell(f"umount {mount.path}", Path("/")).stderr
        assert ends_in_time(mount.terminate) == 0
        assert not mount.path.is_mount()


def test_a_signal_while_everything_is_frozen_ends_it_nevertheless(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", b"." * 65536)
    place.layers = [GATE]
    mount = mounted()
    mount.close_gate()
    fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
    waiting = [in_thread(outcome, os.pwrite, fd, b"w" * BLOCK, 0), in_thread(outcome, os.pread, fd, BLOCK, BLOCK)]
    command = in_thread(shell, "echo all > .control/flush", mount.path)
    wait_until(lambda: mount.waiting_at_gate() == 3, "requests wait")
    assert ends_in_time(mount.terminate) == 0
    assert not mount.path.is_mount()
    assert all(future.result(PATIENCE) for future in waiting)
    assert command.result(PATIENCE).returncode == 1
    with pytest.raises(OSError, match=GONE):
        os.close(fd)


def test_a_second_signal_changes_nothing(mount: Mount) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        mount.process.send_signal(number)
    assert ends_in_time(mount.wait) == 0
    with pytest.raises(OSError, match=GONE):
        os.close(fd)


def test_unmount_under_load_is_refused_until_the_writer_is_gone(mount: Mount, place: Place) -> None:
    writer = Writer(mount.path / "disk", sync=True)
    writer.wait_until_under_way()
    assert fusecache("unmount", mount.path).returncode == 1
    assert fusecache("unmount", "--keep", mount.path).returncode == 1
    assert mount.path.is_mount()
    mount.terminate()
    writer.end()
    writer.check(place.images / "disk")


def test_mounting_and_unmounting_again_and_again_leaves_nothing_behind(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    place.image("disk", size=4096)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(5):
        mount = mounted()
        (mount.path / "disk").write_bytes(str(number).encode())
        mount.unmount()
    assert not place.mountpoint.is_mount()
    assert not list((place.state / "mounts").glob("*.json"))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1
    assert (place.images / "disk").read_bytes()[:1] == b"4"
