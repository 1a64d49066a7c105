"""A renamed image was ENOENT under its new name, and to those who had it open: its node kept the old one.

The kernel moves its own directory entry at a rename and looks nothing up.
"""

import os
from collections.abc import Callable

from tests.support.mounts import Mount, Place


def test_a_renamed_image_is_found_under_its_new_name(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", b"content")
    root = mounted(rename=True).path
    (root / "disk").rename(root / "moved")
    assert (root / "moved").stat().st_size == 7
    assert (root / "moved").read_bytes() == b"content"


def test_an_image_that_is_renamed_while_open_still_has_attributes(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", b"content")
    root = mounted(rename=True).path
    fd = os.open(root / "disk", os.O_RDWR)
    try:
        for new in ("moved", "again", "disk"):
            (old,) = (path for path in root.iterdir() if path.name != ".control")
            old.rename(root / new)
            assert os.fstat(fd).st_size == 7
            assert os.pwrite(fd, b"C", 0) == 1
    finally:
        os.close(fd)
    assert (root / "disk").read_bytes() == b"Content"
