"""Snapshots through the control directory: of one instant, with all that was acknowledged, under load and without."""

import contextlib
import errno
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import FusecacheError
from fusecache.api.errors import ImageExists
from tests.fuse.test_control_mounted import write
from tests.fuse.test_lifecycle_ending import BLOCK, Writer
from tests.support.callers import in_thread, outcome
from tests.support.ceph import Cluster
from tests.support.mounts import PATIENCE, Mount, Place, wait_until
from tests.support.rbd_mounts import MIB, is_open, rbd_place, status_of

pytest.importorskip("fusecache_rwl", reason="the part rwl is left out")
pytest.importorskip("rbd")

from fusecache.backends.rbd import blocking
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.image import RbdImage
from fusecache.mount import running_completions
from tests.support.rbd import Settings, open_image

SIZE = 8 * MIB
TIMEOUT = 3.0


@pytest.fixture
def image(ceph_cluster: Cluster, image_name: str) -> str:
    ceph_cluster.rbd("create", "--size", f"{SIZE}B", image_name)
    return image_name


def with_log(place: Place, **options: str) -> Place:
    place.layers = [{"plugin": "rwl", "path": str(place.pools), "size": "16MiB", **options}]
    return place


def command(mount: Mount, image: str, name: str) -> int:
    """Ask for a snapshot; return the errno, 0 for success."""
    return write(mount.control / "images" / image / "snapshot", f"{name}\n".encode())


def state_of(content: bytes) -> int:
    """Return how many writes of a :class:`Writer` an image has seen, which are the first so many and no other."""
    found = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
    numbers = [int.from_bytes(block[:8], "little") for block in found]
    seen = max(numbers)
    expected = [0] * len(found)
    for number in range(max(1, seen - len(found) + 1), seen + 1):
        expected[number * 7919 % len(found)] = number
    assert numbers == expected
    assert all(block == block[:8] * (BLOCK // 8) for block in found), "no block is torn"
    return seen


def test_under_a_writer_it_is_of_one_instant_and_has_all_that_was_acknowledged(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount], place: Place, tmp_path: Path
) -> None:
    mount = mounted(with_log(place))
    writer = Writer(mount.path / image)
    shown: dict[str, bytes] = {}
    for name in ("one", "two"):
        writer.wait_until_under_way(writer._last + 300)
        file = mount.path / f"{image}@{name}"
        assert not file.exists()
        acknowledged = writer._last
        assert command(mount, image, name) == 0
        after = writer._last
        assert file in mount.path.iterdir()
        shown[name] = file.read_bytes()
        # One more may have been under way.
        assert acknowledged <= state_of(shown[name]) <= after + 1
        writer.wait_until_under_way(after + 300)
        assert file.read_bytes() == shown[name]
    # By the guard: it was on all the while, but for an instant.
    assert status_of(mount, image)["state"] != "clean"
    assert mount.terminate() == 0
    writer.end()
    mounted(place).unmount()
    for name, content in shown.items():
        ceph_cluster.rbd("export", "--no-progress", f"{image}@{name}", tmp_path / name)
        assert (tmp_path / name).read_bytes() == content


def test_what_a_paused_log_of_an_image_that_nobody_uses_has_is_in_it(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount], place: Place
) -> None:
    mount = mounted(with_log(place, writeback_rate="0"), release_after="0s")
    (mount.path / image).write_bytes(b"a" * SIZE)
    assert status_of(mount, image)["state"] == "dirty"
    assert command(mount, image, "dirty") == 0
    wait_until(lambda: not is_open(mount, image), "the image is closed")
    assert command(mount, image, "closed") == 0
    for name in ("dirty", "closed"):
        assert (mount.path / f"{image}@{name}").read_bytes() == b"a" * SIZE


def test_what_cannot_be_a_snapshot_is_refused_and_says_why(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount]
) -> None:
    mount = mounted()
    assert command(mount, image, "mönday") == 0
    last_error = mount.control / "images" / image / "last_error"
    for name, number, told in (
        ("mönday", errno.EEXIST, "has a snapshot 'mönday' already"),
        ("a@b", errno.EINVAL, "allowed: a name of printable characters"),
        ("x" * 255, errno.EINVAL, "bytes of UTF-8"),
    ):
        assert command(mount, image, name) == number
        assert told in last_error.read_text()
    assert ceph_cluster.rbd("snap", "ls", image).count("\n") == 2


@pytest.fixture
def hurt(tmp_path: Path, private_cluster: Cluster) -> Place:
    """A config for the image ``disk`` of a cluster that the test may hurt."""
    private_cluster.rbd("create", "--size", f"{SIZE}B", "disk")
    return rbd_place(tmp_path / "place", private_cluster, timeout=f"{TIMEOUT:g}s")


def test_while_the_cluster_is_away_it_waits_and_holds_up_neither_writes_nor_opens(
    private_cluster: Cluster, hurt: Place, mounted: Callable[..., Mount]
) -> None:
    mount = mounted(with_log(hurt), control_wait="1s")
    with (mount.path / "disk").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"b" * BLOCK, 0)
        private_cluster.kill("osd.0", "mon.a")
        asked = in_thread(command, mount, "disk", "s")
        for number in range(3):
            begin = time.monotonic()
            # Though nobody can be asked where its name leads.
            fd = in_thread(os.open, mount.path / "disk", os.O_RDWR).result(PATIENCE)
            assert outcome(os.pwrite, fd, b"a" * BLOCK, number * BLOCK) == 0
            assert os.fstat(fd).st_size == SIZE
            os.close(fd)
            assert time.monotonic() - begin < TIMEOUT
        assert asked.result(PATIENCE) == errno.EINPROGRESS
        assert " left, " in (mount.control / "images/disk/snapshot").read_text()
        private_cluster.start()
        wait_until(lambda: "command-done disk/snapshot: snapshot s" in mount.events(), "the snapshot is made")
    assert (mount.path / "disk@s").read_bytes()[: 2 * BLOCK] == b"a" * 2 * BLOCK


class Late:
    """Has snapshots that the cluster has made stay unanswered for, as librbd's calls.

    Attributes:
        made: the first one is there, and its answer is held back.
        answer: have it come.
        removed: it was removed again.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made, self.answer, self.removed = trio.Event(), threading.Event(), trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._make, self._remove = blocking.make_snapshot, blocking.remove_snapshot
        monkeypatch.setattr(blocking, "make_snapshot", self.make)
        monkeypatch.setattr(blocking, "remove_snapshot", self.remove)

    def make(self, image: Any, name: str) -> str:
        self._make(image, name)
        self._token.run_sync_soon(self.made.set)
        self.answer.wait(PATIENCE)
        return name

    def remove(self, image: Any, name: str) -> None:
        self._remove(image, name)
        self._token.run_sync_soon(self.removed.set)


@pytest.fixture
async def opened(ceph_cluster: Cluster, image: str) -> AsyncIterator[RbdImage]:
    """The image, open as one that waits a second for the cluster."""
    async with running_completions() as completions:
        client = Client(Settings(ceph_cluster.conf, timeout=1.0), completions)
        await client.connect()
        opened = await open_image(client, image, lambda kind, text: None)
        yield opened
        await opened.close()
        await client.close()


def listed(cluster: Cluster, image: str) -> list[str]:
    """Return the names of an image's snapshots."""
    return [line.split()[1] for line in cluster.rbd("snap", "ls", image).splitlines()[1:]]


async def test_one_that_comes_too_late_is_removed_again(
    ceph_cluster: Cluster, image: str, opened: RbdImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened.make_snapshot("first")
    late = Late(monkeypatch)
    with pytest.raises(FusecacheError, match="did not answer within 1 s"):
        await opened.make_snapshot("late")
    late.answer.set()
    with trio.fail_after(PATIENCE):
        await late.removed.wait()
    await opened.make_snapshot("last")
    assert await trio.to_thread.run_sync(listed, ceph_cluster, image) == ["first", "last"]


@pytest.mark.parametrize("given_up", ["in time", "cancelled"])
async def test_whoever_asks_for_the_name_of_a_late_one_again_is_told_what_stays_true(
    ceph_cluster: Cluster, image: str, opened: RbdImage, monkeypatch: pytest.MonkeyPatch, given_up: str
) -> None:
    """The name was called taken, and a moment later the snapshot was gone."""
    late = Late(monkeypatch)
    if given_up == "in time":
        with pytest.raises(FusecacheError, match="did not answer within 1 s"):
            await opened.make_snapshot("s")
    else:
        async with trio.open_nursery() as first:
            first.start_soon(opened.make_snapshot, "s")
            await late.made.wait()
            first.cancel_scope.cancel()
    monkeypatch.setattr(opened._client, "timeout", 0.1)
    for call in (opened.check_snapshot, opened.make_snapshot):
        with pytest.raises(FusecacheError, match="'s' that was asked for before is still being made, or") as refused:
            await call("s")
        assert refused.value.errno == errno.EIO
    monkeypatch.setattr(opened._client, "timeout", PATIENCE)
    async with trio.open_nursery() as again:
        again.start_soon(opened.make_snapshot, "s")
        await wait_all_tasks_blocked(0.01)
        late.answer.set()
    assert late.removed.is_set()
    assert await trio.to_thread.run_sync(listed, ceph_cluster, image) == ["s"]


async def test_of_two_who_ask_for_one_name_at_once_the_second_is_refused_for_what_stays(
    ceph_cluster: Cluster, image: str, opened: RbdImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Late(monkeypatch)
    monkeypatch.setattr(opened._client, "timeout", PATIENCE)
    refused: list[str] = []

    async def ask() -> None:
        try:
            await opened.make_snapshot("s")
        except ImageExists as error:
            refused.append(str(error))

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(ask)
        await late.made.wait()
        await wait_all_tasks_blocked(0.01)
        assert not refused
        late.answer.set()
    assert len(refused) == 1
    assert not late.removed.is_set()


async def test_an_image_is_not_closed_before_a_late_one_is_removed(
    ceph_cluster: Cluster, image: str, opened: RbdImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = Late(monkeypatch)
    with pytest.raises(FusecacheError, match="did not answer"):
        await opened.make_snapshot("late")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opened.close)
        await wait_all_tasks_blocked(0.01)
        late.answer.set()
    assert await trio.to_thread.run_sync(listed, ceph_cluster, image) == []


def test_killed_at_any_moment_it_leaves_a_whole_one_or_none(
    ceph_cluster: Cluster, image: str, mounted: Callable[..., Mount], place: Place, seed: int
) -> None:
    mount = mounted(with_log(place))
    writer = Writer(mount.path / image)
    writer.wait_until_under_way(200)
    acknowledged = writer._last
    in_thread(command, mount, image, "s")
    time.sleep(Random(seed).uniform(0, 0.05))
    mount.kill()
    writer.end()
    again = mounted(place)
    with contextlib.suppress(FileNotFoundError):
        assert state_of((again.path / f"{image}@s").read_bytes()) >= acknowledged
    assert command(again, image, "again") == 0
    writer.check(again.path / f"{image}@again")
