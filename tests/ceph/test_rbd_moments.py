"""Moments that two sides may hit at once: nothing is refused for it, none of it stays open, and no guard stays off."""

import errno
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import Backend, ImageRecord
from fusecache.api.errors import FusecacheError, ImageNotFound
from fusecache.stack import claim as claims
from fusecache.stack.claim import claiming
from fusecache.stack.remove import remove_image
from fusecache.state.store import StateStore
from fusecache.testing.claims import FreeClaim
from tests.support.ceph import PATIENCE, Cluster
from tests.support.pools import new_namespace, pool_backend

pytest.importorskip("rbd")

import rbd as binding

from fusecache.backends.rbd import opening, ownership, records
from fusecache.backends.rbd.backend import RbdBackend
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.handle import OpenHandle
from fusecache.backends.rbd.image import RbdImage
from fusecache.backends.rbd.lookup import fetch_header
from tests.support.rbd_owners import connected, identity_of, owned, owned_here, owner_process

SIZE = 1 << 20

ENDS_WITHIN = 8.0
"""Seconds: three for the guard, three for the connection, and some leave."""


@pytest.fixture
def namespace(ceph_cluster: Cluster) -> str:
    return new_namespace(ceph_cluster)


@pytest.fixture
def rbd(ceph_cluster: Cluster, namespace: str) -> Callable[..., str]:
    """Run ``rbd`` on that namespace; ``%`` stands before the names of images."""

    def run(*arguments: str) -> str:
        return ceph_cluster.rbd(*(argument.replace("%", f"rbd/{namespace}/") for argument in arguments))

    return run


@pytest.fixture
async def backend(ceph_cluster: Cluster, namespace: str) -> AsyncIterator[Backend]:
    async with pool_backend(ceph_cluster, namespace=namespace) as backend:
        await backend.create("image", SIZE)
        yield backend


async def make_dirty(backend: Backend, *, guard: bool = True) -> FreeClaim:
    claim = FreeClaim()
    async with backend.open("image", claim, dedicated=True) as image:
        await image.set_record(ImageRecord(1, claim.host, "charon"), guard=guard)
    return claim


async def test_snapshots_and_their_dirty_image_are_opened_side_by_side(
    backend: Backend, rbd: Callable[..., str]
) -> None:
    for number in range(4):
        rbd("snap", "create", f"%image@{number}")
    claim = await make_dirty(backend)

    async def open_once(name: str) -> None:
        async with backend.open(name, FreeClaim(claim.host)):
            pass

    for _ in range(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_once, "image")
            for number in range(4):
                nursery.start_soon(open_once, f"image@{number}")


async def test_a_dirty_image_that_lost_the_lock_feature_is_not_read_around(
    backend: Backend, rbd: Callable[..., str]
) -> None:
    claim = await make_dirty(backend, guard=False)
    rbd("feature", "disable", "%image", "object-map", "exclusive-lock")
    with pytest.raises(FusecacheError, match="exclusive-lock"):
        async with backend.open("image", FreeClaim(claim.host)):
            raise AssertionError("stale data can be read")
    rbd("feature", "enable", "%image", "exclusive-lock")
    async with backend.open("image", FreeClaim(claim.host)):
        pass


async def test_a_snapshot_whose_guard_cannot_be_put_back_is_closed(
    backend: Backend, rbd: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rbd("snap", "create", "%image@one")
    claim = await make_dirty(backend)
    change = records.change_guard
    changes: list[tuple[Any, ...]] = []
    opened: list[OpenHandle] = []

    class Noted(OpenHandle):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            opened.append(self)

        def close(self, ended: Callable[[], None]) -> None:
            opened.remove(self)
            super().close(ended)

    async def lifted_only(*args: Any) -> bool:
        changes.append(args)
        if len(changes) > 1:
            raise OSError("out of luck")
        return await change(*args)

    monkeypatch.setattr(ownership, "change_guard", lifted_only)
    monkeypatch.setattr("fusecache.backends.rbd.opening.OpenHandle", Noted)
    with pytest.raises(OSError, match="out of luck"):
        async with backend.open("image@one", FreeClaim(claim.host)):
            pass
    assert not opened


def noted(state_dir: Path) -> list[list[str]]:
    """Return the clients on record of each image."""
    return [path.read_text().split() for path in state_dir.glob("images/*/clients")]


async def test_a_host_stays_the_owner_of_what_could_not_be_closed(private_cluster: Cluster, tmp_path: Path) -> None:
    await trio.to_thread.run_sync(private_cluster.rbd, "create", "--size", "8M", "disk")
    async with connected(private_cluster.conf) as client:
        async with owned_here(client, "disk", tmp_path):
            os.kill(private_cluster.pid("osd.0"), signal.SIGSTOP)
        left = noted(tmp_path)
        os.kill(private_cluster.pid("osd.0"), signal.SIGCONT)
        assert left == [[client.address]]
        async with owned_here(client, "disk", tmp_path):
            pass
    assert noted(tmp_path) == []


async def test_an_open_waits_for_an_image_that_this_process_is_still_closing(
    ceph_cluster: Cluster, image_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened an image a moment after the cluster was back was told that it is open in this very mount."""
    ceph_cluster.rbd("create", "--size", "8M", image_name)
    monkeypatch.setattr(opening, "_PATIENCE", 0.01)
    begun, answered = trio.Event(), threading.Event()
    async with connected(ceph_cluster.conf) as client, trio.open_nursery() as nursery:
        token = trio.lowlevel.current_trio_token()

        def wait_for_the_cluster(image: Any) -> None:
            token.run_sync_soon(begun.set)
            answered.wait(PATIENCE)

        async def open_again() -> None:
            async with owned_here(client, image_name, tmp_path):
                pass

        async with owned_here(client, image_name, tmp_path) as own:
            nursery.start_soon(trio.to_thread.run_sync, own.handle.use, wait_for_the_cluster)
            await begun.wait()
        monkeypatch.setattr(client, "timeout", 1.0)
        with pytest.raises(FusecacheError, match="was open in this process before, and after 1 s") as refused:
            await open_again()
        assert refused.value.errno == errno.EIO
        monkeypatch.setattr(client, "timeout", PATIENCE)
        nursery.start_soon(open_again)
        await wait_all_tasks_blocked(0.1)
        answered.set()
    assert noted(tmp_path) == []


@asynccontextmanager
async def still_closing(backend: Backend, state_dir: Path) -> AsyncIterator[Callable[[], None]]:
    """Have this process close an image, and librbd not come to the end of it before the given function is called."""
    async with (
        claiming(StateStore(state_dir), name="image", mountpoint=None, take_over=False) as claim,
        backend.open("image", claim) as image,
    ):
        assert isinstance(image, RbdImage)
        let_go = image._handle.keep()
    try:
        yield let_go
    finally:
        let_go()


async def until_waited_for() -> None:
    """Wait until somebody waits for what this process has still to close."""
    with trio.fail_after(PATIENCE):
        while not any(claims._leaving._waiting.values()):  # noqa: ASYNC110 - who waits tells nobody
            await trio.sleep(0.001)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A close is given up soon."""
    monkeypatch.setattr("fusecache.backends.rbd.image._PATIENCE", 0.01)


def shared_client(backend: Backend) -> Client:
    assert isinstance(backend, RbdBackend)
    client = backend._clients._shared
    assert client is not None
    return client


@pytest.mark.usefixtures("impatient")
async def test_a_removal_waits_for_an_image_that_this_process_is_still_closing(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was EBUSY at once, and said that somebody had the image open."""
    removal = partial(remove_image, backend=backend, name="image", store=StateStore(tmp_path))
    async with still_closing(backend, tmp_path) as let_go:
        with monkeypatch.context() as patch:
            patch.setattr(shared_client(backend), "timeout", 1.0)
            with pytest.raises(FusecacheError, match="in this process before, and after 1 s it is still") as refused:
                await removal()
        assert refused.value.errno == errno.EIO
        await backend.lookup("image")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(removal)
            await until_waited_for()
            let_go()
    with pytest.raises(ImageNotFound):
        await backend.lookup("image")
    assert noted(tmp_path) == []


@pytest.mark.usefixtures("impatient")
async def test_a_removal_waits_until_what_it_opened_itself_is_closed(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go: list[Callable[[], None]] = []
    record = RbdImage.record

    async def kept(self: RbdImage) -> ImageRecord | None:
        let_go.append(self._handle.keep())
        return await record(self)

    monkeypatch.setattr(RbdImage, "record", kept)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(remove_image, backend=backend, name="image", store=StateStore(tmp_path)))
        await until_waited_for()
        assert await backend.lookup("image")
        (release,) = let_go
        release()
    with pytest.raises(ImageNotFound):
        await backend.lookup("image")
    assert noted(tmp_path) == []


@pytest.mark.usefixtures("impatient")
async def test_an_image_that_is_still_being_closed_is_renamed_at_once_and_grown_as_soon_as_it_is_closed(
    backend: Backend, tmp_path: Path
) -> None:
    sizes: list[int] = []

    async def grow() -> None:
        async with (
            claiming(StateStore(tmp_path), name="new", mountpoint=None, take_over=False) as claim,
            backend.open("new", claim) as image,
        ):
            await image.resize(2 * SIZE)
            sizes.append(image.size)

    async with still_closing(backend, tmp_path) as let_go, trio.open_nursery() as nursery:
        await backend.rename("image", "new")
        nursery.start_soon(grow)
        await until_waited_for()
        assert not sizes
        let_go()
    assert sizes == [2 * SIZE]


async def test_a_dead_owner_is_refused_for_longer_than_anything_is_suspended(
    ceph_cluster: Cluster, image_name: str, tmp_path: Path
) -> None:
    """After the hour that librbd asks for, a process that was stopped all the time wrote over the new owner's data."""
    ceph_cluster.rbd("create", "--size", "8M", image_name)
    conf = tmp_path / "ceph.conf"
    conf.write_text(f"{ceph_cluster.conf.read_text()}\n[client]\nrbd blocklist expire seconds = 60\n")
    with owner_process(ceph_cluster.conf, tmp_path, image_name) as (process, address):
        process.kill()
        process.wait()
        async with connected(conf) as client, owned_here(client, image_name, tmp_path):
            pass
    listed = await trio.to_thread.run_sync(ceph_cluster.ceph, "osd", "blocklist", "ls")
    (until,) = (line.split()[1] for line in listed.splitlines() if line.startswith(f"{address} "))
    assert datetime.fromisoformat(until) - datetime.now(UTC) > timedelta(days=300)


async def test_a_client_that_closes_the_image_at_this_moment_is_not_refused(
    ceph_cluster: Cluster, image_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have other images."""
    ceph_cluster.rbd("create", "--size", "8M", image_name)
    async with connected(ceph_cluster.conf) as client, connected(ceph_cluster.conf) as other:
        former = await trio.to_thread.run_sync(binding.Image, other.ioctx, image_name)
        await trio.to_thread.run_sync(former.lock_acquire, binding.RBD_LOCK_MODE_EXCLUSIVE)
        look = ownership._owners
        looks: list[list[str]] = []

        def closed_after_the_first_look(image: Any) -> list[str]:
            owners = look(image)
            if not looks:
                former.close()
            looks.append(owners)
            return owners

        monkeypatch.setattr(ownership, "_owners", closed_after_the_first_look)
        async with owned(client, image_name, FreeClaim()):
            pass
        assert looks[0] == [other.address]
        listed = await trio.to_thread.run_sync(ceph_cluster.ceph, "osd", "blocklist", "ls")
        assert f"{other.address} " not in listed


async def test_a_user_of_rbd_s_profile_may_have_it_refused(
    ceph_cluster: Cluster, image_name: str, tmp_path: Path
) -> None:
    ceph_cluster.rbd("create", "--size", "8M", image_name)
    caps = ["mon", "profile rbd", "osd", "profile rbd"]
    key = ceph_cluster.ceph("auth", "get-or-create", "client.plain", *caps)
    (tmp_path / "keyring").write_text(key)
    conf = tmp_path / "ceph.conf"
    conf.write_text(f"{ceph_cluster.conf.read_text()}\n[client.plain]\nkeyring = {tmp_path / 'keyring'}\n")
    async with connected(conf, user="plain") as client:
        await trio.to_thread.run_sync(client.blocklist, "127.0.0.1:0/123456", 1e6)
    assert "127.0.0.1:0/123456 " in await trio.to_thread.run_sync(ceph_cluster.ceph, "osd", "blocklist", "ls")


async def test_a_cancelled_open_does_not_wait_for_a_guard_that_cannot_be_put_back(private_cluster: Cluster) -> None:
    await trio.to_thread.run_sync(private_cluster.rbd, "create", "--size", "8M", "disk")
    async with connected(private_cluster.conf) as client:
        async with owned(client, "disk", FreeClaim()) as own:
            await own.records.write(ImageRecord(1, FreeClaim().host, "charon"), guard=True)
        header = await fetch_header(client, "disk")
        with trio.CancelScope() as scope:
            async with ownership.guard_lifted(client, header, identity_of(client, header)):
                os.kill(private_cluster.pid("osd.0"), signal.SIGSTOP)
                began = trio.current_time()
                scope.cancel()
    # Its connection has been closed as well, and lives on until the guard is back.
    took = trio.current_time() - began
    os.kill(private_cluster.pid("osd.0"), signal.SIGCONT)
    assert took < ENDS_WITHIN
    async with connected(private_cluster.conf) as other:
        await eventually(lambda: _guard_is(other, header.guard))


async def _guard_is(client: Client, guard: str | None) -> bool:
    return (await fetch_header(client, "disk")).guard == guard


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - librbd tells nobody
            await trio.sleep(0.05)
