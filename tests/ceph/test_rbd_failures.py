"""An open image of a pool when things go wrong: the lock is taken away, the image shrinks, the cluster is away."""

import errno
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable

import pytest
import trio

from fusecache.api import DONE, PENDING, FusecacheError, ImageRecord
from fusecache.api.errors import VolumeReadOnly
from fusecache.backends.rbd import handle as handles
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.image import RbdImage
from fusecache.testing.harness import AttemptWatch, content, fetch, pattern, put
from tests.support.ceph import Cluster
from tests.support.project import ROOT
from tests.support.rbd import Emitted, create, make_snapshot, open_image, opened, running_client, take_lock

MIB = 1 << 20
PATIENCE = 20.0


@pytest.fixture
async def client(ceph_cluster: Cluster) -> AsyncIterator[Client]:
    """A client of the shared cluster."""
    async with running_client(ceph_cluster) as client:
        yield client


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what comes from outside."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - nothing says when
            await trio.sleep(0.01)


def submit(image: RbdImage, at: int) -> list[AttemptWatch]:
    """Make one attempt of each kind that waits for the cluster, from *at* on."""
    write, read, discard = watches = [AttemptWatch() for _ in range(3)]
    begun = [
        write.begin(lambda watch: image.try_write(at, memoryview(b"x" * 4096), watch.done)),
        read.begin(lambda watch: image.try_read(at + 4096, 4096, watch.done), 4096),
        discard.begin(lambda watch: image.try_discard(at + 8192, 4096, watch.done)),
    ]
    assert begun == [PENDING] * 3
    return watches


async def test_a_lock_that_was_taken_away_makes_the_image_useless_and_says_so_once(
    ceph_cluster: Cluster, image_name: str
) -> None:
    emitted = Emitted()
    async with running_client(ceph_cluster) as client:
        await client.call(create, client, image_name, 4 * MIB)
        image = await open_image(client, image_name, emitted)
        data = pattern(4 * MIB, 1)
        await put(image, 0, data)
        await trio.to_thread.run_sync(take_lock, ceph_cluster, image_name)
        with trio.fail_after(PATIENCE):
            for _ in range(3):
                with pytest.raises(VolumeReadOnly, match="lock was taken away") as refused:
                    await put(image, 0, b"x")
                assert refused.value.errno == errno.EROFS
            await image.until_lost()
            with pytest.raises(FusecacheError, match="lock was taken away") as unreadable:
                await image.read(0, 4096)
            assert unreadable.value.errno == errno.EIO
            for change in (image.discard(0, 4096), image.resize(4096), image.set_record(ImageRecord(1), guard=False)):
                with pytest.raises(VolumeReadOnly):
                    await change
            # Nothing that was acknowledged is at risk.
            await image.flush()
            assert image.try_flush(AttemptWatch().done) is DONE
            assert "taken away" in image.note
            await until(lambda: client.lost)
            await image.close()
        assert emitted.kinds == ["lock-lost"]
        assert client.completions.outstanding == 0
    async with running_client(ceph_cluster) as client, opened(client, image_name) as image:
        assert await content(image) == data


async def test_a_loss_while_nobody_asks_anything_is_found_out(ceph_cluster: Cluster, image_name: str) -> None:
    emitted = Emitted()
    async with running_client(ceph_cluster) as client:
        await client.call(create, client, image_name, MIB)
        async with opened(client, image_name, emitted) as image:
            await trio.to_thread.run_sync(take_lock, ceph_cluster, image_name)
            with trio.fail_after(PATIENCE):
                await image.until_lost()
            assert emitted.kinds == ["lock-lost"]
            with pytest.raises(FusecacheError):
                image.try_read(0, 512, AttemptWatch().done)


async def test_requests_under_way_when_the_lock_is_taken_all_end(ceph_cluster: Cluster, image_name: str) -> None:
    emitted = Emitted()
    async with running_client(ceph_cluster) as client:
        await client.call(create, client, image_name, 4 * MIB)
        async with opened(client, image_name, emitted) as image:
            watches: list[AttemptWatch] = []
            taken = trio.Event()

            async def keep_asking() -> None:
                while not image.read_only:
                    watches.extend(submit(image, len(watches) % 64 * 4096))
                    await until(lambda: sum(not watch.calls for watch in watches) < 32)
                taken.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_asking)
                await trio.to_thread.run_sync(take_lock, ceph_cluster, image_name)
                with trio.fail_after(PATIENCE):
                    await taken.wait()
            await until(lambda: all(watch.calls for watch in watches))
            for watch in watches:
                watch.verify(PENDING)
            errors = [watch.error for watch in watches if watch.error is not None]
            assert errors
            assert {type(error).__name__ for error in errors} <= {"VolumeReadOnly", "LockLost"}
        assert emitted.kinds == ["lock-lost"]
        assert client.completions.outstanding == 0


async def test_a_snapshot_of_a_blocklisted_client_cannot_be_read_any_more(
    ceph_cluster: Cluster, image_name: str
) -> None:
    emitted = Emitted()
    async with running_client(ceph_cluster) as client:
        await client.call(create, client, image_name, MIB)
        await client.call(make_snapshot, client, image_name, "s")
        async with opened(client, image_name), opened(client, image_name, emitted, snapshot="s") as snapshot:
            await trio.to_thread.run_sync(take_lock, ceph_cluster, image_name)
            with trio.fail_after(PATIENCE):
                await snapshot.until_lost()
            with pytest.raises(FusecacheError, match="refuses our client"):
                await snapshot.read(0, 4096)
            assert emitted.kinds == ["lock-lost"]


async def test_what_was_shrunk_behind_us_is_an_error_never_garbage(
    ceph_cluster: Cluster, client: Client, image_name: str
) -> None:
    emitted = Emitted()
    await client.call(create, client, image_name, 4 * MIB)
    async with opened(client, image_name, emitted) as image:
        await put(image, 0, pattern(4 * MIB, 2))
        # librbd asks whoever has the lock to do it: us.
        await trio.to_thread.run_sync(ceph_cluster.rbd, "resize", "--allow-shrink", "--size", "1M", image_name)
        for offset, length in ((MIB - 4096, 8192), (2 * MIB, 4096), (MIB, 1)):
            with pytest.raises(FusecacheError, match="somebody shrank it") as shrank:
                await image.read(offset, length)
            assert shrank.value.errno == errno.EIO
        assert await fetch(image, 0, MIB) == pattern(4 * MIB, 2)[:MIB]
        assert emitted.kinds == ["image-shrank"]
        with pytest.raises(OSError, match="EINVAL"):
            await put(image, 2 * MIB, b"x")
        await image.resize(2 * MIB)
        assert await fetch(image, MIB, MIB) == bytes(MIB)


async def test_without_a_cluster_requests_wait_and_nothing_else_does(
    private_cluster: Cluster, image_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads can be given up, closing takes three seconds, and when the cluster is back all ends as it should."""
    async with running_client(private_cluster) as client:
        await client.call(create, client, image_name, 4 * MIB)
        image = await open_image(client, image_name, Emitted())
        data = pattern(4096, 3)
        await put(image, 0, bytes(4096))
        private_cluster.kill("osd.0")
        watch = AttemptWatch()
        assert watch.begin(lambda watch: image.try_write(0, memoryview(data), watch.done)) is PENDING
        with trio.move_on_after(0.5) as scope:
            await image.read(4096, 4096)
        assert scope.cancelled_caught
        began = time.monotonic()
        await image.close()
        assert 2.5 < time.monotonic() - began < 6
        assert "is left behind" in caplog.text
        assert not watch.calls
        assert image._handle in handles._closing
        await trio.to_thread.run_sync(private_cluster.start)
        await until(lambda: bool(watch.calls) and image._handle not in handles._closing)
        watch.verify(PENDING)
        assert watch.error is None
        await until(lambda: client.completions.outstanding == 0)
        async with opened(client, image_name) as again:
            assert await fetch(again, 0, 4096) == data


LEAVE = """
import sys, trio
from pathlib import Path
from tests.support.ceph import Cluster
from tests.support.rbd import open_image, running_client

async def main():
    cluster = Cluster(Path(sys.argv[1]))
    async with running_client(cluster) as client:
        image = await open_image(client, sys.argv[2], lambda kind, text: None)
        cluster.kill("osd.0")
        image.try_write(0, memoryview(b"x" * 4096), lambda error: None)
        image.try_read(0, 4096, lambda error, buffers: None)
        await image.close()
    print("closed", flush=True)

trio.run(main)
"""


def test_a_process_that_leaves_an_image_behind_ends(private_cluster: Cluster, image_name: str) -> None:
    private_cluster.rbd("create", "--size", "4M", image_name)
    command = [sys.executable, "-c", LEAVE, str(private_cluster.directory), image_name]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (result.returncode, result.stdout) == (0, "closed\n"), result.stderr
