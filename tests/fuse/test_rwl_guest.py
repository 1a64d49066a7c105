"""A virtual machine on a full log over a backend that hangs pauses, goes on when there is space, and loses nothing."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.test_rwl_mounted import layer_status, rwl
from tests.support.guest import REQUEST, Guest, guest_writing, written_by_guest
from tests.support.mounts import GATE, Mount, Place, wait_until

POOL = 16 << 20
LENGTH = 24 << 20


def expect_pause(guest: Guest) -> None:
    """Wait until the machine has paused because there is no space."""
    error = guest.wait_for("BLOCK_IO_ERROR")
    assert error["nospace"] is True
    assert (error["operation"], error["action"]) == ("write", "stop")
    guest.wait_for("STOP")
    status = guest.command("query-status")
    assert (status["running"], status["status"]) == (False, "io-error")


def acknowledged(disk: Path) -> int:
    """Return how many bytes of the guest's are on the disk."""
    content = disk.read_bytes()
    at = 0
    while content[at : at + 4] == struct.pack("<I", at // 512 + 1):
        at += REQUEST
    assert written_by_guest(content[:at])
    assert not any(content[at:])
    return at


@pytest.mark.parametrize("cache", ["none", "writethrough"])
def test_a_guest_pauses_on_a_full_log_and_goes_on_when_there_is_space(
    cache: str, tmp_path: Path, place: Place, mounted: Callable[..., Mount]
) -> None:
    below = place.image("disk", size=LENGTH)
    place.layers = [GATE, rwl(place, size=POOL, stall_timeout="1s", stall_errno="ENOSPC")]
    mount = mounted()
    machine = tmp_path / "machine"
    machine.mkdir()
    with guest_writing(mount.path / "disk", LENGTH, machine, cache=cache) as guest:
        mount.close_gate()
        guest.command("cont")
        expect_pause(guest)
        # Too early: it pauses again.
        guest.command("cont")
        expect_pause(guest)
        mount.open_gate()
        wait_until(lambda: layer_status(mount, 1)["dirty_bytes"] < POOL // 2, "space in the log")
        assert POOL * 3 // 4 < acknowledged(mount.path / "disk") < LENGTH
        guest.command("cont")
        guest.wait_for("RESUME")
        assert guest.wrote_all()
    assert acknowledged(mount.path / "disk") == LENGTH
    mount.unmount()
    assert acknowledged(below) == LENGTH
