"""Opening an image file under its exclusive lock.

Owns the lock, how its present owner is found, and the check that the locked file is the one its name leads to. It
must not know what is done with the file. All functions block and may run on any thread.

The lock is ``flock(2)`` on the image's own descriptor: it needs no file beside the image, and the kernel gives it up
when the owner dies, however that happens. It is also all that guards an image with dirty data in the layers above: it
keeps out other mounts and other programs that ask for it (qemu does not), and only while the owner lives.
"""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from fusecache.api.errors import ImageBusy, ImageNotFound

_READ_ONLY_ERRORS: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_ATTEMPTS: Final = 100


def open_locked(directory: int, name: str, *, read_only: bool) -> tuple[int, bool]:
    """Open the image *name* of the directory behind a descriptor, and lock it.

    Returns:
        The descriptor, which holds the lock until it is closed, and whether it is for reading only: because that was
        asked for, or because we may do no more.

    Raises:
        ImageNotFound: there is no regular file of that name.
        ImageBusy: somebody else holds the lock.
        OSError: any other failure of ``open(2)`` or ``flock(2)``.
    """
    for _ in range(_ATTEMPTS):
        fd, only_reads = open_image(directory, name, read_only=read_only)
        try:
            _lock(fd, name)
            if os.path.samestat(os.fstat(fd), stat_image(directory, name)):
                return fd, only_reads
        except BaseException:
            os.close(fd)
            raise
        # Between open and lock the name was given to another file.
        os.close(fd)
    raise ImageBusy(f"image {name!r} is being replaced over and over")


def open_image(directory: int, name: str, *, read_only: bool) -> tuple[int, bool]:
    """As :func:`open_locked`, without taking the lock: what may change while it is looked at."""
    # Opening what is not a regular file may wait, or have effects of its own; hence the look before, and O_NONBLOCK.
    stat_image(directory, name)
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        if not read_only:
            try:
                return os.open(name, flags | os.O_RDWR, dir_fd=directory), False
            except OSError as error:
                if error.errno not in _READ_ONLY_ERRORS:
                    raise
        return os.open(name, flags | os.O_RDONLY, dir_fd=directory), True
    except FileNotFoundError:
        raise ImageNotFound(f"no image {name!r}") from None


def stat_image(directory: int, name: str) -> os.stat_result:
    """Return the attributes of the image *name*.

    Raises:
        ImageNotFound: there is no regular file of that name.
    """
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        raise ImageNotFound(f"no image {name!r}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ImageNotFound(f"no image {name!r}: what has that name is not a regular file")
    return found


def _lock(fd: int, name: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ImageBusy(f"image {name!r} is held by {_owner(os.fstat(fd))}") from None


def _owner(found: os.stat_result) -> str:
    """Name the process that locked a file; a lock inherited from a dead process, for one, names nobody."""
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        for line in Path("/proc/locks").read_text().splitlines():
            # "1: FLOCK  ADVISORY  WRITE 1234 fe:00:2171473 0 EOF"; a waiter has "->" in the second place.
            fields = line.split()
            if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == place:
                command = Path("/proc", fields[4], "comm").read_text().rstrip("\n")
                return f"pid {fields[4]} ({command})"
    except (OSError, UnicodeDecodeError):
        pass
    return "another process"
