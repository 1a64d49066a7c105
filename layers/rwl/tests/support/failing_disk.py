"""A disk that cannot write any more, with a file system on it.

Owns how it is made: a loop device over a file in memory, whose blocks are taken away and whose space is used up. It
must not know what the file system is used for.
"""

import ctypes
import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

DISK_FAILED = errno.ENOSPC
"""What the kernel says of a write that failed: the backing file has no space."""

_PUNCH_HOLE_KEEP_SIZE = 3


class Disk:
    """An ext4 at *path*, on a disk that works until :meth:`fail`."""

    def __init__(self, path: Path, backing: Path, size: int) -> None:
        self.path = path
        self._size = size
        self._backing = backing
        self._filler = backing.with_name("filler")

    def fail(self) -> None:
        """Lose all that was written, and fail every write from now on."""
        fd = os.open(self._backing, os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        offset, length = ctypes.c_int64(0), ctypes.c_int64(self._size)
        assert libc.fallocate64(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) == 0
        os.close(fd)
        with self._filler.open("wb", buffering=0) as filler:
            try:
                while filler.write(bytes(4096)):
                    pass
            except OSError:
                pass

    def mend(self) -> None:
        """Let writes succeed again; what was lost stays lost."""
        self._filler.unlink()


@contextmanager
def failing_disk(size: int = 16 << 20) -> Iterator[Disk]:
    """Make a disk of *size* bytes and mount it."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        memory, path = place / "memory", place / "disk"
        memory.mkdir()
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size + (1 << 20)}", "none", memory], check=True)
        stack.callback(_unmount, memory)
        backing = memory / "backing"
        backing.touch()
        os.truncate(backing, size)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", backing], check=True)
        try:
            subprocess.run(["mount", "-o", "loop", backing, path], check=True, capture_output=True)
        except subprocess.CalledProcessError:
            pytest.skip("mounting needs loop devices")
        stack.callback(_unmount, path)
        yield Disk(path, backing, size)


def _unmount(path: Path) -> None:
    try:
        subprocess.run(["umount", path], check=True)
    except subprocess.CalledProcessError:
        # Still open somewhere: the test fails, and leaves no name behind all the same.
        subprocess.run(["umount", "--lazy", path], check=True)
        raise
