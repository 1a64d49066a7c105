"""The lasting identity of an image file: a uuid in an extended attribute, together with the inode number.

Owns the attribute's format and when it is written. It must not know locks or volumes.

The value of ``user.fusecache.identity`` is ``<uuid>:<inode number>`` in ASCII, the uuid in its canonical form of 36
characters. Copying programs copy attributes; the inode number tells the copy, which then gets a uuid of its own.
"""

import errno
import logging
import os
import re
import uuid
from typing import Final

from fusecache.api import Identity

log = logging.getLogger(__name__)

ATTRIBUTE: Final = "user.fusecache.identity"

_VALUE: Final = re.compile(rb"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):([1-9][0-9]{0,19})")
_CANNOT: Final = (
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EACCES,
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
)


def identify(fd: int, path: str, *, read_only: bool) -> tuple[Identity, bool]:
    """Return the identity of an open file that we hold the lock of, and whether it is durable.

    A file without a valid mark of its own is given one, durably, unless *read_only*. Where no mark can be had, the
    identity is made of device and inode number, which others may have later.

    Args:
        path: for messages.
    """
    found = os.fstat(fd)
    mark = _read(fd, path, found.st_ino)
    if mark is None and not read_only:
        mark = _write(fd, path, found.st_ino)
    if mark is None:
        return Identity(f"directory:{found.st_dev}:{found.st_ino}"), False
    return Identity(f"directory:{mark}:{found.st_ino}"), True


def _read(fd: int, path: str, inode: int) -> str | None:
    try:
        value = os.getxattr(fd, ATTRIBUTE)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
            return None
        raise
    match = _VALUE.fullmatch(value)
    if match is None:
        log.warning("%s: found %r in attribute %s, allowed: <uuid>:<inode number>; ignored", path, value, ATTRIBUTE)
        return None
    if int(match[2]) != inode:
        log.info("%s is a copy of another image; its identity is not taken over", path)
        return None
    return match[1].decode()


def _write(fd: int, path: str, inode: int) -> str | None:
    mark = str(uuid.uuid4())
    try:
        os.setxattr(fd, ATTRIBUTE, f"{mark}:{inode}".encode())
        # Durable records will name this identity: it must not be younger than they are.
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        log.warning("%s: attribute %s cannot be written: %s", path, ATTRIBUTE, error.strerror)
        return None
    return mark
