"""Everyday tools over files of the mount: cp, dd, cmp, tar, sha256sum, and memory maps."""

import hashlib
import mmap
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounts import Mount, Place
from tests.support.programs import allocated, run

MIB = 1 << 20
SIZE = 16 * MIB


def sparse_content(seed: int) -> bytes:
    """Return content that is mostly zeroes, with data at both ends."""
    content = random.Random(seed)
    return content.randbytes(2 * MIB) + bytes(SIZE - 3 * MIB) + content.randbytes(MIB)


def sparse_file(path: Path, content: bytes) -> Path:
    """Write *content* to *path*, with holes for blocks of zeroes."""
    with path.open("wb") as file:
        file.truncate(len(content))
        for offset in range(0, len(content), MIB):
            if any(content[offset : offset + MIB]):
                file.seek(offset)
                file.write(content[offset : offset + MIB])
    return path


@pytest.mark.parametrize("sparse", ["auto", "always", "never"])
def test_cp_copies_out_of_an_image(
    sparse: str, tmp_path: Path, place: Place, mounted: Callable[..., Mount], seed: int
) -> None:
    content = sparse_content(seed)
    sparse_file(place.images / "disk", content)
    copy = tmp_path / "copy"
    run("cp", f"--sparse={sparse}", mounted().path / "disk", copy)
    assert copy.read_bytes() == content
    if sparse != "never":
        assert allocated(copy) < 4 * MIB


# Not auto: there cp trusts O_TRUNC, which has no effect on an image, for the zeroes of its holes.
@pytest.mark.parametrize("sparse", ["always", "never"])
def test_cp_copies_into_an_image(
    sparse: str, tmp_path: Path, place: Place, mounted: Callable[..., Mount], seed: int
) -> None:
    content = sparse_content(seed)
    source = sparse_file(tmp_path / "source", content)
    stored = place.image("disk", b"\xff" * SIZE)
    disk = mounted().path / "disk"
    run("cp", f"--sparse={sparse}", source, disk)
    run("cmp", source, disk)
    assert stored.read_bytes() == content
    assert (allocated(stored) < 4 * MIB) == (sparse == "always")


@pytest.mark.parametrize("sparse", ["auto", "always", "never"])
def test_cp_copies_to_a_new_image(
    sparse: str, tmp_path: Path, place: Place, mounted: Callable[..., Mount], seed: int
) -> None:
    content = sparse_content(seed)
    source = sparse_file(tmp_path / "source", content)
    disk = mounted(create=True).path / "disk"
    run("cp", f"--sparse={sparse}", source, disk)
    run("cmp", source, disk)
    stored = place.images / "disk"
    assert stored.read_bytes() == content
    assert (allocated(stored) < 4 * MIB) == (sparse != "never")


@pytest.mark.parametrize("block", ["512", "4K", "1000K", "1M"])
def test_dd_copies_past_the_page_cache(
    block: str, tmp_path: Path, place: Place, mounted: Callable[..., Mount], seed: int
) -> None:
    # Not a whole number of any of the blocks but the smallest.
    size = 2 * MIB + 512
    content = random.Random(seed).randbytes(size)
    source = tmp_path / "source"
    source.write_bytes(content)
    stored = place.image("disk", size=size)
    disk = mounted().path / "disk"
    run("dd", f"if={source}", f"of={disk}", f"bs={block}", "oflag=direct", "conv=notrunc,fsync", "status=none")
    assert stored.read_bytes() == content
    copy = tmp_path / "copy"
    run("dd", f"if={disk}", f"of={copy}", f"bs={block}", "iflag=direct", "status=none")
    assert copy.read_bytes() == content


def test_dd_writes_anywhere_in_an_image(place: Place, mounted: Callable[..., Mount]) -> None:
    stored = place.image("disk", b"\xff" * SIZE)
    disk = mounted().path / "disk"
    for flag in ("direct", "dsync", "sync"):
        run("dd", "if=/dev/zero", f"of={disk}", "bs=777", "seek=3", "count=2", f"oflag={flag}", "conv=notrunc")
        assert stored.read_bytes() == b"\xff" * 2331 + bytes(1554) + b"\xff" * (SIZE - 3885)


def test_tar_packs_and_sums_agree(tmp_path: Path, place: Place, mounted: Callable[..., Mount], seed: int) -> None:
    content = sparse_content(seed)
    for name in ("one", "two"):
        sparse_file(place.images / name, content)
    mount = mounted()
    told = run("sha256sum", mount.path / "one", mount.path / "two").split()
    assert told[::2] == [hashlib.sha256(content).hexdigest()] * 2
    archive, unpacked = tmp_path / "archive.tar", tmp_path / "unpacked"
    run("tar", "--create", "--sparse", "--file", archive, "--directory", mount.path, "one", "two")
    assert archive.stat().st_size < 8 * MIB
    unpacked.mkdir()
    run("tar", "--extract", "--file", archive, "--directory", unpacked)
    assert (unpacked / "one").read_bytes() == (unpacked / "two").read_bytes() == content


def test_a_memory_map_and_its_file_are_one(place: Place, mounted: Callable[..., Mount], seed: int) -> None:
    size = MIB + 1000
    expected = bytearray(random.Random(seed).randbytes(size))
    stored = place.image("disk", bytes(expected))
    fd = os.open(mounted().path / "disk", os.O_RDWR)
    with os.fdopen(fd, "r+b", buffering=0) as file, mmap.mmap(fd, size) as memory:
        assert memory[:] == expected
        for offset, text in ((4090, b"over a page"), (size - 7, b"the end"), (0, b"start")):
            memory[offset : offset + len(text)] = expected[offset : offset + len(text)] = text
        memory.flush()
        assert stored.read_bytes() == expected
        os.pwrite(file.fileno(), b"written", 70_000)
        expected[70_000:70_007] = b"written"
        assert memory[:] == expected
        memory[200_000:200_003] = expected[200_000:200_003] = b"map"
        assert os.pread(fd, size, 0) == expected
    assert stored.read_bytes() == expected


def test_a_memory_map_sees_what_is_written_past_the_page_cache(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", size=MIB)
    path = mounted().path / "disk"
    fd, direct = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR | os.O_DIRECT)
    block = mmap.mmap(-1, 4096)
    block[:] = b"d" * 4096
    with os.fdopen(fd, "r+b"), os.fdopen(direct, "r+b", buffering=0), mmap.mmap(fd, MIB) as memory:
        assert memory[8192:8196] == bytes(4)
        os.pwrite(direct, block, 8192)
        assert memory[8192:12288] == b"d" * 4096
        memory[8192] = ord("m")
        assert os.preadv(direct, [block], 8192) == 4096
        assert block[:2] == b"md"
        with mmap.mmap(direct, MIB) as direct_memory:
            direct_memory[16384] = ord("x")
            direct_memory.flush()
        assert os.pread(fd, 1, 16384) == b"x"


def test_a_private_memory_map_leaves_the_file_alone(place: Place, mounted: Callable[..., Mount]) -> None:
    stored = place.image("disk", b"a" * MIB)
    fd = os.open(mounted().path / "disk", os.O_RDWR)
    with os.fdopen(fd, "r+b"), mmap.mmap(fd, MIB, flags=mmap.MAP_PRIVATE) as memory:
        memory[:5] = b"other"
        assert memory[:6] == b"othera"
    assert stored.read_bytes() == b"a" * MIB
