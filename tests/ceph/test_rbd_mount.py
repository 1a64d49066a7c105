"""The images of a Ceph pool as files: their bytes, space, names and snapshots, as other clients see them."""

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.callers import outcome
from tests.support.ceph import Cluster
from tests.support.mounts import Mount, Place, fusecache, wait_until
from tests.support.programs import run
from tests.support.rbd_mounts import MIB, Client, is_open, status_of

SIZE = 16 * MIB
ODD_SIZE = 9 * MIB + 12345
NAMES_WITHIN, LISTED_WITHIN = 1.0, 10.0
"""Seconds for the names of a thousand images, and for all that ``ls -l`` shows of them."""


@pytest.fixture
def image(ceph_cluster: Cluster, image_name: str) -> str:
    """The name of an empty image."""
    ceph_cluster.rbd("create", "--size", f"{SIZE}B", image_name)
    return image_name


def exported(cluster: Cluster, name: str, into: Path) -> bytes:
    """Return the bytes of an image or snapshot as Ceph's own client sees them."""
    into.unlink(missing_ok=True)
    cluster.rbd("export", "--no-progress", name, into)
    return into.read_bytes()


def used(cluster: Cluster, name: str) -> int:
    """Return how many bytes of the pool an image takes."""
    (image,) = json.loads(cluster.rbd("du", "--format", "json", name))["images"]
    size = image["used_size"]
    assert isinstance(size, int)
    return size


def test_what_is_written_through_the_mount_is_in_the_image(
    ceph_cluster: Cluster, image_name: str, mounted: Callable[..., Mount], tmp_path: Path, seed: int
) -> None:
    ceph_cluster.rbd("create", "--size", f"{ODD_SIZE}B", image_name)
    disk = mounted().path / image_name
    assert disk.stat().st_size == ODD_SIZE
    chance = random.Random(seed)
    reference = bytearray(ODD_SIZE)
    with disk.open("r+b", buffering=0) as file:
        for _ in range(50):
            first, end = sorted(chance.sample(range(ODD_SIZE + 1), 2))
            end = min(end, first + 2 * MIB)
            reference[first:end] = chance.randbytes(end - first)
            assert os.pwrite(file.fileno(), reference[first:end], first) == end - first
        os.fsync(file.fileno())
        assert exported(ceph_cluster, image_name, tmp_path / "exported") == reference
    assert disk.read_bytes() == reference


def test_what_other_clients_imported_is_read_through_the_mount(
    ceph_cluster: Cluster, image_name: str, mounted: Callable[..., Mount], tmp_path: Path, seed: int
) -> None:
    content = random.Random(seed).randbytes(ODD_SIZE)
    (tmp_path / "content").write_bytes(content)
    ceph_cluster.rbd("import", "--no-progress", tmp_path / "content", image_name)
    disk = mounted().path / image_name
    assert disk.read_bytes() == content
    fd = os.open(disk, os.O_RDONLY)
    try:
        assert os.pread(fd, 100, ODD_SIZE - 50) == content[-50:]
        assert os.pread(fd, 100, ODD_SIZE) == b""
    finally:
        os.close(fd)


def test_trimming_frees_the_space_in_the_pool(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount], tmp_path: Path
) -> None:
    disk = mounted().path / image
    disk.write_bytes(b"d" * SIZE)
    assert used(ceph_cluster, image) == SIZE
    run("fallocate", "--punch-hole", "--offset", str(4 * MIB), "--length", str(8 * MIB), str(disk))
    assert used(ceph_cluster, image) == SIZE - 8 * MIB
    # Of no granularity that librbd knows: the bytes read as zeroes all the same.
    run("fallocate", "--punch-hole", "--offset", "1000", "--length", "5000", str(disk))
    expected = b"d" * 1000 + bytes(5000) + b"d" * (4 * MIB - 6000) + bytes(8 * MIB) + b"d" * 4 * MIB
    assert disk.read_bytes() == expected
    assert exported(ceph_cluster, image, tmp_path / "exported") == expected


def test_a_thousand_images_are_listed_at_once(
    ceph_cluster: Cluster, place: Place, mounted: Callable[..., Mount]
) -> None:
    ceph_cluster.rbd("namespace", "create", "rbd/thousand")
    code = """
from concurrent.futures import ThreadPoolExecutor
pool.set_namespace("thousand")
with ThreadPoolExecutor(16) as threads:
    list(threads.map(lambda number: rbd.RBD().create(pool, f"disk-{number:04}", 1 << 20), range(1000)))
say("made")
"""
    with Client(ceph_cluster, code) as client:
        assert client.answer() == "made"
    place.backend_options["namespace"] = "thousand"
    mount = mounted()
    begin = time.monotonic()
    names = list(mount.path.iterdir())
    named = time.monotonic() - begin
    assert len(names) == 1001
    assert named < NAMES_WITHIN
    mount.unmount()
    again = mounted()
    begin = time.monotonic()
    lines = run("ls", "-l", str(again.path)).splitlines()
    assert time.monotonic() - begin < LISTED_WITHIN
    assert sum(f" {MIB} " in line for line in lines) == 1000


def test_what_another_client_wrote_between_two_opens_is_seen(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount]
) -> None:
    mount = mounted(release_after="0s")
    disk = mount.path / image
    code = """
with rbd.Image(pool, sys.argv[3]) as image:
    image.write(sys.argv[4].encode() * 4096, 8192)
say("written")
"""
    for content in "ab":
        disk.read_bytes()
        wait_until(lambda: not is_open(mount, image), "the image is released")
        with Client(ceph_cluster, code, image, content) as client:
            assert client.answer() == "written"
        assert disk.read_bytes() == bytes(8192) + content.encode() * 4096 + bytes(SIZE - 12288)


def test_images_that_come_go_and_change_their_size_are_noticed(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount]
) -> None:
    mount = mounted(release_after="0s")
    disk, other = mount.path / image, mount.path / f"{image}-other"
    inode = disk.stat().st_ino
    ceph_cluster.rbd("rename", image, other.name)
    assert not disk.exists()
    assert other.stat().st_ino == inode
    ceph_cluster.rbd("resize", "--no-progress", "--size", "1M", "--allow-shrink", other.name)
    assert other.stat().st_size == MIB
    ceph_cluster.rbd("remove", "--no-progress", other.name)
    assert not other.exists()
    assert outcome(other.open) == errno.ENOENT


def test_images_are_made_grown_renamed_and_removed_through_the_mount(
    ceph_cluster: Cluster, image_name: str, mounted: Callable[..., Mount], tmp_path: Path
) -> None:
    mount = mounted(create=True, rename=True, remove=True, resize=True, release_after="0s")
    disk, other = mount.path / image_name, mount.path / f"{image_name}-other"
    (tmp_path / "content").write_bytes(b"c" * (5 * MIB + 7))
    run("cp", str(tmp_path / "content"), str(disk))
    os.truncate(disk, 6 * MIB)
    disk.rename(other)
    assert exported(ceph_cluster, other.name, tmp_path / "exported") == b"c" * (5 * MIB + 7) + bytes(MIB - 7)
    wait_until(lambda: not is_open(mount, other.name), "the image is released")
    other.unlink()
    assert other.name not in ceph_cluster.rbd("ls").split()
    # The names of snapshots are not given to images.
    assert outcome(lambda: (mount.path / "a@b").open("xb")) not in (0, errno.EIO)


class TestSnapshots:
    """Of an image full of ``1`` when ``one`` was made, and of ``2`` when ``two`` was."""

    @pytest.fixture
    def mount(self, ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount]) -> Mount:
        """The mount; the image is not open."""
        mount = mounted(release_after="0s", resize=True, rename=True, remove=True)
        for name, content in (("one", b"1"), ("two", b"2")):
            (mount.path / image).write_bytes(content * SIZE)
            ceph_cluster.rbd("snap", "create", "--no-progress", f"{image}@{name}")
        (mount.path / image).write_bytes(b"3" * SIZE)
        return mount

    def test_they_are_read_and_stay_what_they_are(self, mount: Mount, image: str) -> None:
        one, two = (mount.path / f"{image}@{name}" for name in ("one", "two"))
        with one.open("rb") as file:
            assert file.read(MIB) == b"1" * MIB
            (mount.path / image).write_bytes(b"4" * SIZE)
            assert file.read() == b"1" * (SIZE - MIB)
        assert two.read_bytes() == b"2" * SIZE
        assert (mount.path / image).read_bytes() == b"4" * SIZE

    def test_they_are_not_changed(self, mount: Mount, image: str, ceph_cluster: Cluster) -> None:
        one = mount.path / f"{image}@one"
        assert one.stat().st_mode & 0o777 == 0o400
        for change, expected in (
            (lambda: os.open(one, os.O_WRONLY), {errno.EROFS, errno.EACCES}),
            (lambda: os.truncate(one, 0), {errno.EROFS, errno.EACCES}),
            (one.unlink, {errno.EPERM}),
            (lambda: one.rename(mount.path / f"{image}-new"), {errno.EPERM}),
        ):
            assert outcome(change) in expected
        assert len(json.loads(ceph_cluster.rbd("snap", "ls", "--format", "json", image))) == 2

    def test_they_are_listed_while_their_image_is_open(self, mount: Mount, image: str) -> None:
        snapshots = {mount.path / f"{image}@{name}" for name in ("one", "two")}
        wait_until(lambda: not is_open(mount, image), "the image is released")
        assert snapshots.isdisjoint(mount.path.iterdir())
        with (mount.path / image).open("rb"):
            assert snapshots <= set(mount.path.iterdir())
        assert not (mount.path / f"{image}@three").exists()

    def test_they_are_in_the_status_while_open_and_have_no_control_files(self, mount: Mount, image: str) -> None:
        with (mount.path / f"{image}@one").open("rb") as file:
            file.read(10)
            shown = status_of(mount, f"{image}@one")
            assert (shown["open"], shown["size"], shown["layers"]) == (True, SIZE, [])
            assert not is_open(mount, image)
            assert not (mount.control / "images" / f"{image}@one").exists()
            assert outcome((mount.control / "flush").write_text, "all\n") == 0


def test_a_snapshot_is_made_while_the_image_is_written(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount]
) -> None:
    mount = mounted()
    with (mount.path / image).open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"before", 0)
        ceph_cluster.rbd("snap", "create", "--no-progress", f"{image}@now")
        os.pwrite(file.fileno(), b"after!", 0)
        assert (mount.path / f"{image}@now").read_bytes()[:6] == b"before"
        assert os.pread(file.fileno(), 6, 0) == b"after!"


@pytest.mark.parametrize(
    ("options", "told"),
    [({"pool": "nowhere"}, "nowhere"), ({"namespace": "nowhere"}, "nowhere")],
)
def test_a_place_that_is_not_there_is_not_mounted(place: Place, options: dict[str, str], told: str) -> None:
    place.backend_options.update(options)
    result = fusecache("mount", place.write_config(), place.mountpoint)
    assert (result.returncode, told in result.stderr) == (1, True), result.stderr
    assert not place.mountpoint.is_mount()


@pytest.fixture
def silent(place: Place, tmp_path: Path) -> Place:
    """A config for a cluster that does not answer."""
    conf = tmp_path / "ceph.conf"
    conf.write_text("[global]\nmon host = [v2:127.0.0.1:1]\nauth client required = none\n")
    place.backend_options["conf"] = str(conf)
    return place


def test_a_cluster_that_does_not_answer_is_not_mounted(silent: Place) -> None:
    silent.backend_options["timeout"] = "2s"
    begin = time.monotonic()
    result = fusecache("mount", silent.write_config(), silent.mountpoint)
    assert 2.0 <= time.monotonic() - begin < 8.0
    assert result.returncode == 1
    assert "did not answer within 2 s" in result.stderr, result.stderr
    assert not silent.mountpoint.is_mount()


def test_a_signal_ends_the_wait_for_a_cluster_that_does_not_answer(silent: Place) -> None:
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "fusecache",
        "mount",
        "-f",
        silent.write_config(),
        silent.mountpoint,
    ]
    daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_until(lambda: "/librados" in Path(f"/proc/{daemon.pid}/maps").read_text(), "it turns to the cluster")
        daemon.terminate()
        assert daemon.wait(8.0) == 0
    finally:
        daemon.kill()
        daemon.wait()
    assert not silent.mountpoint.is_mount()
