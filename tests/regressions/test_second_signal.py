"""A second SIGTERM, or Ctrl-C, while a mount was ending changed its exit status: nobody took the signal any more, and
it had its usual effect as soon as its receiver was closed.
"""

import os
import signal
from collections.abc import Callable

import pytest

from tests.support.callers import GONE
from tests.support.mounts import Mount, Place


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_mount_that_is_asked_twice_to_end_ends_well(
    place: Place, mounted: Callable[..., Mount], second: signal.Signals
) -> None:
    place.image("disk", size=4096)
    mount = mounted()
    fd = os.open(mount.path / "disk", os.O_RDWR)
    mount.process.send_signal(signal.SIGTERM)
    mount.process.send_signal(second)
    assert mount.wait() == 0
    assert not mount.path.is_mount()
    assert "Traceback" not in mount.log.read_text()
    with pytest.raises(OSError, match=GONE):
        os.close(fd)
