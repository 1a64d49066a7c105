"""A mount under load keeps idle CPUs awake where that pays, and lets them sleep when the load is over."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

from fusecache.fuse import awake
from tests.support.mounts import Mount, Place, wait_until


def holds(pid: int) -> bool:
    """Say whether a process has the device open."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if fd.readlink() == awake.DEVICE:
                return True
        except FileNotFoundError:
            continue
    return False


def test_idle_cpus_are_kept_awake_under_load_only(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", size=1 << 20)
    mount = mounted()
    expected = awake.pays() and os.access(awake.DEVICE, os.W_OK)
    over = threading.Event()
    written = 0

    def load() -> None:
        nonlocal written
        with (mount.path / "disk").open("r+b", buffering=0) as disk:
            while not over.is_set():
                os.pwrite(disk.fileno(), bytes(4096), 0)
                written += 1

    assert not holds(mount.process.pid)
    writer = threading.Thread(target=load)
    writer.start()
    try:
        wait_until(lambda: written > 5000 and holds(mount.process.pid) == expected, "the load is noticed")
    finally:
        over.set()
        writer.join()
    wait_until(lambda: not holds(mount.process.pid), "the load is over")
