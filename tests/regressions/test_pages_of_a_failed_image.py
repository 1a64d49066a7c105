"""Whoever had an image open when its stack came down went on reading the kernel's pages of it.

By then the image's lock was given up, and others could change the image.
"""

import errno
import os
from collections.abc import Callable

import pytest

from tests.support.mounts import Mount, Place, wait_until


def test_old_pages_of_an_image_whose_stack_came_down_are_not_read(place: Place, mounted: Callable[..., Mount]) -> None:
    place.layers = [{"plugin": "fault"}]
    place.image("disk", b"a" * 65536)
    mount = mounted()
    fd = os.open(mount.path / "disk", os.O_RDWR)
    try:
        assert os.pread(fd, 1, 0) == b"a"
        mount.fail_with("die")
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            os.pwrite(fd, b"b", 32768)
        mount.fail_with(None)

        def refused() -> bool:
            try:
                os.pread(fd, 1, 0)
            except OSError as error:
                return error.errno == errno.EIO
            return False

        wait_until(refused, "a read to be refused")
    finally:
        os.close(fd)
