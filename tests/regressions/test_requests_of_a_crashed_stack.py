"""Requests that were under way when a layer's background task crashed were answered EBADF, as if their descriptor were
bad; and whoever opened the image while its stack was being closed got the dying one.
"""

import errno
import os
from collections.abc import Callable

from tests.support.callers import outcome
from tests.support.mounts import FAULT, Mount, Place


def test_a_request_that_a_crash_ends_is_eio_and_the_next_opener_gets_a_new_stack(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    place.image("disk", b"." * 4096)
    place.layers = [FAULT]
    mount = mounted()
    calls: list[Callable[[int], object]] = [
        lambda fd: os.pread(fd, 4096, 0),
        lambda fd: os.pwrite(fd, b"w" * 4096, 0),
        os.fsync,
    ]
    for call in calls:
        fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
        mount.fail_with("die")
        assert outcome(call, fd) == errno.EIO
        mount.fail_with(None)
        fresh = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
        assert outcome(call, fresh) == 0
        assert outcome(call, fd) == errno.EIO
        os.close(fresh)
        os.close(fd)
