"""What an image file says of itself in extended attributes: its lasting identity, and the record of the layers above.

Owns the attributes' names and when they are written. It must not know locks or volumes.

The value of ``user.fusecache.identity`` is ``<uuid>:<inode number>`` in ASCII, the uuid in its canonical form of 36
characters. Copying programs copy attributes; the inode number tells the copy, which then gets a uuid of its own.

The value of ``user.fusecache.record`` is the text of :mod:`fusecache.backends.records`. It is replaced by one
``setxattr(2)``, which a crash leaves done or not done, and made durable by one ``fsync(2)``. A file system with blocks
of 4 KiB may hold no more than that for all attributes of a file together.
"""

import errno
import logging
import os
import re
import uuid
from typing import Final

from fusecache.api import Identity, ImageRecord
from fusecache.api.errors import CorruptState, Fenced, NotSupported
from fusecache.backends import records

log = logging.getLogger(__name__)

ATTRIBUTE: Final = "user.fusecache.identity"
RECORD_ATTRIBUTE: Final = "user.fusecache.record"

_VALUE: Final = re.compile(rb"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}):([1-9][0-9]{0,19})")
_UNREADABLE: Final = (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)
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


def read_record(fd: int, path: str, identity: Identity) -> ImageRecord | None:
    """Return the record of an open file with that identity; None where it has none, or no attributes.

    Args:
        path: for messages.

    Raises:
        CorruptState: it does not parse.
        Fenced: the file is a copy, made without the newer data that a host held of its original.
    """
    value = _value(fd, RECORD_ATTRIBUTE)
    if value is None:
        return None
    try:
        return records.decode(value.decode(), identity)
    except UnicodeDecodeError as error:
        raise CorruptState(f"{path}: attribute {RECORD_ATTRIBUTE}: {error}") from error
    except CorruptState as error:
        raise CorruptState(f"{path}: attribute {RECORD_ATTRIBUTE}: {error}") from error
    except Fenced as error:
        command = f"setfattr -x {RECORD_ATTRIBUTE} {path}"
        raise Fenced(f"{path}: {error}; to use it all the same, remove the record with `{command}`") from error


def write_record(fd: int, path: str, identity: Identity, record: ImageRecord) -> None:
    """Replace the record of an open file that we hold the lock of; durable when this returns.

    A crash before the end, or an error, leaves the old record or the new one.

    Args:
        path: for messages.

    Raises:
        NotSupported: the file system keeps no such attribute here.
        OSError: ENOSPC where the record does not fit, or another failure.
    """
    try:
        os.setxattr(fd, RECORD_ATTRIBUTE, records.encode(record, identity).encode())
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise NotSupported(f"{path}: its file system keeps no attribute {RECORD_ATTRIBUTE}") from error
        raise
    os.fsync(fd)


def _read(fd: int, path: str, inode: int) -> str | None:
    value = _value(fd, ATTRIBUTE)
    if value is None:
        return None
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


def _value(fd: int, attribute: str) -> bytes | None:
    try:
        return os.getxattr(fd, attribute)
    except OSError as error:
        if error.errno in _UNREADABLE:
            return None
        raise
