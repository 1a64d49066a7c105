"""Whose an image is: one mount at a time, taken back after a crash, and what happens when it is taken away."""

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.test_lifecycle_ending import Writer
from tests.support.callers import outcome
from tests.support.ceph import Cluster
from tests.support.mounts import Mount, Place, fusecache, wait_until
from tests.support.rbd_mounts import MIB, Client, is_open, rbd_place, status_of

SIZE = 4 * MIB

BACK_WITHIN = 3.0
"""Seconds in which an image is back after a crash: less than the cluster waits for the client that died."""

TAKE = """
image = rbd.Image(pool, sys.argv[3])
for owner in image.lock_get_owners():
    image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, owner["owner"])
image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
image.write(b"taken", 0)
say("taken")
sys.stdin.readline()
image.close()
say("given up")
"""
"""Takes an image away from whoever has it, as an administrator or a failover does."""


@pytest.fixture
def image(ceph_cluster: Cluster, image_name: str) -> str:
    """The name of an empty image."""
    ceph_cluster.rbd("create", "--size", f"{SIZE}B", image_name)
    return image_name


@pytest.fixture
def unlocked(ceph_cluster: Cluster, image_name: str) -> str:
    """The name of an empty image without the feature exclusive-lock."""
    ceph_cluster.rbd("create", "--size", f"{SIZE}B", "--image-feature", "layering", image_name)
    return image_name


def test_an_image_is_open_in_one_mount_at_a_time_and_the_other_is_told_whose_it_is(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount], tmp_path: Path
) -> None:
    first = mounted(release_after="0s")
    second = mounted(rbd_place(tmp_path / "second", ceph_cluster), release_after="0s")
    with (first.path / image).open("r+b", buffering=0) as file:
        file.write(b"first")
        assert outcome((second.path / image).open, "rb") == errno.EBUSY
        (refusal,) = [line for line in second.events().splitlines() if image in line]
        assert "127.0.0.1" in refusal
        assert "127.0.0.1" in second.log.read_text()
        assert file.write(b" goes on") == 8
        os.fsync(file.fileno())
        assert (second.path / image).stat().st_size == SIZE
    wait_until(lambda: not is_open(first, image), "the image is released")
    assert (second.path / image).read_bytes()[:13] == b"first goes on"


def test_other_clients_do_not_write_to_an_image_that_is_open(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount]
) -> None:
    code = """
with rbd.Image(pool, sys.argv[3]) as image:
    try:
        image.write(b"other", 0)
        say("written")
    except rbd.ReadOnlyImage:
        say("refused")
"""
    mount = mounted(release_after="0s")
    with (mount.path / image).open("rb") as file, Client(ceph_cluster, code, image) as client:
        file.read(10)
        assert client.answer() == "refused"
    wait_until(lambda: not is_open(mount, image), "the image is released")
    with Client(ceph_cluster, code, image) as client:
        assert client.answer() == "written"


def test_a_crash_under_load_loses_nothing_that_was_acknowledged_and_the_image_is_back_at_once(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount], tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    for round_number in range(2):
        mount = mounted()
        writer = Writer(mount.path / image, sync=bool(round_number % 2))
        writer.wait_until_under_way(chance.randrange(100, 500))
        mount.kill()
        writer.end()
        again = mounted()
        begin = time.monotonic()
        with (again.path / image).open("r+b", buffering=0) as file:
            content = file.read()
            assert os.pwrite(file.fileno(), content[:100], 0) == 100
            assert time.monotonic() - begin < BACK_WITHIN
        again.unmount()
        (tmp_path / "exported").unlink(missing_ok=True)
        ceph_cluster.rbd("export", "--no-progress", image, tmp_path / "exported")
        writer.check(tmp_path / "exported")
        assert (tmp_path / "exported").read_bytes() == content


def test_an_image_without_exclusive_lock_is_read_only_and_never_stale(
    ceph_cluster: Cluster, unlocked: str, mounted: Callable[..., Mount]
) -> None:
    disk = mounted().path / unlocked
    assert disk.stat().st_mode & 0o777 == 0o400
    assert outcome(os.open, disk, os.O_RDWR) in (errno.EROFS, errno.EACCES)
    code = 'with rbd.Image(pool, sys.argv[3]) as image:\n    image.write(b"other", 4096)\nsay("written")'
    with disk.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 8192, 0) == bytes(8192)
        with Client(ceph_cluster, code, unlocked) as client:
            assert client.answer() == "written"
        assert os.pread(file.fileno(), 8192, 0) == bytes(4096) + b"other" + bytes(4091)


def test_the_status_names_the_feature_that_is_missing(
    ceph_cluster: Cluster, unlocked: str, mounted: Callable[..., Mount]
) -> None:
    mount = mounted()
    with (mount.path / unlocked).open("rb"):
        note = status_of(mount, unlocked)["note"]
        assert "exclusive-lock" in note
        assert "rbd feature enable" in note
        for shown in ((mount.control / "status").read_text(), fusecache("status", mount.path).stdout):
            assert f"{unlocked}: {note}\n" in shown


class TestALostLock:
    """Taken away by another client while the image is open and its pages are in the page cache."""

    @pytest.fixture
    def mount(self, image: str, mounted: Callable[..., Mount]) -> Mount:
        """The mount."""
        return mounted(release_after="0s")

    @pytest.fixture
    def fd(self, mount: Mount, image: str) -> Iterator[int]:
        """The image, open for reading and writing, and read."""
        fd = os.open(mount.path / image, os.O_RDWR)
        assert os.pread(fd, SIZE, 0) == bytes(SIZE)
        yield fd
        os.close(fd)

    @pytest.fixture
    def taker(self, ceph_cluster: Cluster, image: str, fd: int) -> Iterator[Client]:
        """Who has taken the image, and keeps it."""
        with Client(ceph_cluster, TAKE, image) as client:
            assert client.answer() == "taken"
            yield client

    def test_writes_fail_and_what_was_acknowledged_stays_durable(self, taker: Client, fd: int) -> None:
        assert outcome(os.pwrite, fd, b"late", 0) == errno.EROFS
        assert outcome(os.pwrite, fd, b"later", 8192) == errno.EROFS
        assert outcome(os.fsync, fd) == 0

    def test_nothing_stale_is_read_once_the_loss_is_noticed(
        self, taker: Client, fd: int, mount: Mount, image: str
    ) -> None:
        wait_until(lambda: status_of(mount, image)["state"] == "failed", "the loss is noticed")
        wait_until(lambda: outcome(os.pread, fd, 4096, 0) == errno.EIO, "the pages are dropped")
        assert outcome(os.pread, fd, 4096, MIB) == errno.EIO
        assert "lock" in status_of(mount, image)["note"]
        assert [line for line in mount.events().splitlines() if image in line and "lock" in line]
        assert outcome(os.open, mount.path / image, os.O_RDWR) == errno.EROFS

    def test_the_image_is_opened_anew_after_the_last_close(
        self, ceph_cluster: Cluster, image: str, mount: Mount
    ) -> None:
        fd = os.open(mount.path / image, os.O_RDWR)
        with Client(ceph_cluster, TAKE, image) as taker:
            assert taker.answer() == "taken"
            assert outcome(os.pwrite, fd, b"late", 0) == errno.EROFS
            os.close(fd)
            wait_until(lambda: not is_open(mount, image), "the image is closed")
            assert outcome((mount.path / image).open, "rb") == errno.EBUSY
            taker.go_on()
            assert taker.answer() == "given up"
        with (mount.path / image).open("r+b", buffering=0) as file:
            assert file.read(10) == b"taken" + bytes(5)
            assert os.pwrite(file.fileno(), b"again", 0) == 5

    def test_other_images_go_on(self, taker: Client, fd: int, mount: Mount, image: str, ceph_cluster: Cluster) -> None:
        other = f"{image}-other"
        ceph_cluster.rbd("create", "--size", f"{SIZE}B", other)
        assert outcome(os.pwrite, fd, b"late", 0) == errno.EROFS
        with (mount.path / other).open("r+b", buffering=0) as file:
            assert file.write(b"goes on") == 7


def test_a_mount_that_lost_a_lock_ends_well(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount], place: Place
) -> None:
    mount = mounted()
    fd = os.open(mount.path / image, os.O_RDWR)
    with Client(ceph_cluster, TAKE, image) as taker:
        assert taker.answer() == "taken"
        os.close(fd)
        mount.unmount()
    assert not list((place.state / "mounts").glob("*.json"))


def test_all_images_that_were_open_when_a_lock_was_taken_away_can_be_opened_anew(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount]
) -> None:
    other = f"{image}-other"
    ceph_cluster.rbd("create", "--size", f"{SIZE}B", other)
    mount = mounted(release_after="0s")
    with (mount.path / image).open("rb"), (mount.path / other).open("r+b", buffering=0) as file:
        assert file.write(b"before") == 6
        with Client(ceph_cluster, TAKE, image) as taker:
            assert taker.answer() == "taken"
            # The cluster shuts out the whole client, with all images that it has open.
            wait_until(lambda: status_of(mount, other)["state"] == "failed", "the loss is noticed")
            assert outcome(file.write, b"late") == errno.EROFS
    wait_until(lambda: not is_open(mount, other), "the image is closed")
    with (mount.path / other).open("r+b", buffering=0) as file:
        assert file.read(6) == b"before"
        assert file.write(b"after") == 5
