"""Whoever waits for a mount can stop waiting: Ctrl-C in every kind of wait, and what goes on then."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.callers import Caller, in_thread, shell
from tests.support.mounts import GATE, PATIENCE, Mount, Place, wait_until

WRITE = """
fd = os.open(sys.argv[1], os.O_WRONLY)
say("open")
data = sys.argv[2].encode()
say(errno_of(libc.write, fd, data, len(data)))
"""
READ = """
fd = os.open(sys.argv[1], os.O_RDONLY | (os.O_DIRECT if sys.argv[2] == "direct" else 0))
buffer = mmap.mmap(-1, 4096)
say("open")
say(errno_of(libc.read, fd, ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(buffer))), 4096))
"""
CHANGE = """
fd = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
buffer[:] = b"w" * 4096
address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
say("open")
if sys.argv[2] == "write":
    say(errno_of(libc.write, fd, address, 4096))
else:
    say(errno_of(libc.fsync, fd))
"""
OPEN = """
say("here")
say(errno_of(libc.open, sys.argv[1].encode(), os.O_RDWR))
"""
TRUNCATE = """
say("here")
say(errno_of(libc.truncate, sys.argv[1].encode(), ctypes.c_long(8192)))
"""
SEEK = """
fd = os.open(sys.argv[1], os.O_RDWR)
say("open")
libc.lseek.restype = ctypes.c_long
say(errno_of(libc.lseek, fd, ctypes.c_long(0), os.SEEK_HOLE))
"""


@pytest.fixture
def mount(place: Place, mounted: Callable[..., Mount]) -> Mount:
    """A mount of two images behind one gate."""
    place.image("disk", b"." * 65536)
    place.image("other", b"." * 4096)
    place.layers = [GATE]
    return mounted(release_after="0s", resize=True)


def status_of(mount: Mount) -> str:
    return (mount.control / "status").read_text()


def test_an_interrupted_command_is_eintr_at_once_and_goes_on(mount: Mount) -> None:
    mount.close_gate()
    with Caller(WRITE, mount.control / "images/disk/flush", "all") as caller:
        assert caller.answer() == "open"
        caller.wait_until_blocked()
        wait_until(lambda: mount.waiting_at_gate() == 1, "the flush waits")
        caller.interrupt()
        assert caller.answer() == "EINTR"
    assert mount.waiting_at_gate() == 1
    assert "flush all" in status_of(mount)
    assert "0 left" in (mount.control / "images/disk/flush").read_text()
    mount.open_gate()
    wait_until(lambda: (mount.control / "images/disk/flush").read_text() == "idle\n", "the command ends")
    assert "flush all" not in status_of(mount)
    assert (mount.control / "images/disk/last_error").read_text() == ""


def test_a_killed_writer_is_gone_at_once_and_its_command_goes_on(mount: Mount) -> None:
    mount.close_gate()
    with (mount.path / "disk").open("rb"), Caller(WRITE, mount.control / "flush", "all") as caller:
        assert caller.answer() == "open"
        caller.wait_until_blocked()
        wait_until(lambda: mount.waiting_at_gate() == 1, "the flush waits")
        caller.process.kill()
        caller.process.wait(PATIENCE)
        assert " left, " in (mount.control / "flush").read_text()
        mount.open_gate()
        wait_until(lambda: (mount.control / "flush").read_text() == "idle\n", "the command ends")


def test_a_second_writer_is_neither_blocked_by_the_first_nor_beyond_ctrl_c(mount: Mount) -> None:
    mount.close_gate()
    flush = mount.control / "images/disk/flush"
    with Caller(WRITE, flush, "all") as first, Caller(WRITE, flush, "0") as second:
        for caller in (first, second):
            assert caller.answer() == "open"
            caller.wait_until_blocked()
        result = shell(f"echo junk > {flush}", mount.path)
        assert "Invalid argument" in result.stderr
        wait_until(lambda: mount.waiting_at_gate() == 2, "both flushes wait")
        second.interrupt()
        assert second.answer() == "EINTR"
        mount.open_gate()
        assert first.answer() == "done"


def test_a_command_that_takes_longer_than_control_wait_is_einprogress_and_goes_on(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    place.image("disk", size=4096)
    place.layers = [GATE]
    mount = mounted(control_wait="0.3s")
    mount.close_gate()
    result = shell("echo all > .control/images/disk/flush", mount.path)
    assert result.returncode == 1
    assert os.strerror(errno.EINPROGRESS) in result.stderr
    assert mount.waiting_at_gate() == 1
    assert "flush all" in status_of(mount)
    mount.open_gate()
    wait_until(lambda: "flush all" not in status_of(mount), "the command ends")
    assert "command-done" in mount.events()
    assert shell("echo all > .control/images/disk/flush", mount.path).returncode == 0


@pytest.mark.parametrize("how", ["direct", "buffered"])
def test_an_interrupted_read_ends_at_once(mount: Mount, how: str) -> None:
    mount.close_gate()
    with Caller(READ, mount.path / "disk", how) as caller:
        assert caller.answer() == "open"
        caller.wait_until_blocked() if how == "direct" else None
        wait_until(lambda: mount.waiting_at_gate() >= 1, "the read waits")
        if how == "direct":
            caller.interrupt()
            assert caller.answer() == "EINTR"
        else:
            # A reader of a cached page sleeps beyond the reach of all but fatal signals, as on any file system.
            caller.process.kill()
            caller.process.wait(PATIENCE)
    mount.open_gate()
    wait_until(lambda: mount.waiting_at_gate() == 0, "the late result is dropped")
    assert (mount.path / "disk").read_bytes() == b"." * 65536


def test_cat_ends_at_ctrl_c(mount: Mount, place: Place) -> None:
    mount.close_gate()
    result = shell("timeout --signal=INT --preserve-status 0.3 cat mnt/disk", place.root)
    assert result.returncode == 130
    assert mount.waiting_at_gate() >= 1


def test_an_interrupted_seek_ends_at_once(mount: Mount) -> None:
    mount.close_gate()
    with Caller(SEEK, mount.path / "disk") as caller:
        assert caller.answer() == "open"
        caller.wait_until_blocked()
        wait_until(lambda: mount.waiting_at_gate() == 1, "the seek waits")
        caller.interrupt()
        assert caller.answer() == "EINTR"


@pytest.mark.parametrize("what", ["write", "fsync"])
def test_an_interrupted_change_completes_when_it_can(mount: Mount, place: Place, what: str) -> None:
    mount.close_gate()
    with Caller(CHANGE, mount.path / "disk", what) as caller:
        assert caller.answer() == "open"
        caller.wait_until_blocked()
        wait_until(lambda: mount.waiting_at_gate() == 1, "the change waits")
        caller.interrupt()
        # Another request shows that the interrupt, which the kernel sent before it, has been read.
        (mount.control / "status").stat()
        assert mount.waiting_at_gate() == 1
        mount.open_gate()
        assert caller.answer() == "done"
    if what == "write":
        assert (place.images / "disk").read_bytes()[:4096] == b"w" * 4096


def test_an_interrupted_truncation_ends_at_once(mount: Mount, place: Place) -> None:
    mount.close_gate()
    # A size is changed between requests, not beside them. (Behind a write the kernel itself would wait, and for good.)
    with Caller(READ, mount.path / "disk", "direct") as reader:
        assert reader.answer() == "open"
        wait_until(lambda: mount.waiting_at_gate() == 1, "the read waits")
        with Caller(TRUNCATE, mount.path / "disk") as caller:
            assert caller.answer() == "here"
            caller.wait_until_blocked()
            caller.interrupt()
            assert caller.answer() == "EINTR"
        mount.open_gate()
        assert reader.answer() == "done"
    wait_until(lambda: (place.images / "disk").stat().st_size == 8192, "the truncation is carried out")
    assert (mount.path / "disk").stat().st_size == 8192


def test_an_interrupted_open_ends_at_once_and_leaves_nothing_open(mount: Mount) -> None:
    disk = mount.path / "disk"
    with disk.open("r+b", buffering=0) as file:
        file.write(b"x")
        mount.close_gate()
    # The release flushes, and waits; whoever opens the image now waits for the release.
    wait_until(lambda: mount.waiting_at_gate() == 1, "the release waits")
    with Caller(OPEN, disk) as caller, Caller(OPEN, disk) as killed:
        assert caller.answer() == killed.answer() == "here"
        caller.wait_until_blocked()
        killed.wait_until_blocked()
        assert (mount.path / "other").stat().st_size == 4096
        caller.interrupt()
        assert caller.answer() == "EINTR"
        killed.process.kill()
        killed.process.wait(PATIENCE)
        patient = in_thread(disk.read_bytes)
        mount.open_gate()
        assert patient.result(PATIENCE)[:2] == b"x."

    def released() -> bool:
        return not any(image["open"] for image in mount.status()["images"])

    wait_until(released, "nobody has the image open")


def test_status_answers_while_everything_else_waits(mount: Mount) -> None:
    mount.close_gate()
    readers = [in_thread(Path.read_bytes, mount.path / name) for name in ("disk", "other")]
    wait_until(lambda: mount.waiting_at_gate() >= 2, "both reads wait")
    flush = in_thread(shell, "echo all > .control/flush", mount.path)
    wait_until(lambda: mount.waiting_at_gate() >= 4, "the write-back of both waits")
    status = in_thread(mount.status).result(PATIENCE)
    assert all(image["open"] for image in status["images"])
    assert "flush all" in in_thread((mount.control / "status").read_text).result(PATIENCE)
    mount.open_gate()
    assert [len(reader.result(PATIENCE)) for reader in readers] == [65536, 4096]
    assert flush.result(PATIENCE).returncode == 0
