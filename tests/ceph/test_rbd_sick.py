"""A cluster that is away, slow or full: data waits for it, names give up in time, and the mount stays in command."""

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.test_lifecycle_ending import Writer, ends_in_time
from tests.support.callers import Caller, in_thread, outcome
from tests.support.ceph import Cluster
from tests.support.mounts import PATIENCE, Mount, Place, fusecache, wait_until
from tests.support.rbd_mounts import MIB, is_open, rbd_place

SIZE = 4 * MIB
TIMEOUT = 3.0
"""Of the mount, in seconds; what looks for it may take so much longer:"""
SLACK = 3.0

AT_ONCE = 1.0
"""Seconds in which what does not need the cluster is answered, and what is interrupted ends."""

READ = """
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
say("open")
sys.stdin.readline()
address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
say(errno_of(libc.pread, fd, address, 4096, ctypes.c_long(0)))
"""
STAT = "say(errno_of(libc.access, sys.argv[1].encode(), 0))"


@pytest.fixture
def place(tmp_path: Path, private_cluster: Cluster) -> Place:
    """A config for the images ``disk`` and ``other`` of a cluster that the test may hurt."""
    for name in ("disk", "other"):
        private_cluster.rbd("create", "--size", f"{SIZE}B", name)
    return rbd_place(tmp_path / "place", private_cluster, timeout=f"{TIMEOUT:g}s")


@pytest.fixture
def mount(place: Place, mounted: Callable[..., Mount]) -> Mount:
    """The mount of them."""
    return mounted()


def timed(call: Callable[..., Any], *arguments: Any) -> float:
    """Make a call, which must not hang; return how many seconds it took."""
    begin = time.monotonic()
    in_thread(call, *arguments).result(PATIENCE)
    return time.monotonic() - begin


def is_in_command(mount: Mount) -> None:
    """Check that all is answered at once which does not need the cluster."""
    for call in (mount.status, mount.events, (mount.control / "status").read_text):
        assert timed(call) < AT_ONCE + 0.5
    assert timed(list, mount.control.iterdir()) < AT_ONCE


def test_requests_wait_for_an_osd_that_hangs_or_is_dead_and_go_on_when_it_is_back(
    private_cluster: Cluster, mount: Mount, tmp_path: Path
) -> None:
    writer = Writer(mount.path / "disk")
    writer.wait_until_under_way(200)
    wait_for_the_osd(mount, writer, lambda: private_cluster.kill("osd.0"), private_cluster.start)
    # One whose connections stay up, as that of a machine whose disks hang.
    osd = private_cluster.pid("osd.0")
    wait_for_the_osd(
        mount, writer, lambda: os.kill(osd, signal.SIGSTOP), lambda: os.kill(osd, signal.SIGCONT), looking=False
    )
    assert mount.terminate() == 0
    writer.end()
    private_cluster.rbd("export", "--no-progress", "disk", tmp_path / "exported")
    writer.check(tmp_path / "exported")


def wait_for_the_osd(
    mount: Mount, writer: Writer, away: Callable[[], None], back: Callable[[], None], *, looking: bool = True
) -> None:
    """Take the OSD away and bring it back; requests wait meanwhile, and end where they are interrupted."""
    with Caller(READ, mount.path / "disk") as reader, Caller(READ, mount.path / "disk") as other:
        assert (reader.answer(), other.answer()) == ("open", "open")
        away()
        try:
            reader.go_on()
            other.go_on()
            reader.wait_until_blocked()
            if looking:
                is_in_command(mount)
            else:
                assert timed(mount.status) < AT_ONCE + 0.5
            begin = time.monotonic()
            reader.interrupt()
            assert reader.answer() == "EINTR"
            assert time.monotonic() - begin < AT_ONCE
            before = writer._last
        finally:
            back()
        assert other.answer() == "done"
    wait_until(lambda: writer._last > before + 200, "writing goes on")


def test_names_fail_in_time_while_the_cluster_is_away_and_hold_up_nobody(
    private_cluster: Cluster, mount: Mount
) -> None:
    with (mount.path / "disk").open("r+b", buffering=0) as file:
        file.write(b"before")
        private_cluster.kill("osd.0")
        begin = time.monotonic()
        calls = [in_thread(outcome, os.stat, mount.path / f"name-{number}") for number in range(8)]
        calls += [
            in_thread(outcome, lambda: list(mount.path.iterdir())),
            in_thread(outcome, os.open, mount.path / "other", 0),
        ]
        is_in_command(mount)
        assert {call.result(PATIENCE) for call in calls} == {errno.EIO}
        assert time.monotonic() - begin < TIMEOUT + SLACK
        with Caller(STAT, mount.path / "one-more") as looker:
            looker.wait_until_blocked()
            begin = time.monotonic()
            looker.interrupt()
            assert looker.answer() == "EINTR"
            assert time.monotonic() - begin < AT_ONCE
        private_cluster.start()
        assert outcome(os.stat, mount.path / "name-1") == errno.ENOENT
        assert (mount.path / "other").read_bytes() == bytes(SIZE)
        assert file.write(b" and after") == 10


def test_a_monitor_that_is_away_stops_no_data(private_cluster: Cluster, mount: Mount) -> None:
    with (mount.path / "disk").open("r+b", buffering=0) as file:
        private_cluster.kill("mon.a")
        assert outcome(lambda: file.write(b"d" * MIB)) == 0
        os.fsync(file.fileno())
        assert (mount.path / "other").stat().st_size == SIZE
        is_in_command(mount)
        private_cluster.start()
        assert file.write(b"e" * MIB) == MIB
    assert (mount.path / "disk").read_bytes()[: 2 * MIB] == b"d" * MIB + b"e" * MIB


def test_a_cluster_that_is_away_is_not_mounted(private_cluster: Cluster, place: Place) -> None:
    private_cluster.kill("mon.a", "osd.0")
    begin = time.monotonic()
    result = fusecache("mount", place.write_config(), place.mountpoint)
    assert result.returncode == 1, result.stderr
    assert time.monotonic() - begin < TIMEOUT + 2 * SLACK
    assert not place.mountpoint.is_mount()
    private_cluster.start()
    assert fusecache("mount", place.config, place.mountpoint).returncode == 0
    assert fusecache("unmount", place.mountpoint).returncode == 0


def fill(cluster: Cluster, ratio: float) -> None:
    """Have the cluster count as full from *ratio* of its space on; return when it does, or when it no longer does."""
    for kind, share in (("nearfull", 0.8), ("backfillfull", 0.9), ("full", 1.0)):
        cluster.ceph("osd", f"set-{kind}-ratio", f"{ratio * share:.6f}")
    full = ratio < 0.01
    wait_until(lambda: ("exists,full" in cluster.ceph("osd", "dump")) == full, f"the OSD is full: {full}")


def test_a_full_cluster_stops_writes_only_and_until_there_is_space(private_cluster: Cluster, mount: Mount) -> None:
    with (mount.path / "disk").open("r+b", buffering=0) as file, (mount.path / "other").open("rb") as other:
        file.write(b"before")
        fill(private_cluster, 0.0001)
        # Until the OSD has told the client, it may still take some.
        writes = [in_thread(os.pwrite, file.fileno(), b"w" * 4096, number * 4096) for number in range(1, 100)]
        assert timed(other.read) < AT_ONCE + 0.5
        is_in_command(mount)
        assert not all(write.done() for write in writes)
        fill(private_cluster, 0.95)
        assert {write.result(PATIENCE) for write in writes} == {4096}
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 100 * 4096, 0) == b"before".ljust(4096, b"\0") + b"w" * (99 * 4096)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_mount_in_time_while_the_cluster_is_away(
    private_cluster: Cluster, mount: Mount, number: int
) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR)
    os.write(fd, b"before")
    (mount.path / "other").read_bytes()
    private_cluster.kill("osd.0", "mon.a")
    waiting = in_thread(outcome, os.pwrite, fd, b"late", 0)
    looking = in_thread(outcome, os.stat, mount.path / "name")
    assert ends_in_time(lambda: mount.terminate(number)) == 0
    assert waiting.result(PATIENCE) != 0
    assert looking.result(PATIENCE) != 0
    assert outcome(os.close, fd) in (errno.ENOTCONN, errno.ECONNABORTED)
    assert not mount.path.is_mount()


def test_unmounting_ends_in_time_while_the_cluster_is_away(private_cluster: Cluster, mount: Mount) -> None:
    (mount.path / "disk").write_bytes(b"before")
    private_cluster.kill("osd.0", "mon.a")
    begin = time.monotonic()
    result = fusecache("unmount", "--keep", mount.path)
    assert result.returncode == 0, result.stderr
    assert mount.wait() == 0
    assert time.monotonic() - begin < 10.0


def test_an_image_that_was_closed_while_the_cluster_was_away_is_opened_again_when_it_is_back(
    private_cluster: Cluster, mounted: Callable[..., Mount]
) -> None:
    mount = mounted(release_after="0s")
    with (mount.path / "disk").open("r+b", buffering=0) as file:
        file.write(b"before")
        assert is_open(mount, "disk")
        private_cluster.kill("osd.0")
    wait_until(lambda: not is_open(mount, "disk"), "the image is closed")
    private_cluster.start()
    # What was left behind keeps the lock until librbd has closed it, a moment after the cluster answers again.
    outcomes: list[int] = []

    def can_be_opened() -> bool:
        outcomes.append(outcome(_opened_and_closed, mount.path / "disk"))
        return outcomes[-1] == 0

    wait_until(can_be_opened, "the image can be opened")
    assert errno.EBUSY not in outcomes
    with (mount.path / "disk").open("r+b", buffering=0) as file:
        assert file.read(6) == b"before"
        assert os.pwrite(file.fileno(), b"after!", 0) == 6
    assert (mount.path / "disk").read_bytes()[:6] == b"after!"


def _opened_and_closed(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR))
