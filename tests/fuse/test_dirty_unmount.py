"""The end of a mount with dirty data: written back where somebody asks for it, kept in all other cases."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.callers import GONE, in_thread, shell
from tests.support.dirty import (
    NEW,
    OLD,
    fail_below,
    is_written_back,
    kept_place,
    make_dirty,
    pool,
    stick,
    unstick,
    wait_until_stuck,
)
from tests.support.mounts import PATIENCE, Mount, Place, environment, fusecache, wait_until


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return kept_place(tmp_path)


def reads_as_written(mount: Mount) -> bool:
    return (mount.path / "disk").read_bytes() == NEW + OLD[len(NEW) :]


@pytest.mark.parametrize("options", [[], ["--drain"]], ids=["default", "drain"])
def test_unmount_writes_everything_back(place: Place, mounted: Callable[..., Mount], options: list[str]) -> None:
    mount = mounted()
    make_dirty(mount)
    result = fusecache("unmount", *options, mount.path)
    assert (result.returncode, mount.wait()) == (0, 0)
    assert is_written_back(place)
    assert pool(place).stat().st_size == 0
    # Nothing says dirty any more: the image opens without its pool.
    pool(place).unlink()
    assert reads_as_written(mounted())


def test_unmount_writes_back_what_an_earlier_mount_left_dirty(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted()
    make_dirty(mount)
    assert fusecache("unmount", "--keep", mount.path).returncode == 0
    assert mount.wait() == 0
    mounted().unmount()
    assert is_written_back(place)


def test_an_unmount_that_cannot_write_back_says_why_and_the_mount_stays(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    mount = mounted()
    make_dirty(mount)
    fail_below(place, errno.EIO)
    result = fusecache("unmount", mount.path)
    assert result.returncode == 1
    assert os.strerror(errno.EIO) in result.stderr
    assert mount.path.is_mount()
    assert reads_as_written(mount)
    fail_below(place, None)
    mount.unmount()
    assert is_written_back(place)


def test_unmount_shows_how_far_it_has_come(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted()
    make_dirty(mount)
    stick(place)
    shown = place.root / "shown"
    command = [sys.executable, "-m", "fusecache", "unmount", str(mount.path)]
    with shown.open("wb") as stderr, subprocess.Popen(command, stderr=stderr, env=environment()) as unmount:
        # Without a terminal a line appears every five seconds.
        wait_until(lambda: " left, " in shown.read_text(), "progress is shown")
        unstick(place)
        assert unmount.wait(PATIENCE) == 0
    assert shown.read_text().startswith(f"writing back {mount.path}: ")


def keep(mount: Mount) -> None:
    assert fusecache("unmount", "--keep", mount.path).returncode == 0


ENDINGS: list[Callable[[Mount], object]] = [
    keep,
    lambda mount: mount.process.send_signal(signal.SIGTERM),
    lambda mount: mount.process.send_signal(signal.SIGINT),
    lambda mount: shell("umount mnt", mount.place.root),
]


@pytest.mark.parametrize("end", ENDINGS, ids=["keep", "SIGTERM", "SIGINT", "umount"])
def test_every_other_end_keeps_dirty_data_for_the_next_mount(
    place: Place, mounted: Callable[..., Mount], end: Callable[[Mount], object]
) -> None:
    mount = mounted()
    make_dirty(mount)
    end(mount)
    assert mount.wait() == 0
    assert (place.images / "disk").read_bytes() == OLD
    assert "Traceback" not in mount.log.read_text()
    again = mounted()
    assert [image["state"] for image in again.status()["images"]] == ["dirty"]
    assert reads_as_written(again)
    again.unmount()
    assert is_written_back(place)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_a_write_back_that_hangs_ends_the_mount_in_time(
    place: Place, mounted: Callable[..., Mount], number: signal.Signals
) -> None:
    mount = mounted()
    make_dirty(mount)
    stick(place)
    command = in_thread(shell, "echo all > .control/images/disk/flush", mount.path)
    wait_until_stuck(mount)
    begun = time.monotonic()
    assert mount.terminate(number) == 0
    assert time.monotonic() - begun < 10
    assert command.result(PATIENCE).returncode == 1
    unstick(place)
    again = mounted()
    assert reads_as_written(again)
    again.unmount()
    assert is_written_back(place)


def test_a_signal_with_a_dirty_file_open_keeps_what_was_acknowledged(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    mount = mounted()
    fd = os.open(mount.path / "disk", os.O_RDWR)
    try:
        os.write(fd, NEW)
        os.fsync(fd)
        assert mount.terminate() == 0
    finally:
        with pytest.raises(OSError, match=GONE):
            os.close(fd)
    assert (place.images / "disk").read_bytes() == OLD
    assert reads_as_written(mounted())


def test_a_killed_daemon_leaves_dirty_data_that_the_next_mount_has(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted()
    make_dirty(mount)
    mount.kill()
    assert shell("umount -l mnt", place.root).returncode == 0
    assert reads_as_written(mounted())
