"""A file system inside an image: on a loop device over the mounted file, and made in the file itself."""

import hashlib
import os
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.mounts import Mount, Place
from tests.support.programs import allocated, loop_device, mounted_ext4, run

MIB = 1 << 20
SIZE = 64 * MIB


def write_files(directory: Path, count: int, content: random.Random) -> dict[str, str]:
    """Write files of 2 MiB with fsync; return their checksums by name."""
    sums = {}
    for number in range(count):
        data = content.randbytes(2 * MIB)
        with (directory / f"file-{number}").open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        sums[f"file-{number}"] = hashlib.sha256(data).hexdigest()
    return sums


def sums_of(directory: Path) -> dict[str, str]:
    """Return the checksums of the files in *directory* by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir() if path.is_file()}


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "buffered"])
def test_an_ext4_on_a_loop_device_keeps_its_files_and_gives_space_back(
    direct: bool, tmp_path: Path, place: Place, mounted: Callable[..., Mount], seed: int
) -> None:
    stored = place.image("disk", size=SIZE)
    mount = mounted()
    with ExitStack() as stack:
        device = stack.enter_context(loop_device(mount.path / "disk", direct=direct))
        run("mkfs.ext4", "-q", device)
        with mounted_ext4(device, tmp_path / "inside") as inside:
            sums = write_files(inside, 16, random.Random(seed))
            run("sync", "--file-system", inside)
            full = allocated(stored)
            assert full > 32 * MIB
            for number in range(4, 16):
                (inside / f"file-{number}").unlink()
                del sums[f"file-{number}"]
            run("sync", "--file-system", inside)
            run("fstrim", inside)
            assert allocated(stored) < full - 20 * MIB
        run("e2fsck", "-fn", device)
        with mounted_ext4(device, tmp_path / "inside") as inside:
            assert sums_of(inside) == sums
    mount.unmount()
    run("e2fsck", "-fn", stored)


def test_an_ext4_made_in_the_file_is_whole(
    tmp_path: Path, place: Place, mounted: Callable[..., Mount], seed: int
) -> None:
    stored = place.image("disk", size=SIZE)
    mount = mounted()
    outside, copies = tmp_path / "outside", tmp_path / "copies"
    outside.mkdir()
    copies.mkdir()
    sums = write_files(outside, 4, random.Random(seed))
    run("mkfs.ext4", "-q", "-F", "-d", outside, mount.path / "disk")
    run("e2fsck", "-fn", mount.path / "disk")
    for name in sums:
        run("debugfs", "-R", f"dump /{name} {copies / name}", mount.path / "disk")
    assert sums_of(copies) == sums
    mount.unmount()
    run("e2fsck", "-fn", stored)


def test_a_discard_of_the_whole_loop_device_frees_the_whole_image(place: Place, mounted: Callable[..., Mount]) -> None:
    stored = place.image("disk", b"\xff" * SIZE)
    with loop_device(mounted().path / "disk", direct=True) as device:
        run("blkdiscard", device)
        assert allocated(stored) == 0
        run("blkdiscard", "--zeroout", "--offset", str(MIB), "--length", str(MIB), device)
        assert device.read_bytes() == bytes(SIZE)
