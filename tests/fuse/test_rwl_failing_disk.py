"""The disk under a pool fails while the image is in use: its users notice nothing, and the image has everything."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.test_rwl_mounted import SIZE, layer_status, rwl
from tests.support.mounts import Mount, Place, wait_until

pytest.importorskip("fusecache_rwl", reason="the part rwl is left out")

from layers.rwl.tests.support.failing_disk import failing_disk


def write(path: Path, offset: int, data: bytes) -> None:
    """Write and fsync."""
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, offset)
        os.fsync(file.fileno())


def test_an_image_outlives_the_disk_of_its_pool(place: Place, mounted: Callable[..., Mount]) -> None:
    with failing_disk(40 << 20) as disk:
        below = place.image("disk", size=SIZE)
        place.layers = [rwl(place, path=str(disk.path), writeback_rate="0")]
        mount = mounted()
        try:
            image = mount.path / "disk"
            write(image, 0, b"durable in the log")
            assert below.read_bytes()[:4] == bytes(4)
            disk.fail()
            write(image, 4096, b"durable below")
            assert below.read_bytes()[:4096].rstrip(b"\0") == b"durable in the log"
            assert below.read_bytes()[4096:].rstrip(b"\0") == b"durable below"
            status = layer_status(mount)
            assert (status["state"], status["dirty_bytes"], status["errors"]) == ("degraded", 0, 1)
            write(image, 8192, b"straight through")
            assert below.read_bytes()[8192:].rstrip(b"\0") == b"straight through"
            events = (mount.control / "events").read_text()
            assert "log-failed" in events
            assert "log-aside" in events
            disk.mend()
            (mount.control / "images" / "disk" / "flush").write_text("0")
            wait_until(lambda: layer_status(mount)["state"] == "clean", "the log is used again")
            write(image, 0, b"into the log again")
            assert below.read_bytes()[:7] == b"durable"
            assert image.read_bytes()[:18] == b"into the log again"
        finally:
            mount.unmount()
        assert below.read_bytes()[:18] == b"into the log again"
