"""Names in a Ceph pool: what is listed and looked up, and at what cost; and what creates, renames and removes."""

import errno
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

from fusecache.api import Backend, Identity, ImageRecord
from fusecache.api.errors import CorruptState, ImageBusy, ImageExists, ImageNotFound, NotSupported
from fusecache.backends import records
from tests.support.ceph import Cluster
from tests.support.pools import (
    create_images,
    open_elsewhere,
    pool_backend,
    stored,
)

SIZE = 1 << 20
MANY = 1000
LISTED_WITHIN = 1.0
"""Seconds for a list of many images, with sizes and times."""


@pytest.fixture
async def backend(ceph_cluster: Cluster, namespace: str) -> AsyncIterator[Backend]:
    """A backend over that namespace."""
    async with pool_backend(ceph_cluster, namespace=namespace) as backend:
        yield backend


async def names(backend: Backend) -> set[str]:
    return {info.name for info in await backend.list()}


async def test_a_thousand_images_are_listed_at_once(ceph_cluster: Cluster, namespace: str, backend: Backend) -> None:
    expected = [f"image-{number:04}" for number in range(MANY)]
    await trio.to_thread.run_sync(create_images, ceph_cluster, namespace, expected, SIZE)
    began = time.monotonic()
    found = await backend.list()
    took = time.monotonic() - began
    assert sorted(info.name for info in found) == expected
    assert {info.size for info in found} == {SIZE}
    assert all(info.mtime_ns for info in found)
    assert took < LISTED_WITHIN, f"a list of {MANY} images took {took:.2f} s"


async def test_an_image_of_others_is_listed_and_looked_up_as_it_is(backend: Backend, rbd: Callable[..., str]) -> None:
    rbd("create", "--size", "5G", "%theirs")
    (info,) = await backend.list()
    assert info == await backend.lookup("theirs")
    assert (info.name, info.size, info.allocated, info.read_only) == ("theirs", 5 << 30, None, False)
    age = time.time_ns() - info.mtime_ns
    assert 0 <= age < 60 * 1_000_000_000
    assert info.key.startswith("rbd:")


async def test_a_new_image_has_the_features_that_clusters_give_by_default(
    backend: Backend, rbd: Callable[..., str]
) -> None:
    await backend.create("ours", SIZE + 517)
    found = rbd("info", "%ours")
    assert "format: 2" in found
    assert "features: layering, exclusive-lock, object-map, fast-diff, deep-flatten" in found
    assert (await backend.lookup("ours")).size == SIZE + 517


async def test_the_key_is_the_identity_of_an_image_in_its_cluster_pool_and_namespace(
    ceph_cluster: Cluster, namespace: str, backend: Backend, rbd: Callable[..., str]
) -> None:
    await backend.create("ours", SIZE)
    fsid = ceph_cluster.ceph("fsid").strip()
    image_id = rbd("info", "%ours").split("\tid: ")[1].split()[0]
    (pool,) = json.loads(ceph_cluster.ceph("osd", "dump", "-f", "json"))["pools"]
    assert (await backend.lookup("ours")).key == f"rbd:{fsid}:{pool['pool']}:{namespace}:{image_id}"


async def test_looking_opens_nothing_and_writes_nothing(
    ceph_cluster: Cluster, namespace: str, backend: Backend, rbd: Callable[..., str]
) -> None:
    await backend.create("ours", SIZE)
    rbd("snap", "create", "%ours@one")
    before = stored(ceph_cluster, namespace)
    await backend.list()
    await backend.lookup("ours")
    await backend.lookup("ours@one")
    await backend.snapshots("ours")
    await backend.read_record("ours")
    assert stored(ceph_cluster, namespace) == before
    assert "Watchers: none" in rbd("status", "%ours")


async def test_a_lookup_costs_two_round_trips(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    from fusecache.backends.rbd.client import Client  # noqa: PLC0415 - needs the bindings

    await backend.create("ours", SIZE)
    trips = 0
    operate = Client.operate

    async def counted(self: Client, submit: Callable[[Callable[..., None]], object]) -> tuple[Any, ...]:
        nonlocal trips
        trips += 1
        return await operate(self, submit)

    monkeypatch.setattr(Client, "operate", counted)
    await backend.lookup("ours")
    assert trips == 2
    with pytest.raises(ImageNotFound):
        await backend.lookup("missing")
    assert trips == 3


async def test_snapshots_are_looked_up_under_the_image_and_not_listed(
    backend: Backend, rbd: Callable[..., str]
) -> None:
    await backend.create("ours", SIZE)
    rbd("snap", "create", "%ours@one")
    rbd("resize", "--size", "3M", "%ours")
    rbd("snap", "create", "%ours@with blanks")
    assert await names(backend) == {"ours"}
    found = {info.name: info for info in await backend.snapshots("ours")}
    assert {name: info.size for name, info in found.items()} == {"ours@one": SIZE, "ours@with blanks": 3 << 20}
    for name, info in found.items():
        assert info.read_only
        assert info.snapshot
        assert info.mtime_ns
        assert await backend.lookup(name) == info
    keys = {info.key for info in found.values()}
    image_key = (await backend.lookup("ours")).key
    assert len(keys) == 2
    assert all(key.startswith(f"{image_key}@") for key in keys)
    with pytest.raises(ImageNotFound, match="has no snapshot 'two'; it has: 'one', 'with blanks'"):
        await backend.lookup("ours@two")
    with pytest.raises(ImageNotFound, match="no image 'missing'"):
        await backend.lookup("missing@one")


async def test_changes_of_snapshots_are_refused(backend: Backend, rbd: Callable[..., str]) -> None:
    await backend.create("ours", SIZE)
    rbd("snap", "create", "%ours@one")
    for change in (
        backend.create("new@one", SIZE),
        backend.rename("ours@one", "new"),
        backend.rename("ours", "new@one"),
        backend.remove("ours@one"),
    ):
        with pytest.raises(NotSupported, match="allowed: without '@'"):
            await change
    assert await names(backend) == {"ours"}


async def test_images_whose_names_no_file_can_have_hide_no_others(
    ceph_cluster: Cluster, namespace: str, backend: Backend
) -> None:
    create_images(ceph_cluster, namespace, ["a/b", "a@b", ".", "n" * 256, "ünï code", "n" * 255], SIZE)
    assert await names(backend) == {"ünï code", "n" * 255}


async def test_odd_keys_of_an_image_do_not_hide_it(backend: Backend, rbd: Callable[..., str]) -> None:
    await backend.create("ours", SIZE)
    rbd("image-meta", "set", "%ours", "\udcff\udcfe", "\udcff")
    rbd("image-meta", "set", "%ours", "fusecache_record", "\udcff")
    assert await names(backend) == {"ours"}
    with pytest.raises(CorruptState):
        await backend.read_record("ours")


async def test_an_image_without_the_lock_feature_is_read_only(backend: Backend, rbd: Callable[..., str]) -> None:
    rbd("create", "--size", "1M", "--image-feature", "layering", "%theirs")
    assert (await backend.lookup("theirs")).read_only


async def test_an_image_with_snapshots_is_not_removed_and_it_is_said_what_to_do(
    namespace: str, backend: Backend, rbd: Callable[..., str]
) -> None:
    await backend.create("ours", SIZE)
    rbd("snap", "create", "%ours@one")
    with pytest.raises(OSError, match=f"`rbd snap purge rbd/{namespace}/ours`") as caught:
        await backend.remove("ours")
    assert caught.value.errno == errno.ENOTEMPTY
    rbd("snap", "purge", "--no-progress", "%ours")
    await backend.remove("ours")
    assert await names(backend) == set()


async def test_an_image_that_another_client_has_open_is_renamed_and_not_removed(
    ceph_cluster: Cluster, namespace: str, backend: Backend
) -> None:
    await backend.create("ours", SIZE)
    with open_elsewhere(ceph_cluster, namespace, "ours"):
        with pytest.raises(ImageBusy, match=f"`rbd status rbd/{namespace}/ours` says who"):
            await backend.remove("ours")
        await backend.rename("ours", "renamed")
        assert await names(backend) == {"renamed"}
        with pytest.raises(ImageBusy):
            await backend.remove("renamed")
    await backend.remove("renamed")


async def test_an_image_with_dirty_data_on_some_host_is_neither_renamed_nor_removed(
    backend: Backend, rbd: Callable[..., str]
) -> None:
    info = await backend.create("ours", SIZE)
    record = ImageRecord(3, "1" * 32, "charon", "text")
    rbd("image-meta", "set", "%ours", "fusecache_record", records.encode(record, Identity(info.key)))
    assert await backend.read_record("ours") == record
    with pytest.raises(ImageBusy, match="charon holds dirty data"):
        await backend.rename("ours", "new")
    with pytest.raises(ImageBusy, match="charon holds dirty data"):
        await backend.remove("ours")
    clean = ImageRecord(3)
    rbd("image-meta", "set", "%ours", "fusecache_record", records.encode(clean, Identity(info.key)))
    await backend.rename("ours", "new")
    assert await backend.read_record("new") == clean
    await backend.remove("new")


async def test_an_image_without_a_record_has_none(backend: Backend) -> None:
    await backend.create("ours", SIZE)
    assert await backend.read_record("ours") is None
    with pytest.raises(ImageNotFound):
        await backend.read_record("missing")


async def test_a_name_left_behind_by_a_broken_creation_is_taken_and_it_is_said_what_to_do(
    ceph_cluster: Cluster, namespace: str, backend: Backend, rbd: Callable[..., str]
) -> None:
    await backend.create("ours", SIZE)
    image_id = (await backend.lookup("ours")).key.rpartition(":")[2]
    ceph_cluster.run("rados", "-p", "rbd", "-N", namespace, "rm", f"rbd_header.{image_id}")
    assert await names(backend) == set()
    with pytest.raises(ImageNotFound, match="`rbd rm` clears away the rest"):
        await backend.lookup("ours")
    with pytest.raises(ImageExists, match=f"`rbd rm rbd/{namespace}/ours` clears it away"):
        await backend.create("ours", SIZE)
    rbd("rm", "--no-progress", "%ours")
    await backend.create("ours", SIZE)


async def test_a_header_that_does_not_parse_hides_no_other_image(
    ceph_cluster: Cluster, namespace: str, backend: Backend
) -> None:
    await backend.create("ours", SIZE)
    image_id = (await backend.create("broken", SIZE)).key.rpartition(":")[2]
    ceph_cluster.run("rados", "-p", "rbd", "-N", namespace, "rmomapkey", f"rbd_header.{image_id}", "size")
    assert await names(backend) == {"ours"}
    with pytest.raises(CorruptState, match="'broken', names no size"):
        await backend.lookup("broken")
