"""Locks between processes, of every kind that qemu and other users of disks take."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.callers import Caller
from tests.support.mounts import Mount, Place

# struct flock; open file description locks are taken by two commands that Python's fcntl does not name before 3.13.
LOCK = """
import struct
OFD_SETLK = 37
kind, path, start, exclusive = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "exclusive"
fd = os.open(path, os.O_RDWR)
try:
    if kind == "flock":
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    else:
        lock = struct.pack("hhqqixxxx", fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, os.SEEK_SET, start, 1, 0)
        fcntl.fcntl(fd, fcntl.F_SETLK if kind == "fcntl" else OFD_SETLK, lock)
except OSError as error:
    say(errno.errorcode[error.errno])
else:
    say("locked")
sys.stdin.readline()
"""


def outcome(kind: str, path: Path, start: int, *, exclusive: bool) -> object:
    with Caller(LOCK, kind, path, start, "exclusive" if exclusive else "shared") as caller:
        return caller.answer()


@pytest.mark.parametrize("kind", ["flock", "fcntl", "ofd"])
def test_a_lock_keeps_other_processes_out_until_its_holder_is_gone(
    place: Place, mounted: Callable[..., Mount], kind: str
) -> None:
    place.image("disk", size=4096)
    disk = mounted().path / "disk"
    with Caller(LOCK, kind, disk, 100, "exclusive") as holder:
        assert holder.answer() == "locked"
        assert outcome(kind, disk, 100, exclusive=True) == "EAGAIN"
        assert outcome(kind, disk, 100, exclusive=False) == "EAGAIN"
        if kind != "flock":
            assert outcome(kind, disk, 101, exclusive=True) == "locked"
    assert outcome(kind, disk, 100, exclusive=True) == "locked"


@pytest.mark.parametrize("kind", ["flock", "fcntl", "ofd"])
def test_shared_locks_go_together(place: Place, mounted: Callable[..., Mount], kind: str) -> None:
    place.image("disk", size=4096)
    disk = mounted().path / "disk"
    with Caller(LOCK, kind, disk, 100, "shared") as holder:
        assert holder.answer() == "locked"
        assert outcome(kind, disk, 100, exclusive=False) == "locked"
        assert outcome(kind, disk, 100, exclusive=True) == "EAGAIN"


def test_locks_do_not_reach_the_backends_file(place: Place, mounted: Callable[..., Mount]) -> None:
    below = place.image("disk", size=4096)
    disk = mounted().path / "disk"
    with disk.open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fd = os.open(below, os.O_RDWR)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(fd)
