"""The connection to a cluster: how it is refused, lost and replaced, and what happens while the cluster is away."""

import errno
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from fusecache.api import Backend, FusecacheError
from fusecache.api.errors import errno_of
from fusecache.backends import open_backend
from fusecache.testing.claims import FreeClaim
from tests.support.ceph import PATIENCE, Cluster
from tests.support.image_directory import Events, delivered
from tests.support.pools import blocklist, config, new_namespace, pool_backend

SIZE = 1 << 20

SOON = 10.0
"""Seconds in which an idle client notices what happened to it."""

MORE_THAN_LIBRADOS_TAKES = 1500
"""Requests under way; by default it blocks who submits one more than 1024."""

ENDS_WITHIN = 5.0
"""Seconds that closing may take at most while the cluster is away: a wait of three, and some leave."""


def address_of(backend: Any) -> str:
    """Return how the cluster names the backend's shared client."""
    address: str = backend._clients._shared.address
    return address


async def refused(cluster: Cluster, **changes: Any) -> str:
    """Return the message with which a backend cannot be opened."""
    async with delivered() as completions:
        with pytest.raises(FusecacheError) as caught:
            async with open_backend(config(cluster, **changes), completions, Events().emit):
                pass
    assert errno_of(caught.value) == errno.EIO
    return str(caught.value)


async def answers(backend: Backend) -> bool:
    """Say whether the cluster tells of the image before the backend gives up."""
    try:
        return (await backend.lookup("image")).size == SIZE
    except FusecacheError:
        return False


async def test_a_pool_that_is_not_there_is_named_with_those_that_are(ceph_cluster: Cluster) -> None:
    assert await refused(ceph_cluster, pool="tape") == "found no pool 'tape' in the cluster; it has: 'rbd'"


async def test_a_namespace_that_is_not_there_is_named_with_those_that_are(ceph_cluster: Cluster) -> None:
    there = new_namespace(ceph_cluster)
    message = await refused(ceph_cluster, namespace="tape")
    assert message.startswith("found no namespace 'tape' in pool 'rbd'; it has: ")
    assert repr(there) in message


async def test_a_config_that_is_not_there_is_named(ceph_cluster: Cluster, tmp_path: Path) -> None:
    assert f"cannot read the Ceph config '{tmp_path}/none'" in await refused(ceph_cluster, conf=tmp_path / "none")


async def test_without_a_config_the_usual_one_is_used_and_named(
    ceph_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEPH_CONF", str(ceph_cluster.conf))
    async with pool_backend(ceph_cluster, conf=None) as backend:
        assert await backend.list() == []
    monkeypatch.setenv("CEPH_CONF", f"{tmp_path}/none")
    assert f"'{tmp_path}/none' (from CEPH_CONF)" in await refused(ceph_cluster, conf=None)


async def test_a_monitor_that_does_not_answer_is_named_in_time(ceph_cluster: Cluster, tmp_path: Path) -> None:
    conf = tmp_path / "ceph.conf"
    conf.write_text("[global]\nmon host = v2:127.0.0.1:1\n")
    began = time.monotonic()
    message = await refused(ceph_cluster, conf=conf, timeout=1.0)
    assert "the monitors (v2:127.0.0.1:1) did not answer within 1 s" in message
    assert time.monotonic() - began < ENDS_WITHIN


async def test_a_user_whom_the_cluster_refuses_is_named(ceph_cluster: Cluster, tmp_path: Path) -> None:
    conf = tmp_path / "ceph.conf"
    allowed = "auth client required = none"
    conf.write_text(ceph_cluster.conf.read_text().replace(allowed, "auth client required = cephx"))
    assert allowed not in conf.read_text()
    assert "the cluster refuses the user client.charon" in await refused(ceph_cluster, conf=conf, user="charon")


async def test_a_blocklisted_client_is_replaced_at_the_next_question(ceph_cluster: Cluster) -> None:
    async with pool_backend(ceph_cluster) as backend:
        await backend.create("image", SIZE)
        questions: Sequence[Callable[[], Awaitable[object]]] = (
            backend.list,
            lambda: backend.lookup("image"),
            lambda: backend.create("other", SIZE),
            lambda: backend.rename("image", "image-2"),
            lambda: backend.remove("other"),
        )
        for ask in questions:
            before = address_of(backend)
            await trio.to_thread.run_sync(blocklist, ceph_cluster, before)
            await ask()
            assert address_of(backend) != before
        assert [info.name for info in await backend.list()] == ["image-2"]


async def test_a_client_that_nobody_uses_notices_that_it_is_blocklisted(ceph_cluster: Cluster) -> None:
    from fusecache.backends.rbd.client import Client  # noqa: PLC0415 - needs the bindings

    async with delivered() as completions:
        client = Client(config(ceph_cluster), completions)
        await client.connect()
        lost = trio.Event()
        withdrawn = trio.Event()
        client.on_lost(lost.set)
        client.on_lost(withdrawn.set)()
        await trio.to_thread.run_sync(blocklist, ceph_cluster, client.address)
        with trio.fail_after(SOON):
            await lost.wait()
        assert client.lost
        assert not withdrawn.is_set()
        late = trio.Event()
        client.on_lost(late.set)
        assert late.is_set()
        await client.close()


async def test_who_looks_is_told_in_time_that_the_cluster_is_away_and_takes_no_thread(
    private_cluster: Cluster,
) -> None:
    async with pool_backend(private_cluster, timeout=1.0) as backend:
        await backend.create("image", SIZE)
        private_cluster.kill("osd.0")
        threads = threading.active_count()
        failures: list[FusecacheError] = []

        async def look() -> None:
            with pytest.raises(FusecacheError, match="did not answer within 1 s") as caught:
                await backend.lookup("image")
            failures.append(caught.value)

        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for _ in range(MORE_THAN_LIBRADOS_TAKES):
                nursery.start_soon(look)
        assert time.monotonic() - began < SOON
        assert {errno_of(failure) for failure in failures} == {errno.EIO}
        assert threading.active_count() == threads
        with pytest.raises(FusecacheError, match="did not answer"):
            await backend.list()
        await trio.to_thread.run_sync(private_cluster.start)
        with trio.fail_after(SOON):
            while not await answers(backend):
                pass


async def test_a_change_that_was_cancelled_while_the_cluster_is_away_is_left_behind_and_does_not_hold_the_end(
    private_cluster: Cluster,
) -> None:
    namespace = new_namespace(private_cluster)
    async with pool_backend(private_cluster, namespace=namespace, timeout=1.0) as backend:
        private_cluster.kill("osd.0")
        began = time.monotonic()
        with trio.move_on_after(0.2) as patience:
            await backend.create("image", SIZE)
        assert patience.cancelled_caught
        closing = time.monotonic()
        assert closing - began < ENDS_WITHIN
    assert time.monotonic() - closing < ENDS_WITHIN
    await trio.to_thread.run_sync(private_cluster.start)
    async with pool_backend(private_cluster, namespace=namespace) as backend:
        for info in await backend.list():
            await backend.remove(info.name)
        assert (await backend.create("image", SIZE)).size == SIZE


async def test_an_image_that_was_left_behind_is_closed_when_the_cluster_is_back(private_cluster: Cluster) -> None:
    async with pool_backend(private_cluster, timeout=1.0) as backend:
        path = f"{backend.description.removeprefix('rbd:')}/image"
        await backend.create("image", SIZE)
        threads = threading.active_count()
        async with backend.open("image", FreeClaim(), dedicated=True):
            private_cluster.kill("osd.0")
            closing = time.monotonic()
        assert time.monotonic() - closing < ENDS_WITHIN
        assert threading.active_count() > threads
        await trio.to_thread.run_sync(private_cluster.start)
        with trio.fail_after(PATIENCE):
            while "Watchers: none" not in await trio.to_thread.run_sync(private_cluster.rbd, "status", path):
                pass
            while not await answers(backend):
                pass
        async with backend.open("image", FreeClaim()):
            pass
