"""The write-back log under a real mount: what is acknowledged survives the daemon, and a full log stalls no longer
than it says."""

import errno
import os
import random
import subprocess
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.fuse.test_lifecycle_ending import BLOCK, Writer
from tests.support.callers import outcome, shell
from tests.support.mounts import GATE, Mount, Place, fusecache, wait_until

pytest.importorskip("fusecache_rwl", reason="the part rwl is left out")

SIZE = 4 << 20


def rwl(place: Place, **options: Any) -> Mapping[str, Any]:
    """Return the table of a layer with its pool in *place*."""
    return {"plugin": "rwl", "path": str(place.pools), "size": "16MiB", **options}


def layer_status(mount: Mount, index: int = 0) -> Any:
    (image,) = mount.status()["images"]
    (layer,) = [layer for layer in image["layers"] if layer["index"] == index]
    return layer


def dirty_blocks(writer: Writer, below: Path) -> int:
    """Return how many blocks the image does not have yet as they were acknowledged."""
    content = below.read_bytes()
    return sum(
        int.from_bytes(content[block * BLOCK : block * BLOCK + 8], "little") < number
        for block, number in writer.acknowledged.items()
    )


STACKS: Mapping[str, list[dict[str, Any]]] = {
    "ssd": [{}],
    "ssd, each write durable": [{"persist": "write"}],
    "pmem": [{"media": "pmem"}],
    "written back all the time": [{"max_dirty_age": "1ms"}],
    "in groups all the time": [{"max_dirty_age": "1ms", "order": "grouped"}],
    "two": [{"media": "ssd"}, {"media": "pmem", "size": "32MiB", "max_dirty_age": "20ms"}],
}


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
def test_a_killed_daemon_loses_nothing_that_was_acknowledged(
    place: Place, mounted: Callable[..., Mount], layers: list[dict[str, Any]], seed: int, soak_seconds: float
) -> None:
    chance = random.Random(seed)
    below = place.image("disk", size=SIZE)
    place.layers = [rwl(place, **options) for options in layers]
    dirty = 0
    until = time.monotonic() + soak_seconds
    for round_number in count():
        if round_number >= 2 and time.monotonic() > until:
            break
        mount = mounted()
        writer = Writer(mount.path / "disk", sync=bool(round_number % 2))
        writer.wait_until_under_way(chance.randrange(100, 1000))
        mount.kill()
        writer.end()
        dirty += dirty_blocks(writer, below)
        again = mounted()
        writer.check(again.path / "disk")
        (again.control / "images" / "disk" / "flush").write_text("all")
        # What the layer said it moved is in the image itself.
        writer.check(below)
        again.unmount()
        writer.check(below)
    assert dirty, "nothing was dirty at any kill"


def test_dirty_data_stay_for_the_next_mount_and_go_down_with_an_ordinary_unmount(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    below = place.image("disk", size=SIZE)
    place.layers = [rwl(place)]
    mount = mounted()
    (mount.path / "disk").write_bytes(b"kept")
    assert layer_status(mount)["state"] == "dirty"
    assert fusecache("unmount", "--keep", mount.path).returncode == 0
    assert mount.wait() == 0
    assert below.read_bytes()[:4] == bytes(4)
    again = mounted()
    assert (again.path / "disk").read_bytes()[:4] == b"kept"
    again.unmount()
    assert below.read_bytes()[:4] == b"kept"


def test_what_a_dirty_layer_hid_shows_again_when_it_is_discarded(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", b"below", size=SIZE)
    place.layers = [rwl(place), rwl(place, media="pmem")]
    mount = mounted()
    discard = mount.control / "images" / "disk" / "discard"
    (mount.path / "disk").write_bytes(b"lower")
    (mount.control / "images" / "disk" / "flush").write_text("1")
    (mount.path / "disk").write_bytes(b"upper")
    assert outcome(discard.write_text, "1") == errno.EBUSY
    assert outcome(discard.write_text, "0 dirty") == errno.EBUSY
    discard.write_text("1 dirty")
    assert (mount.path / "disk").read_bytes()[:5] == b"lower"
    discard.write_text("0 dirty")
    assert (mount.path / "disk").read_bytes()[:5] == b"below"


def test_in_mid_group_a_dirty_layer_is_discarded_only_if_torn_will_do(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    place.image("disk", size=SIZE)
    place.layers = [GATE, rwl(place, order="grouped")]
    mount = mounted()
    with (mount.path / "disk").open("r+b", buffering=0) as file:
        for number in range(5):
            os.pwrite(file.fileno(), b"new!", number << 16)
            os.fsync(file.fileno())
    mount.close_gate()
    with subprocess.Popen(["sh", "-c", f"echo 1 > {mount.control}/images/disk/flush"]):
        wait_until(lambda: mount.waiting_at_gate() > 0, "the write-back is under way")
        for target in (mount.path, place.config):
            refused = fusecache("discard", target, "disk", "--layer", "1", "--dirty", "--yes")
            assert refused.returncode == 3
            assert "--dirty --torn" in refused.stderr
        mount.kill()
    assert "generations 1 to 5" in fusecache("inspect", next(place.pools.glob("*.1.pool"))).stdout
    refused = fusecache("discard", place.config, "disk", "--layer", "1", "--dirty", "--yes")
    assert refused.returncode == 3
    assert "in the middle of a group" in refused.stderr
    again = mounted()
    discard = again.control / "images" / "disk" / "discard"
    assert outcome(discard.write_text, "1 torn") == errno.EINVAL
    assert outcome(discard.write_text, "1 dirty") == errno.EBUSY
    assert "in the middle of a group" in discard.with_name("last_error").read_text()
    discard.write_text("1 dirty torn")
    assert not list(place.pools.iterdir())
    again.open_gate()
    assert (again.path / "disk").read_bytes() == bytes(SIZE)


def write_until_refused(fd: int) -> tuple[int, int]:
    """Write until that fails; return how many bytes were written, and the errno."""
    written = 0
    while True:
        try:
            written += os.pwrite(fd, bytes([written >> 16 & 0xFF]) * 65536, written)
        except OSError as error:
            return written, error.errno or 0


@pytest.mark.parametrize("number", ["EIO", "ENOSPC"])
def test_a_full_log_over_a_frozen_backend_refuses_in_time_and_goes_on_when_it_thaws(
    place: Place, mounted: Callable[..., Mount], number: str
) -> None:
    below = place.image("disk", size=64 << 20)
    place.layers = [GATE, rwl(place, stall_timeout="1s", stall_errno=number)]
    mount = mounted()

    def kinds(prefix: str) -> list[str]:
        lines = (mount.control / "events").read_text().splitlines()
        return [kind for kind in (line.split(" ")[1] for line in lines) if kind.startswith(prefix)]

    mount.close_gate()
    fd = os.open(mount.path / "disk", os.O_RDWR)
    try:
        written, refused = write_until_refused(fd)
        assert refused == getattr(errno, number)
        assert 12 << 20 < written < 17 << 20
        (image,) = mount.status()["images"]
        assert image["state"] == "degraded"
        assert image["note"].startswith("layer 1: the log is full")
        assert kinds("log-") == ["log-stalled"]
        mount.open_gate()
        wait_until(lambda: layer_status(mount, 1)["dirty_bytes"] < 15 << 20, "space in the log")
        assert os.pwrite(fd, b"x" * 65536, written) == 65536
        os.fsync(fd)
        wait_until(lambda: kinds("log-") == ["log-stalled", "log-flows"], "the end of it")
        assert mount.status()["images"][0]["note"] == ""
    finally:
        os.close(fd)
    mount.unmount()
    content = below.read_bytes()
    assert all(content[at : at + 65536] == bytes([at >> 16 & 0xFF]) * 65536 for at in range(0, written, 65536))
    assert content[written : written + 65536] == b"x" * 65536


def test_a_file_system_on_the_image_survives_the_daemon(place: Place, mounted: Callable[..., Mount]) -> None:
    below = place.image("disk", size=64 << 20)
    place.layers = [rwl(place, size="128MiB")]
    mount = mounted()
    assert shell("mkfs.ext4 -q mnt/disk && e2fsck -fn mnt/disk", place.root).returncode == 0
    mount.kill()
    again = mounted()
    assert shell("e2fsck -fn mnt/disk", place.root).returncode == 0
    again.unmount()
    assert shell(f"e2fsck -fn {below}", place.root).returncode == 0
