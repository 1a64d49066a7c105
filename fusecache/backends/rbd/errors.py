"""What the errors of the Ceph bindings mean here.

Owns the translation of ``rados.Error`` and ``rbd.Error`` into the tree of :mod:`fusecache.api.errors`. It must not know
which call failed.
"""

import errno
import os
from typing import Final

import rados
import rbd

from fusecache.api import FusecacheError
from fusecache.api.errors import ImageBusy, ImageExists, ImageNotFound, VolumeReadOnly

CEPH_ERRORS: Final = (rados.Error, rbd.Error)
"""What the bindings raise; all of them carry ``errno``, a positive number."""

BLOCKLISTED: Final = errno.ESHUTDOWN
"""What the cluster answers to a client that it has blocklisted, and librbd to requests after that."""

_NEEDED: Final = "; the Ceph user needs the capabilities `profile rbd` of monitor and OSD, for this pool"

_KINDS: Final[dict[int, type[FusecacheError]]] = {
    errno.ENOENT: ImageNotFound,
    errno.EEXIST: ImageExists,
    errno.EBUSY: ImageBusy,
    errno.EROFS: VolumeReadOnly,
    errno.ETIMEDOUT: FusecacheError,
    BLOCKLISTED: FusecacheError,
}


def translated(error: Exception) -> Exception:
    """Return the exception to raise in place of *error*; itself if it is none of the bindings'.

    What has no class of its own in :mod:`fusecache.api.errors` becomes an OSError of the same number.
    """
    if not isinstance(error, CEPH_ERRORS):
        return error
    number = abs(getattr(error, "errno", None) or errno.EIO)
    return error_of(number, str(error))


def error_of(number: int, text: str) -> Exception:
    """Return the exception that stands for the positive *number*, with *text* as its message."""
    if number == BLOCKLISTED:
        return FusecacheError(f"{text}: the cluster has blocklisted this client")
    if number in _KINDS:
        return _KINDS[number](text)
    return OSError(number, f"{text} ({os.strerror(number)}{_NEEDED if number == errno.EPERM else ''})")
