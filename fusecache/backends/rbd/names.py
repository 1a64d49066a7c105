"""Names of images and snapshots, and what changes them.

Owns which names there are, how an image is described to the core, and the blocking calls that create, rename and
remove. It must not know how headers are fetched, nor open images.

``<image>@<snapshot>`` names a snapshot. So an image with ``@`` in its name is not shown, nor is one whose name no file
can have; Ceph's own tools cannot name the first kind either.
"""

import errno
import reprlib
import shlex
from collections.abc import Sequence
from typing import Any, Final

import rbd

from fusecache.api import Identity, ImageInfo
from fusecache.api.errors import BadCommand, ImageBusy, ImageExists, ImageNotFound, NotSupported
from fusecache.backends.rbd.header import Header, Snapshot

_LONGEST_NAME: Final = 255


def checked(name: str) -> str:
    """Return *name* if a file can have it, and an object of Ceph's.

    Raises:
        OSError: EINVAL or ENAMETOOLONG.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        text = f"found the image name {name!r}, allowed: not empty, not '.' or '..', without '/' and NUL"
        raise OSError(errno.EINVAL, text)
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise OSError(errno.EINVAL, f"found the image name {name!r}, allowed: UTF-8") from None
    if length > _LONGEST_NAME:
        text = f"found an image name of {length} bytes, allowed: at most {_LONGEST_NAME}"
        raise OSError(errno.ENAMETOOLONG, text)
    return name


def checked_image(name: str) -> str:
    """Return *name* if it is one that an image can be given, or a change of an image can be asked by.

    Raises:
        NotSupported: it names a snapshot.
        OSError: as :func:`checked`.
    """
    if "@" in checked(name):
        raise NotSupported(
            f"found the name {name!r}, allowed: without '@', which names snapshots; these are made through the control "
            "directory and removed with `rbd snap rm`"
        )
    return name


def split(name: str) -> tuple[str, str | None]:
    """Return the image's name, and the snapshot's where *name* is that of one.

    Raises:
        OSError: as :func:`checked`.
    """
    image, at, snapshot = checked(name).partition("@")
    return image, snapshot if at else None


def is_shown(name: str) -> bool:
    """Say whether an image of that name is listed."""
    return "@" not in name and _fits(name)


def _fits(name: str) -> bool:
    try:
        checked(name)
    except OSError:
        return False
    return True


def checked_snapshot(image: str, name: str) -> str:
    """Return *name* if it is one that a snapshot of *image* can be given: the file ``<image>@<name>`` shows it.

    Raises:
        BadCommand: it is not.
    """
    if not name or "@" in name or not _fits(f"{image}@{name}"):
        most = _LONGEST_NAME - len(f"{image}@".encode(errors="surrogateescape"))
        raise BadCommand(
            f"found the snapshot name {reprlib.repr(name)}, allowed for image {image!r}: 1 to {most} bytes of UTF-8, "
            "without '@', '/' and NUL"
        )
    return name


def snapshot_of(header: Header, name: str) -> Snapshot:
    """Return the snapshot *name* of an image.

    Raises:
        ImageNotFound: there is none.
    """
    if name not in header.snapshots:
        found = ", ".join(map(repr, header.snapshots)) or "none"
        raise ImageNotFound(f"image {header.name!r} has no snapshot {name!r}; it has: {found}")
    return header.snapshots[name]


class Describer:
    """Describes the images of one pool and namespace."""

    def __init__(self, fsid: str, pool_id: int, namespace: str) -> None:
        self._prefix = f"rbd:{fsid}:{pool_id}:{namespace}:"

    def identity(self, header: Header, snapshot: Snapshot | None = None) -> Identity:
        """Return what an image, or a snapshot of it, is whatever its name."""
        return Identity(self._prefix + header.id + ("" if snapshot is None else f"@{snapshot.id}"))

    def image(self, header: Header) -> ImageInfo:
        """Describe an image. What takes space is not known: counting it means to ask for every object."""
        return ImageInfo(
            name=header.name,
            key=self.identity(header).text,
            size=header.size,
            mtime_ns=header.mtime_ns,
            read_only=bool(header.read_only_reason),
        )

    def snapshot(self, header: Header, snapshot: Snapshot) -> ImageInfo:
        """Describe a snapshot of an image."""
        return ImageInfo(
            name=f"{header.name}@{snapshot.name}",
            key=self.identity(header, snapshot).text,
            size=snapshot.size,
            mtime_ns=snapshot.mtime_ns,
            read_only=True,
            snapshot=True,
        )

    def snapshots(self, header: Header) -> Sequence[ImageInfo]:
        """Describe the snapshots of an image whose names a file can have."""
        infos = (self.snapshot(header, snapshot) for snapshot in header.snapshots.values())
        return [info for info in infos if _fits(info.name)]


def create(ioctx: Any, name: str, size: int) -> None:
    """Create an image with the features that the cluster's and the pool's config choose. Blocking.

    A crash of the process in the middle may leave a name without an image; ``rbd rm`` clears it away.

    Raises:
        ImageExists: the name is taken.
    """
    try:
        rbd.RBD().create(ioctx, name, size, old_format=False)
    except rbd.ImageExists:
        text = f"the name {name!r} is taken"
        raise ImageExists(f"{text}; where no image shows, `{_command(ioctx, 'rm', name)}` clears it away") from None


def rename(ioctx: Any, old: str, new: str) -> None:
    """Rename an image, which may be open. Blocking.

    A crash of the process in the middle may leave both names on the one image.

    Raises:
        ImageNotFound, ImageExists
    """
    try:
        rbd.RBD().rename(ioctx, old, new)
    except rbd.ImageExists:
        raise ImageExists(f"image {old!r} is not renamed: the name {new!r} is taken") from None
    except rbd.ImageNotFound:
        raise ImageNotFound(f"no image {old!r}") from None


def remove(ioctx: Any, name: str) -> None:
    """Remove an image object by object, its name last. Blocking; takes long where there is much data.

    A crash of the process in the middle leaves an image that has lost data; removing it again goes on.

    Raises:
        ImageNotFound: there is none.
        ImageBusy: somebody has it open.
        OSError: ENOTEMPTY, it has snapshots.
    """
    try:
        rbd.RBD().remove(ioctx, name)
    except rbd.ImageNotFound:
        raise ImageNotFound(f"no image {name!r}") from None
    except (rbd.ImageBusy, rbd.ReadOnlyImage):
        raise ImageBusy(
            f"image {name!r} is not removed: somebody has it open, or had it open and died less than half a minute "
            f"ago; `{_command(ioctx, 'status', name)}` says who"
        ) from None
    except rbd.ImageHasSnapshots:
        raise OSError(
            errno.ENOTEMPTY,
            f"image {name!r} is not removed: it has snapshots; `{_command(ioctx, 'snap purge', name)}` removes them",
        ) from None


def _command(ioctx: Any, verb: str, name: str) -> str:
    """Return the command of Ceph's ``rbd`` for an image."""
    path = (ioctx.get_pool_name(), *filter(None, [ioctx.get_namespace()]), name)
    return f"rbd {verb} {shlex.quote('/'.join(path))}"
