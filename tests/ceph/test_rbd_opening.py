"""Opening an image of a cluster that does not answer: given up in time, and what comes later is closed."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from fusecache.api import FusecacheError
from fusecache.api.errors import ImageNotFound
from fusecache.testing import FreeClaim
from tests.support.ceph import PATIENCE, Cluster

pytest.importorskip("rbd")

from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.lookup import fetch_header
from fusecache.backends.rbd.opening import _unfinished, close_handle, open_handle
from tests.support.rbd_owners import connected, owned


@asynccontextmanager
async def stopped(cluster: Cluster) -> AsyncIterator[None]:
    """Have the cluster not answer for the length of a block."""
    os.kill(cluster.pid("osd.0"), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(cluster.pid("osd.0"), signal.SIGCONT)


async def until_closed(client: Client, name: str) -> None:
    """Wait until librbd has closed what nobody waits for, and nobody watches the image."""
    with trio.fail_after(PATIENCE):
        while _unfinished or await watchers(client, name):  # noqa: ASYNC110 - librbd tells nobody
            await trio.sleep(0.05)


async def watchers(client: Client, name: str) -> list[str]:
    """Return who has the image open, but for this look itself."""
    header = await fetch_header(client, name)
    handle = await open_handle(client, header.id, name)
    try:
        found = await trio.to_thread.run_sync(lambda: [w["addr"] for w in handle.image.watchers_list()])
    finally:
        await close_handle(client, handle)
    found.remove(client.address)
    return found


async def test_an_open_is_given_up_in_time_and_closed_when_it_comes(private_cluster: Cluster) -> None:
    await trio.to_thread.run_sync(private_cluster.rbd, "create", "--size", "8M", "disk")
    async with connected(private_cluster.conf) as client:
        header = await fetch_header(client, "disk")
        async with stopped(private_cluster):
            client.timeout = 1.0
            with trio.fail_after(3), pytest.raises(FusecacheError, match="did not answer within 1 s"):
                await open_handle(client, header.id, "disk")
            with trio.fail_after(3), trio.move_on_after(0.1) as patience:
                await open_handle(client, header.id, "disk")
            assert patience.cancelled_caught
            assert len(_unfinished) == 2
        client.timeout = PATIENCE
        await until_closed(client, "disk")
        async with owned(client, "disk", FreeClaim()):
            pass


async def test_a_lock_that_comes_too_late_is_given_up(private_cluster: Cluster) -> None:
    await trio.to_thread.run_sync(private_cluster.rbd, "create", "--size", "8M", "disk")
    async with connected(private_cluster.conf) as client, connected(private_cluster.conf) as other:

        class StopsTheCluster(FreeClaim):
            async def __call__(self, *args: object) -> list[str]:
                os.kill(private_cluster.pid("osd.0"), signal.SIGSTOP)
                client.timeout = 1.0
                return []

        with pytest.raises(FusecacheError, match="did not answer"):
            async with owned(client, "disk", StopsTheCluster()):
                raise AssertionError("the image is open")
        os.kill(private_cluster.pid("osd.0"), signal.SIGCONT)
        await until_closed(other, "disk")
        async with owned(other, "disk", FreeClaim()):
            pass


async def test_what_is_not_there_is_not_found(ceph_cluster: Cluster) -> None:
    async with connected(ceph_cluster.conf) as client:
        with pytest.raises(ImageNotFound):
            await open_handle(client, "0123456789ab", "nothing")
        assert not _unfinished
