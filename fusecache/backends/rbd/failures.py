"""What it means for an open image that a request failed.

Owns the errors that librbd's results become, and the events that are told once. It must not know librbd's calls.
"""

import errno
from collections.abc import Callable
from typing import Final

from fusecache.api import Emit, FusecacheError
from fusecache.api.errors import ImageGone, VolumeReadOnly
from fusecache.backends.files import ImageShrank
from fusecache.backends.rbd.errors import BLOCKLISTED

_LOST: Final = (-BLOCKLISTED, -errno.EROFS)
"""What librbd answers once our lock was broken: that our client is blocklisted, or that another owns the lock."""


class LockLost(FusecacheError):
    """The image can no longer be read: its lock was taken away, or the cluster refuses our client (EIO)."""


class Failures:
    """The failures of one image's requests. Loop's thread only.

    Args:
        name: for messages.
        locked: the image is held under its exclusive lock.
        lost: called once, with the reason, as soon as the lock is known to be lost.

    Attributes:
        reason: why the image is lost; empty while it is not.
    """

    def __init__(self, name: str, emit: Emit, *, locked: bool, lost: Callable[[], None]) -> None:
        self.reason = ""
        self._name = name
        self._emit = emit
        self._locked = locked
        self._lost = lost
        self._shrank = False

    def of_read(self, result: int, offset: int, length: int) -> FusecacheError:
        """Return the error for a read that ended with *result*: too few bytes, or a negative errno."""
        if result in _LOST:
            self.lose()
            return self.unreadable()
        if result >= 0 or result == -errno.EINVAL:
            if not self._shrank:
                self._shrank = True
                self._emit("image-shrank", f"{self._name}: somebody shrank it behind us")
            return ImageShrank(f"{self._name}: found its end before byte {offset + length}: somebody shrank it")
        if result == -errno.ENOENT:
            return self._gone()
        return FusecacheError(f"{self._name}: reading {length} bytes at {offset} failed with {name_of(result)}")

    def of_change(self, result: int, offset: int) -> Exception:
        """Return the error for a change or a flush that ended with the negative errno *result*."""
        if result in _LOST:
            self.lose()
            return self.refusal()
        if result == -errno.ENOENT:
            return self._gone()
        return OSError(-result, f"{self._name}: a change at {offset} failed with {name_of(result)}")

    def refusal(self) -> VolumeReadOnly:
        """Return the error for a change that is not even tried."""
        if self.reason:
            return VolumeReadOnly(f"{self._name} accepts no changes: {self.reason}")
        return VolumeReadOnly(f"{self._name} is open for reading only")

    def unreadable(self) -> LockLost:
        """Return the error for a read after the loss."""
        return LockLost(f"{self._name} cannot be read any more: {self.reason}")

    def lose(self) -> None:
        """The lock is lost, or the client of an image without one; say so once."""
        if not self.reason:
            self.reason = "its exclusive lock was taken away" if self._locked else "the cluster refuses our client"
            self._lost()
            self._emit("lock-lost", f"{self._name}: {self.reason}; reads fail and changes are refused")

    def _gone(self) -> ImageGone:
        return ImageGone(f"{self._name} was removed behind us")


def name_of(result: int) -> str:
    """Return the name of a negative errno."""
    return errno.errorcode.get(-result, str(result))
