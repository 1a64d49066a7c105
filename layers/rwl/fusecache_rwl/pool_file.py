"""Pool files as files: how one is made, locked and given up.

Owns names, locks and the descriptor's lifetime. It must not know what is inside.

**Making one.** The new file is filled under the pool's name with ``.new`` behind it, then renamed. It is allocated and
written once: later overwrites change no metadata that ``fdatasync`` would have to write along. A crash leaves:

=============================================  =====================================================================
after                                          what is there
=============================================  =====================================================================
a leftover of an earlier crash is removed      the old pool file, if there was one
the ``.new`` file is made, filled and synced   that, and a ``.new`` file, which the next making or opening removes
it is renamed                                  loss of power: the old pool file or the new one; otherwise the new one
the directory is synced                        the new pool file, whole: two superblocks of zeroes, and zeroes
=============================================  =====================================================================

**The lock** is ``flock(2)`` on the file's own descriptor, which no child inherits. The kernel gives it up with the last
use of the descriptor, however the process ends.
"""

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path
from typing import Final

from fusecache.api.errors import CorruptState, ImageBusy, PoolMissing
from fusecache_rwl.format import RING_OFFSET
from fusecache_rwl.medium_base import PAGE

SMALLEST: Final = RING_OFFSET + PAGE
"""Bytes of a pool file with a ring of one page."""

_ZEROES: Final = bytes(1 << 20)


class PoolFile:
    """An open, locked pool file. The descriptor is closed by the last of those who use it.

    So a thread that hangs in a call keeps its descriptor, and the lock, and never meets another file under its number.

    Attributes:
        fd: for reading and writing, through the page cache.
        path: for messages.
        size: in bytes, when it was opened.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self.fd = fd
        self.path = path
        self.size = os.fstat(fd).st_size
        self._users = 1
        self._lock = threading.Lock()

    def share(self) -> None:
        """Add a user, who calls :meth:`release` in the end. The caller is a user itself."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Use it no more. Any thread."""
        with self._lock:
            self._users -= 1
            if not self._users:
                os.close(self.fd)


def create_pool(path: Path, size: int) -> None:
    """Make the pool file *path* of *size* bytes, zeroed and durable, in place of whatever has that name. Blocks.

    The caller knows that nothing of worth is in the old one. On an error that one is left as it was, and nothing else.

    Raises:
        ValueError: *size* is below 12288.
        ImageBusy: the old file is open somewhere.
        PoolMissing: the directory of *path* does not exist, which is never made here: what is to be mounted there may
            be missing.
        OSError: ENOSPC or EDQUOT when there is no space, EFBIG when no file may be that large, with what can be done;
            or any other failure to write there.
    """
    if size < SMALLEST:
        raise ValueError(f"a pool file of {size} bytes: allowed are {SMALLEST} and more")
    if not path.parent.is_dir():
        raise PoolMissing(
            f"the directory of pool files {path.parent} does not exist, and must: make or mount it, or configure "
            "another `path`"
        )
    try:
        old = _open_locked(path)
    except FileNotFoundError:
        old = -1
    new = _new_name(path)
    try:
        # Nobody else makes it now: whoever does holds the image's lock.
        new.unlink(missing_ok=True)
        try:
            _fill(new, size)
            new.rename(path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise _explained(error, path, size) from error
    finally:
        if old >= 0:
            os.close(old)


def open_pool_file(path: Path) -> PoolFile:
    """Open and lock *path*; the caller is its first user. Removes what a crash of :func:`create_pool` left. Blocks.

    Raises:
        ImageBusy: another opener holds it.
        CorruptState: it is not a regular file, or too short for a pool.
        OSError: it cannot be opened.
    """
    fd = _open_locked(path)
    try:
        file = PoolFile(fd, path)
        if file.size < SMALLEST:
            raise CorruptState(f"{path} has {file.size} bytes, a pool file at least {SMALLEST}")
        _new_name(path).unlink(missing_ok=True)
    except BaseException:
        os.close(fd)
        raise
    return file


def _open_locked(path: Path) -> int:
    # O_NONBLOCK: opening what is not a regular file may wait.
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise CorruptState(f"{path} is not a regular file, which a pool file is")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ImageBusy(f"pool file {path} is open in another process, or twice in this one") from None
        if not os.path.samestat(found, path.stat()):
            raise ImageBusy(f"pool file {path} was replaced while it was being opened")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _fill(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # In few extents; and where space is short this tells before anything was written.
        os.posix_fallocate(fd, 0, size)
        at = 0
        while at < size:
            at += os.pwrite(fd, _ZEROES[: size - at], at)
        os.fsync(fd)
    finally:
        os.close(fd)


def _explained(error: OSError, path: Path, size: int) -> OSError:
    """Return an error that says what is asked and what to do, where it is about the size; *error* otherwise."""
    if error.errno == errno.ENOSPC:
        text = f"no space for a pool file of {size} bytes ({_available(path.parent)} are free)"
        advice = "free some, or configure a smaller `size`, or a `path` with more space"
    elif error.errno == errno.EDQUOT:
        text = f"no space for a pool file of {size} bytes in the quota of the user"
        advice = "have it raised, or configure a smaller `size`"
    elif error.errno == errno.EFBIG:
        text = f"a pool file of {size} bytes is larger than any file may be there"
        advice = "configure a smaller `size`, or a `path` on another file system, or raise the limit (`ulimit -f`)"
    else:
        return error
    return OSError(error.errno, f"{text}: {path}; {advice}")


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _available(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _new_name(path: Path) -> Path:
    # As LayerPlugin.artifacts has it: the core removes that file, too.
    return path.with_name(path.name + ".new")
