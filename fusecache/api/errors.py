"""The one tree of exceptions that volumes, layers and backends raise.

Owns which failure carries which ``errno``. It must not know who turns an error into a reply: the FUSE edge calls
:func:`errno_of` and the CLI prints the message.

Every exception below carries ``errno`` and a message that names what was found and what is allowed.
"""

import errno as _errno


class FusecacheError(Exception):
    """Base of everything fusecache raises on purpose.

    Attributes:
        errno: the positive number a caller of the failed system call sees.
    """

    errno: int = _errno.EIO


class ImageNotFound(FusecacheError):
    """No image of that name exists (ENOENT)."""

    errno = _errno.ENOENT


class ImageExists(FusecacheError):
    """An image of that name exists already (EEXIST)."""

    errno = _errno.EEXIST


class ImageGone(FusecacheError):
    """The image was removed or replaced behind us while it was open (ESTALE)."""

    errno = _errno.ESTALE


class ImageBusy(FusecacheError):
    """Another owner holds the image; the message names it (EBUSY)."""

    errno = _errno.EBUSY


class LayerDirty(FusecacheError):
    """The operation would lose dirty data of a layer (EBUSY)."""

    errno = _errno.EBUSY


class PluginMissing(FusecacheError):
    """A layer is needed, and its plugin is not installed or does not load (ENODEV)."""

    errno = _errno.ENODEV


class PoolMissing(FusecacheError):
    """A dirty layer's pool file is not where the manifest says, or the directory for pool files is gone (ENODATA)."""

    errno = _errno.ENODATA


class Fenced(FusecacheError):
    """The local manifest or pool file is of an older epoch than the image (ESTALE)."""

    errno = _errno.ESTALE


class CorruptState(FusecacheError):
    """A manifest or another durable record does not parse; it is refused, never guessed (EIO)."""


class OutOfRange(FusecacheError):
    """A request reaches past the end of the volume (ENOSPC)."""

    errno = _errno.ENOSPC


class Misaligned(FusecacheError):
    """A request does not keep to the volume's alignment: a fault of the caller (EINVAL)."""

    errno = _errno.EINVAL


class VolumeReadOnly(FusecacheError):
    """The volume accepts no changes (EROFS)."""

    errno = _errno.EROFS


class VolumeClosed(FusecacheError):
    """The volume has been closed, or never was open (EBADF)."""

    errno = _errno.EBADF


class NotPermitted(FusecacheError):
    """The mount's configuration does not allow this change (EPERM)."""

    errno = _errno.EPERM


class NotSupported(FusecacheError):
    """The operation has no meaning here (EOPNOTSUPP)."""

    errno = _errno.EOPNOTSUPP


class BadCommand(FusecacheError):
    """A command was not understood and changed nothing (EINVAL)."""

    errno = _errno.EINVAL


class ContractViolation(FusecacheError):
    """A layer or backend broke the contract of :mod:`fusecache.api.volume` (EIO)."""


def unwrapped(error: BaseException) -> BaseException:
    """Return what a chain of exception groups of one member carries: nurseries wrap whatever passes them."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def errno_of(error: BaseException) -> int:
    """Return the positive errno that stands for *error*.

    A :class:`FusecacheError` and an :class:`OSError` carry their own; anything else, expected by nobody, is EIO.
    """
    if isinstance(error, FusecacheError):
        return error.errno
    if isinstance(error, OSError) and error.errno:
        return error.errno
    return _errno.EIO
