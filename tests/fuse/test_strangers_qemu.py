"""qemu's tools take a file of the mount for a disk, and find there what they put."""

import json
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mounts import Mount, Place
from tests.support.programs import allocated, attempt, run

MIB = 1 << 20
SIZE = 32 * MIB
ISLANDS = ((0, 4 * MIB), (20 * MIB, 2 * MIB))
"""Where the source of a conversion has data, as offset and length; elsewhere it has holes."""


@pytest.fixture
def source(tmp_path: Path, seed: int) -> Path:
    """A sparse raw image outside the mount."""
    path = tmp_path / "source.raw"
    content = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset, length in ISLANDS:
            file.seek(offset)
            file.write(content.randbytes(length))
    return path


def mapped(file: Path) -> list[tuple[int, int]]:
    """Return where ``qemu-img map`` finds data, as offset and length."""
    extents = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", file))
    return [(extent["start"], extent["length"]) for extent in extents if extent["data"]]


@pytest.mark.parametrize("cache", ["none", "writeback", "writethrough"])
def test_qemu_img_converts_into_an_image(
    cache: str, source: Path, tmp_path: Path, place: Place, mounted: Callable[..., Mount]
) -> None:
    stored = place.image("disk", b"\xff" * SIZE)
    disk = mounted().path / "disk"
    packed = tmp_path / "source.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, packed)
    run("qemu-img", "convert", "-n", "-t", cache, "-f", "qcow2", "-O", "raw", packed, disk)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", packed, disk)
    assert mapped(disk) == [*ISLANDS]
    assert stored.read_bytes() == source.read_bytes()


def test_qemu_img_compare_sees_a_difference(source: Path, place: Place, mounted: Callable[..., Mount]) -> None:
    content = bytearray(source.read_bytes())
    content[-1] ^= 1
    place.image("disk", bytes(content))
    result = attempt("qemu-img", "compare", "-f", "raw", "-F", "raw", source, mounted().path / "disk")
    assert result.returncode == 1
    assert "Content mismatch" in result.stdout


def test_qemu_img_converts_to_a_new_name_again_and_again(
    source: Path, place: Place, mounted: Callable[..., Mount]
) -> None:
    mount = mounted(create=True)
    # Several, because what disturbs an open depends on its time.
    for number in range(8):
        new = mount.path / f"new-{number}"
        run("qemu-img", "convert", "-f", "raw", "-O", "raw", source, new)
        run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, new)
    assert (place.images / "new-0").read_bytes() == source.read_bytes()
    assert allocated(place.images / "new-0") < SIZE // 2


@pytest.mark.parametrize("cache", ["none", "writeback"])
def test_qemu_img_converts_out_of_an_image(
    cache: str, source: Path, tmp_path: Path, place: Place, mounted: Callable[..., Mount]
) -> None:
    place.image("disk", source.read_bytes())
    packed = tmp_path / "copy.qcow2"
    run("qemu-img", "convert", "-T", cache, "-f", "raw", "-O", "qcow2", mounted().path / "disk", packed)
    run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, packed)


def test_qemu_img_info_tells_size_and_space(place: Place, mounted: Callable[..., Mount]) -> None:
    stored = place.image("disk", b"x" * MIB, size=SIZE + 512)
    told = json.loads(run("qemu-img", "info", "--output=json", "-f", "raw", mounted().path / "disk"))
    assert told["virtual-size"] == SIZE + 512
    assert told["actual-size"] == allocated(stored)


def test_a_qcow2_inside_an_image_passes_its_check(
    source: Path, tmp_path: Path, place: Place, mounted: Callable[..., Mount]
) -> None:
    made = tmp_path / "made.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, made)
    # An image does not grow by writing, so it must have room for what the qcow2 will need.
    stored = place.image("disk", made.read_bytes(), size=2 * SIZE)
    disk = mounted().path / "disk"
    write = ["-c", "write -P 0x5a 8M 1M", "-c", "write -z 1M 1M", "-c", "discard 20M 1M", "-c", "flush"]
    run("qemu-io", "-f", "qcow2", "-t", "none", *write, disk)
    assert "No errors" in run("qemu-img", "check", "-f", "qcow2", disk)
    assert "No errors" in run("qemu-img", "check", "-f", "qcow2", stored)
    said = run("qemu-io", "-f", "qcow2", "-r", "-c", "read -P 0x5a 8M 1M", "-c", "read -P 0 1M 1M", disk)
    assert "verification failed" not in said


def test_an_overlay_is_committed_into_an_image(
    source: Path, tmp_path: Path, place: Place, mounted: Callable[..., Mount]
) -> None:
    stored = place.image("disk", source.read_bytes())
    disk = mounted().path / "disk"
    overlay = tmp_path / "overlay.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-F", "raw", "-b", disk, overlay)
    run("qemu-io", "-f", "qcow2", "-c", "write -P 0x33 3M 2M", overlay)
    run("qemu-img", "commit", overlay)
    expected = bytearray(source.read_bytes())
    expected[3 * MIB : 5 * MIB] = b"\x33" * (2 * MIB)
    assert stored.read_bytes() == expected


REQUESTS = [
    *("write -P 0xaa 0 8M", "read -P 0xaa 0 8M"),
    *("write -z 64k 64k", "read -P 0 64k 64k"),
    *("write -z -u 1M 1M", "read -P 0 1M 1M"),
    *("discard 2M 1M", "read -P 0 2M 1M"),
    *("write -P 7 1234 777", "read -P 7 1234 777", "read -P 0xaa 0 1234", "read -P 0xaa 2011 2085"),
    *("writev -P 9 4M 4k 64k 512", "readv -P 9 4M 68k 512"),
    *("aio_write -P 3 5M 64k", "aio_write -P 4 5184k 64k", "aio_write -z 6M 64k", "aio_flush"),
    *("read -P 3 5M 64k", "read -P 4 5184k 64k", "read -P 0 6M 64k", "flush"),
]


@pytest.mark.parametrize("cache", ["none", "writeback"])
@pytest.mark.parametrize("aio", ["threads", "native", "io_uring"])
def test_qemu_io_reads_what_it_wrote_and_discards(
    aio: str, cache: str, tmp_path: Path, place: Place, mounted: Callable[..., Mount]
) -> None:
    if aio == "io_uring" and not _has_io_uring(tmp_path):
        pytest.skip("the kernel refuses io_uring")
    if (aio, cache) == ("native", "writeback"):
        # qemu's own rule: Linux AIO needs O_DIRECT.
        cache = "directsync"
    stored = place.image("disk", size=SIZE)
    commands = [word for request in REQUESTS for word in ("-c", request)]
    said = run("qemu-io", "-f", "raw", "-t", cache, "-i", aio, *commands, mounted().path / "disk")
    assert "verification failed" not in said
    # Of 8 MiB, unmapped and discarded are 2; zeroes that were written without -u keep their space.
    assert 6 * MIB <= allocated(stored) < 6 * MIB + 64 * 1024
    content = stored.read_bytes()
    assert content[:1234] == b"\xaa" * 1234
    assert content[1234:2011] == b"\x07" * 777
    assert content[MIB : 3 * MIB] == bytes(2 * MIB)


def _has_io_uring(directory: Path) -> bool:
    probe = directory / "probe"
    probe.write_bytes(bytes(4096))
    return attempt("qemu-io", "-f", "raw", "-i", "io_uring", "-c", "read 0 4k", probe).returncode == 0


def test_a_discarded_image_takes_no_space(place: Place, mounted: Callable[..., Mount]) -> None:
    stored = place.image("disk", b"\xff" * SIZE)
    disk = mounted().path / "disk"
    assert allocated(stored) >= SIZE
    run("qemu-io", "-f", "raw", "-t", "none", "-d", "unmap", "-c", f"discard 0 {SIZE}", disk)
    assert allocated(stored) == allocated(disk) == 0
    assert mapped(disk) == []


@contextmanager
def used_by_qemu(disk: Path) -> Iterator[None]:
    """Let a qemu have the qcow2 in *disk* open for writing for the length of a block."""
    command = ["qemu-io", "-f", "qcow2", str(disk)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdin
        assert qemu.stdout
        qemu.stdin.write("write 0 4k\n")
        qemu.stdin.flush()
        assert "wrote 4096/4096" in qemu.stdout.readline()
        yield
        qemu.stdin.close()
    assert qemu.returncode == 0


def test_qemu_refuses_a_disk_that_another_qemu_writes_to(
    tmp_path: Path, place: Place, mounted: Callable[..., Mount]
) -> None:
    made = tmp_path / "made.qcow2"
    run("qemu-img", "create", "-f", "qcow2", made, str(MIB))
    place.image("disk", made.read_bytes(), size=2 * MIB)
    disk = mounted().path / "disk"
    write = ("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 4k", disk)
    with used_by_qemu(disk):
        refused = attempt(*write)
        assert refused.returncode == 1
        assert 'Failed to get "write" lock' in refused.stderr
    assert "wrote 4096/4096" in run(*write)
