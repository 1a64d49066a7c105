"""Which client an image of a pool is opened through, and what is opened without a lock."""

import errno
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from fusecache.api import Backend, FusecacheError, ImageRecord, joined
from fusecache.api.errors import ImageBusy, ImageGone, VolumeReadOnly, errno_of
from fusecache.testing.claims import FreeClaim
from tests.support.ceph import Cluster
from tests.support.pools import blocklist, pool_backend

SIZE = 1 << 20
DATA = b"before" * 1000

SOON = 10.0
"""Seconds in which an open image notices what happened to its client."""


@pytest.fixture
async def backend(ceph_cluster: Cluster, namespace: str) -> AsyncIterator[Backend]:
    """A backend over that namespace, with an image."""
    async with pool_backend(ceph_cluster, namespace=namespace) as backend:
        await backend.create("image", SIZE)
        yield backend


def owner(rbd: Callable[..., str], name: str) -> str:
    """Return the address of the client that has an image locked."""
    (lock,) = json.loads(rbd("lock", "list", "--format", "json", f"%{name}"))
    address: str = lock["address"]
    return address


def watchers(rbd: Callable[..., str], name: str) -> int:
    """Return how many have an image open."""
    return len(json.loads(rbd("status", "--format", "json", f"%{name}"))["watchers"])


async def write_some(backend: Backend, name: str, data: bytes = DATA) -> None:
    async with backend.open(name, FreeClaim()) as image:
        await image.write(0, memoryview(data))


async def test_images_share_a_client_but_for_those_that_may_become_dirty(
    backend: Backend, rbd: Callable[..., str]
) -> None:
    await backend.create("other", SIZE)
    await backend.create("third", SIZE)
    async with (
        backend.open("image", FreeClaim()),
        backend.open("other", FreeClaim()),
        backend.open("third", FreeClaim(), dedicated=True),
    ):
        assert owner(rbd, "image") == owner(rbd, "other") != owner(rbd, "third")


async def test_the_claim_is_told_the_client_that_has_the_lock(backend: Backend, rbd: Callable[..., str]) -> None:
    for dedicated in (False, True):
        claim = FreeClaim()
        async with backend.open("image", claim, dedicated=dedicated) as image:
            assert claim.asked == [(image.identity, owner(rbd, "image"))]


async def test_an_image_that_is_dirty_has_a_client_of_its_own_whatever_the_config_says_now(
    backend: Backend, rbd: Callable[..., str]
) -> None:
    claim = FreeClaim()
    await backend.create("other", SIZE)
    async with backend.open("image", claim, dedicated=True) as image:
        await image.set_record(ImageRecord(1, claim.host, "charon"), guard=True)
    again = FreeClaim()
    async with backend.open("other", FreeClaim()), backend.open("image", again):
        assert again.asked[0][1] != owner(rbd, "other")


async def test_losing_the_shared_client_loses_its_images_and_no_others_and_new_opens_have_a_new_one(
    ceph_cluster: Cluster, backend: Backend, rbd: Callable[..., str]
) -> None:
    await backend.create("other", SIZE)
    await write_some(backend, "image")
    async with backend.open("other", FreeClaim(), dedicated=True) as other:
        async with backend.open("image", FreeClaim()) as image:
            before = owner(rbd, "image")
            await trio.to_thread.run_sync(blocklist, ceph_cluster, before)
            with trio.fail_after(SOON):
                await image.until_lost()
            with pytest.raises(VolumeReadOnly):
                await image.write(0, memoryview(b"late"))
            with pytest.raises(FusecacheError) as caught:
                await image.read(0, 512)
            assert errno_of(caught.value) == errno.EIO
            assert (await image.info()).name == "image"
            assert {info.name for info in await backend.list()} == {"image", "other"}
        await other.write(0, memoryview(b"still"))
        async with backend.open("image", FreeClaim(gone=[before])) as image:
            assert owner(rbd, "image") != before
            assert joined(await image.read(0, len(DATA))) == DATA
            await image.write(0, memoryview(b"again"))


async def test_a_client_of_its_own_ends_with_its_image(backend: Backend, rbd: Callable[..., str]) -> None:
    async with backend.open("image", FreeClaim(), dedicated=True):
        inside = threading.active_count()
        assert watchers(rbd, "image") == 1
    assert threading.active_count() < inside
    assert watchers(rbd, "image") == 0


async def test_a_snapshot_is_read_as_it_was_without_a_lock(backend: Backend, rbd: Callable[..., str]) -> None:
    await write_some(backend, "image")
    rbd("snap", "create", "%image@one")
    claim = FreeClaim()
    async with backend.open("image", FreeClaim()) as image, backend.open("image@one", claim) as snapshot:
        await image.write(0, memoryview(b"later" * 1000))
        await image.resize(SIZE * 2)
        assert joined(await snapshot.read(0, len(DATA))) == DATA
        assert snapshot.size == SIZE
        assert snapshot.read_only
        assert snapshot.cacheable
        assert not snapshot.note
        assert not claim.asked
        assert await snapshot.record() is None
        assert await snapshot.info() == await backend.lookup("image@one")
        assert str(snapshot.identity).startswith(f"{image.identity}@")
        with pytest.raises(VolumeReadOnly):
            await snapshot.write(0, memoryview(b"x"))
        await backend.rename("image", "renamed")
        assert (await snapshot.info()).name == "renamed@one"
        async with backend.open("renamed@one", FreeClaim()):
            pass


async def test_a_snapshot_that_was_removed_behind_us_is_gone(backend: Backend, rbd: Callable[..., str]) -> None:
    rbd("snap", "create", "%image@one")
    async with backend.open("image@one", FreeClaim()) as snapshot:
        rbd("snap", "rm", "--no-progress", "%image@one")
        with pytest.raises(ImageGone):
            await snapshot.info()


async def test_a_snapshot_of_an_image_that_is_dirty_here_is_opened_and_the_guard_stays(
    ceph_cluster: Cluster, backend: Backend, namespace: str, rbd: Callable[..., str]
) -> None:
    rbd("snap", "create", "%image@one")
    claim = FreeClaim()
    async with backend.open("image", claim, dedicated=True) as image:
        await image.set_record(ImageRecord(1, claim.host, "charon"), guard=True)
        async with backend.open("image@one", FreeClaim(claim.host)) as snapshot:
            assert snapshot.size == SIZE
        refused = ceph_cluster.attempt("rbd", "info", f"rbd/{namespace}/image")
        assert refused.returncode == errno.ENOSYS
    with pytest.raises(ImageBusy, match="charon"):
        async with backend.open("image@one", FreeClaim("1" * 32)):
            pass


async def test_an_image_without_the_lock_feature_is_read_only_and_it_is_said_what_to_enable(
    ceph_cluster: Cluster, backend: Backend, rbd: Callable[..., str]
) -> None:
    rbd("create", "--size", "1M", "--image-feature", "layering", "%theirs")
    claim = FreeClaim()
    async with backend.open("theirs", claim) as image:
        assert image.read_only
        assert not image.cacheable
        assert "rbd feature enable theirs exclusive-lock" in image.note
        assert not claim.asked
        with pytest.raises(VolumeReadOnly):
            await image.write(0, memoryview(b"x"))
        async with backend.open("theirs", FreeClaim()) as again:
            assert await again.info() == await backend.lookup("theirs")
    rbd("feature", "enable", "%theirs", "exclusive-lock")
    async with backend.open("theirs", FreeClaim()) as image:
        assert not image.read_only


async def test_a_config_that_would_write_from_freed_memory_or_lose_data_does_not_count(
    ceph_cluster: Cluster, tmp_path: Path
) -> None:
    """The binding does not keep the bytes of a write: with the first option false nine of ten were garbage."""
    conf = tmp_path / "ceph.conf"
    options = "rbd disable zero copy writes = false\nrbd cache = true\nrados osd op timeout = 1\n"
    conf.write_text(f"{ceph_cluster.conf.read_text()}\n[client]\n{options}")
    async with pool_backend(ceph_cluster, conf=conf) as backend:
        await backend.create("image", SIZE)
        async with backend.open("image", FreeClaim()) as image:
            for length in (1, 2, 16, 100, 4096, 65536):
                data = bytes(range(1, 256)) * (length // 255 + 1)
                await image.write(0, memoryview(data)[:length])
                assert joined(await image.read(0, length)) == data[:length]
