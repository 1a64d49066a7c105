"""An owner that was killed: its host follows at once, another when the watch has timed out."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from fusecache.api import ImageRecord
from fusecache.api.errors import ImageBusy
from fusecache.state.store import StateStore
from fusecache.testing import FreeClaim
from tests.support.ceph import WATCH_TIMEOUT, Cluster

pytest.importorskip("rbd")

from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.lookup import fetch_header
from tests.support.rbd_owners import connected, owned, owned_here, owner_process

AT_ONCE = WATCH_TIMEOUT - 1.0
"""Seconds that an open takes at most that does not wait for a watch."""


@pytest.fixture
async def client(ceph_cluster: Cluster) -> AsyncIterator[Client]:
    async with connected(ceph_cluster.conf) as client:
        yield client


@pytest.fixture
def image(ceph_cluster: Cluster, image_name: str) -> str:
    ceph_cluster.rbd("create", "--size", "8M", image_name)
    return image_name


def noted(state_dir: Path) -> list[str]:
    """Return the clients on record of the one image there is."""
    (clients,) = state_dir.glob("images/*/clients")
    return clients.read_text().splitlines()


async def eventually_owned(client: Client, image: str, claim: FreeClaim) -> None:
    """Open the image as soon as it can be; the dead owner's watch ends by itself."""
    with trio.fail_after(6 * WATCH_TIMEOUT):
        while True:
            try:
                async with owned(client, image, claim):
                    return
            except ImageBusy:
                await trio.sleep(0.1)


async def test_a_killed_owner_of_this_host_is_followed_at_once(
    client: Client, ceph_cluster: Cluster, image: str, tmp_path: Path
) -> None:
    with owner_process(ceph_cluster.conf, tmp_path, image) as (process, address):
        with pytest.raises(ImageBusy, match=f"is open in process {process.pid}"):
            async with owned_here(client, image, tmp_path):
                raise AssertionError("the image is open")
        process.kill()
        process.wait()
        with trio.fail_after(AT_ONCE):
            async with owned_here(client, image, tmp_path) as own:
                await trio.to_thread.run_sync(own.handle.image.write, b"data", 0)
    listed = await trio.to_thread.run_sync(ceph_cluster.ceph, "osd", "blocklist", "ls")
    assert address in listed
    assert client.address not in listed


async def test_proof_outlives_a_process_that_was_killed_before_it_took_the_lock(
    client: Client, ceph_cluster: Cluster, image: str, tmp_path: Path
) -> None:
    with owner_process(ceph_cluster.conf, tmp_path, image) as (process, address):
        process.kill()
        process.wait()
    async with owned_here(client, image, tmp_path, settled=False):
        assert noted(tmp_path) == [address, client.address]
    assert noted(tmp_path) == [address]


async def test_a_killed_owner_without_proof_is_followed_when_its_watch_has_ended(
    client: Client, ceph_cluster: Cluster, image: str, tmp_path: Path
) -> None:
    with owner_process(ceph_cluster.conf, tmp_path / "there", image) as (process, address):
        process.kill()
        process.wait()
        with pytest.raises(ImageBusy, match=address):
            async with owned_here(client, image, tmp_path / "here"):
                raise AssertionError("the image is open")
        await eventually_owned(client, image, FreeClaim())


async def test_a_killed_owner_s_dirty_data_is_its_host_s(
    client: Client, ceph_cluster: Cluster, image: str, tmp_path: Path
) -> None:
    holder = StateStore(tmp_path).host()
    with owner_process(ceph_cluster.conf, tmp_path, image, holder) as (process, _):
        process.kill()
        process.wait()
        guard = (await fetch_header(client, image)).guard
        assert guard == "fusecache_dirty_on_elsewhere"
        with pytest.raises(ImageBusy, match="dirty data on host elsewhere"):
            async with owned(client, image, FreeClaim()):
                raise AssertionError("the image is open")
        with trio.fail_after(AT_ONCE):
            async with owned_here(client, image, tmp_path) as own:
                record = await own.records.read()
                assert record is not None
                assert record.holder == holder
        assert (await fetch_header(client, image)).guard == guard
        # A mount of the same pool would take it for its own to write back.
        async with owned_here(client, image, tmp_path) as own:
            await own.records.write(ImageRecord(record.epoch), guard=False)
