"""A mount of very many images, and of many that are open at once."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.callers import in_thread, shell
from tests.support.mounts import PATIENCE, Mount, Place

NAMES = 1.0
"""Seconds in which the names of a thousand images are listed."""

DETAILS = 10.0
"""Seconds in which a thousand images that nobody looked at before are listed with their attributes."""


def test_a_thousand_images_are_listed_in_time(place: Place, mounted: Callable[..., Mount]) -> None:
    names = [f"image-{number:04}" for number in range(1000)]
    for number, name in enumerate(names):
        place.image(name, size=number * 512)
    mount = mounted()
    begin = time.monotonic()
    listed = shell("ls -1", mount.path).stdout.split()
    assert time.monotonic() - begin < NAMES
    assert listed == names
    begin = time.monotonic()
    details = shell("ls -l", mount.path).stdout.splitlines()[1:]
    assert time.monotonic() - begin < DETAILS
    assert [(line.split()[-1], int(line.split()[4])) for line in details] == [
        (name, number * 512) for number, name in enumerate(names)
    ]
    assert len(list((mount.control / "images").iterdir())) == 1000
    assert [image["name"] for image in mount.status()["images"]] == names
    assert not any(image["open"] for image in mount.status()["images"])


def test_a_hundred_images_are_open_at_once_and_each_has_its_own_data(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    for number in range(100):
        place.image(f"image-{number}", size=1 << 20)
    mount = mounted()

    def use(number: int) -> int:
        fd = os.open(mount.path / f"image-{number}", os.O_RDWR)
        for block in range(8):
            assert os.pwrite(fd, f"{number}/{block}".encode().ljust(4096, b"."), block * 131072) == 4096
        os.fsync(fd)
        return fd

    openers = [in_thread(use, number) for number in range(100)]
    fds = [opener.result(PATIENCE) for opener in openers]
    assert sum(image["open"] for image in mount.status()["images"]) == 100
    for number, fd in enumerate(fds):
        for block in range(8):
            assert os.pread(fd, 4096, block * 131072) == f"{number}/{block}".encode().ljust(4096, b".")
        os.close(fd)
    for number in range(100):
        assert (place.images / f"image-{number}").read_bytes()[:4096] == f"{number}/0".encode().ljust(4096, b".")
    mount.unmount()


def test_an_image_has_five_hundred_openers(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", b"." * 4096)
    mount = mounted()
    fds = [os.open(mount.path / "disk", os.O_RDONLY) for _ in range(500)]
    assert all(os.pread(fd, 1, 4095) == b"." for fd in fds)
    for fd in fds:
        os.close(fd)
    mount.unmount()


def test_openers_that_come_and_go_leave_nothing_behind(place: Place, mounted: Callable[..., Mount]) -> None:
    for number in range(20):
        place.image(f"image-{number}", size=4096)
    mount = mounted(release_after="0s")

    def descriptors() -> int:
        return len(list(Path(f"/proc/{mount.process.pid}/fd").iterdir()))

    def round_trip(number: int) -> None:
        for _ in range(5):
            with (mount.path / f"image-{number % 20}").open("r+b", buffering=0) as file:
                file.write(b"x")
            (mount.control / "images" / f"image-{number % 20}" / "status").read_text()

    def rounds() -> None:
        for future in [in_thread(round_trip, number) for number in range(40)]:
            future.result(PATIENCE)
        while any(image["open"] for image in mount.status()["images"]):
            pass

    rounds()
    before = descriptors()
    rounds()
    assert descriptors() <= before + 2
