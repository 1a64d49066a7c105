"""A command written to an open control file reached another image that had taken over the name."""

import errno
import os
from collections.abc import Callable

import pytest

from tests.support.mounts import Mount, Place


@pytest.mark.parametrize("file", ["discard", "flush"])
def test_a_control_file_never_commands_another_image(place: Place, mounted: Callable[..., Mount], file: str) -> None:
    place.image("disk", b"a")
    place.image("other", b"b")
    mount = mounted(rename=True)
    fd = os.open(mount.control / "images/disk" / file, os.O_WRONLY)
    try:
        (mount.path / "disk").rename(mount.path / "old")
        (mount.path / "other").rename(mount.path / "disk")
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            os.write(fd, b"0\n")
    finally:
        os.close(fd)
