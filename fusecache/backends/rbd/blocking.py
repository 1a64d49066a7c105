"""What is asked of an open image of librbd's that has no asynchronous call: sizes, clones, snapshots.

Owns the blocking calls; each is made on a thread, through :meth:`fusecache.backends.rbd.handle.OpenHandle.use`. It must
not know how long anybody waits for one.
"""

from collections.abc import Sequence
from typing import Any

import rbd

from fusecache.api.errors import ImageExists
from fusecache.backends.rbd.names import checked_snapshot


def size(image: Any) -> int:
    """Return the length in bytes."""
    found: int = image.size()
    return found


def resize(image: Any, new: int) -> None:
    """Set the length, durably."""
    image.resize(new)


def clones(image: Any) -> Sequence[str]:
    """Return the images that were cloned from a snapshot of this one, as ``pool/name``."""
    return [f"{pool}/{name}" for pool, name in image.list_children()]


def check_snapshot(image: Any, name: str) -> None:
    """See that the image can be given a snapshot of that name.

    Raises:
        BadCommand: it is no name for one.
        ImageExists: it has one.
    """
    checked_snapshot(image.get_name(), name)
    if name in [snapshot["name"] for snapshot in image.list_snaps()]:
        raise _has_snapshot(image, name)


def make_snapshot(image: Any, name: str) -> str:
    """Make a snapshot, durably; return its name, by which :func:`remove_snapshot` knows it.

    Raises:
        BadCommand, ImageExists: as :func:`check_snapshot`.
    """
    try:
        image.create_snap(checked_snapshot(image.get_name(), name))
    except rbd.ImageExists:
        raise _has_snapshot(image, name) from None
    return name


def remove_snapshot(image: Any, name: str) -> None:
    """Remove a snapshot, which nobody uses."""
    image.remove_snap(name)


def _has_snapshot(image: Any, name: str) -> ImageExists:
    return ImageExists(f"image {image.get_name()!r} has a snapshot {name!r} already")
