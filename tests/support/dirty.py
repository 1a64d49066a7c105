"""Mounts over the layer ``kept``, whose data stay dirty until somebody asks for a write-back.

Owns what tests of dirty images share. It must not know what is tested.
"""

import os
from pathlib import Path

from tests.support.mounts import KEPT, Mount, Place, wait_until

OLD = b"." * (256 << 10)
"""What an image holds below."""
NEW = b"n" * (200 << 10)
"""What is written to its beginning, and stays dirty."""


def kept_place(root: Path, *, images: int = 1, layers: int = 1) -> Place:
    """Make a place with images ``disk``, ``disk1`` …, of *layers* layers ``kept``."""
    place = Place(root, layers=[KEPT] * layers)
    for number in range(images):
        place.image("disk" if not number else f"disk{number}", OLD)
    return place


def make_dirty(mount: Mount, name: str = "disk") -> None:
    """Write NEW to an image, and close it."""
    with (mount.path / name).open("r+b", buffering=0) as file:
        file.write(NEW)
        os.fsync(file.fileno())
    assert mount.place.images.joinpath(name).read_bytes() == OLD


def is_written_back(place: Place, name: str = "disk") -> bool:
    """Say whether all of NEW is below."""
    content = place.images.joinpath(name).read_bytes()
    assert len(content) == len(OLD)
    return content == NEW + OLD[len(NEW) :]


def pool(place: Place, index: int = 0) -> Path:
    """Return the pool file of a layer of the only image that has one."""
    (path,) = place.pools.glob(f"kept.*.{index}.pool")
    return path


def stick(place: Place) -> None:
    """Have every write-back stop after its first slice."""
    (place.switches / "stuck").touch()


def unstick(place: Place) -> None:
    """Let write-backs go on."""
    (place.switches / "stuck").unlink()


def fail_below(place: Place, number: int | None) -> None:
    """Have every write-back fail with an errno; None: no more."""
    path = place.switches / "below"
    if number is None:
        path.unlink()
    else:
        path.write_text(str(number))


def wait_until_stuck(mount: Mount) -> None:
    """Wait until a write-back has written its first slice."""
    wait_until(lambda: (mount.place.images / "disk").read_bytes()[:1] == NEW[:1], "a slice is written back")
