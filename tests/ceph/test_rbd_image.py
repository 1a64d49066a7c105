"""An open image of a pool keeps the contract of a volume, on a real cluster."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from fusecache.api import DECLINED, DONE, PENDING, ImageRecord, joined
from fusecache.api.errors import VolumeClosed, VolumeReadOnly
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.image import RbdImage
from fusecache.testing.conformance import check_volume
from fusecache.testing.harness import AttemptWatch, content, fetch, pattern, put
from tests.support.ceph import Cluster
from tests.support.rbd import PLAIN, clone, create, make_snapshot, opened, running_client

MIB = 1 << 20
WITHOUT_MAP = 5
"""Layering and exclusive-lock."""


@pytest.fixture
async def client(ceph_cluster: Cluster) -> AsyncIterator[Client]:
    """A client of the shared cluster."""
    async with running_client(ceph_cluster) as client:
        yield client


@asynccontextmanager
async def fresh(client: Client, name: str, size: int, features: int = PLAIN) -> AsyncIterator[RbdImage]:
    """Create an image and open it."""
    await client.call(create, client, name, size, features)
    async with opened(client, name) as image:
        yield image


async def test_an_image_keeps_the_contract_of_a_volume(client: Client, image_name: str) -> None:
    numbers = count()
    await check_volume(lambda size: fresh(client, f"{image_name}-{next(numbers)}", size))


async def test_a_clone_keeps_the_contract_of_a_volume(client: Client, image_name: str) -> None:
    numbers = count()

    @asynccontextmanager
    async def cloned(size: int) -> AsyncIterator[RbdImage]:
        name = f"{image_name}-{next(numbers)}"
        await client.call(create, client, name, size)
        await client.call(make_snapshot, client, name, "s")
        await client.call(clone, client, name, "s", f"{name}-clone")
        async with opened(client, f"{name}-clone") as image:
            yield image

    await check_volume(cloned, sizes=[(64 << 10) + 517])


async def test_an_image_of_odd_objects_and_size_keeps_the_contract_of_a_volume(client: Client, image_name: str) -> None:
    """Objects of 8 KiB, striped over three, and no object map."""
    numbers = count()

    @asynccontextmanager
    async def striped(size: int) -> AsyncIterator[RbdImage]:
        name = f"{image_name}-{next(numbers)}"
        await client.call(lambda: create(client, name, size, WITHOUT_MAP, order=13, stripe_unit=4096, stripe_count=3))
        async with opened(client, name) as image:
            yield image

    await check_volume(striped, sizes=[(64 << 10) + 517])


async def test_a_clone_shows_its_parent_and_hides_what_was_discarded(client: Client, image_name: str) -> None:
    size = 12 * MIB + 517
    async with fresh(client, image_name, size) as parent:
        below = pattern(size, 1)
        await put(parent, 0, below)
    await client.call(make_snapshot, client, image_name, "s")
    await client.call(clone, client, image_name, "s", f"{image_name}-clone")
    async with opened(client, f"{image_name}-clone") as image:
        assert await content(image) == below
        expected = bytearray(below)
        for offset, length in ((0, 4 * MIB), (5 * MIB + 3, 1000), (9 * MIB, 3 * MIB + 517)):
            await image.discard(offset, length)
            expected[offset : offset + length] = bytes(length)
            assert await content(image) == expected
        await image.resize(6 * MIB)
        await image.resize(size)
        expected[6 * MIB :] = bytes(size - 6 * MIB)
        assert await content(image) == expected


async def test_a_snapshot_shows_what_was_there_and_refuses_changes(client: Client, image_name: str) -> None:
    before = pattern(MIB, 2)
    async with fresh(client, image_name, 16 * MIB) as image:
        await put(image, 8 * MIB, before)
        await client.call(make_snapshot, client, image_name, "s")
        await put(image, 8 * MIB, pattern(MIB, 3))
        await image.resize(MIB)
        async with opened(client, image_name, snapshot="s") as snapshot:
            assert (snapshot.size, snapshot.read_only) == (16 * MIB, True)
            assert await fetch(snapshot, 8 * MIB, MIB) == before
            await snapshot.flush()
            for change in (snapshot.discard, snapshot.write_zeroes):
                with pytest.raises(VolumeReadOnly, match=f"{image_name}@s is open for reading only"):
                    await change(0, 4096)
            with pytest.raises(VolumeReadOnly):
                await put(snapshot, 0, b"x")
            with pytest.raises(VolumeReadOnly):
                await snapshot.resize(4096)
            with pytest.raises(VolumeReadOnly):
                await snapshot.set_record(ImageRecord(epoch=1), guard=False)
            assert await snapshot.record() is None
            assert await fetch(snapshot, 8 * MIB, MIB) == before


async def test_a_discard_of_any_length_ends_and_can_be_cancelled_between_slices(
    client: Client, image_name: str
) -> None:
    size = 16 << 40
    async with fresh(client, image_name, size) as image:
        for offset in (0, 5 << 40, size - 4096):
            await put(image, offset, pattern(4096, 4))
        watch = AttemptWatch()
        assert image.try_discard(0, size, watch.done) is DECLINED
        assert image.try_write_zeroes(0, size, watch.done) is DECLINED
        with trio.move_on_after(0.2) as scope:
            await image.discard(0, size)
        assert scope.cancelled_caught
        assert trio.current_time() - scope.deadline < 1
        assert await fetch(image, 0, 4096) == bytes(4096)
        assert await fetch(image, 5 << 40, 4096) == pattern(4096, 4)
        with trio.fail_after(25):
            await image.discard((4 << 40) + 1, 2 << 40)
        assert await fetch(image, 5 << 40, 4096) == bytes(4096)
        assert await fetch(image, size - 4096, 4096) == pattern(4096, 4)


async def test_a_flush_has_nothing_to_wait_for(client: Client, image_name: str) -> None:
    """What is acknowledged is durable already; what is not is none of its business."""
    async with fresh(client, image_name, MIB) as image:
        write, flush = AttemptWatch(), AttemptWatch()
        assert image.try_write(0, memoryview(b"x" * 4096), write.done) is PENDING
        assert image.try_flush(flush.done) is DONE
        await image.flush()
        assert flush.calls == 0


async def test_a_closed_image_refuses_every_request(client: Client, image_name: str) -> None:
    async with fresh(client, image_name, MIB) as image:
        watch = AttemptWatch()
        assert image.try_write(0, memoryview(b"x" * 4096), watch.done) is PENDING
    # Closing has waited for the write.
    assert watch.calls == 1
    assert client.completions.outstanding == 0
    await image.close()
    for call in (
        lambda: image.read(0, 512),
        lambda: image.write(0, memoryview(b"x")),
        lambda: image.discard(0, 512),
        lambda: image.resize(512),
        lambda: image.extents(0, 512),
        image.flush,
    ):
        with pytest.raises(VolumeClosed):
            await call()
    for attempt in (image.try_read, image.try_discard, image.try_write_zeroes):
        with pytest.raises(VolumeClosed):
            attempt(0, 512, watch.done)
    assert client.completions.outstanding == 0
    async with opened(client, image_name) as again:
        assert joined(await again.read(0, 4096)) == b"x" * 4096


async def test_a_call_of_librbd_that_raises_leaves_nothing_to_wait_for(client: Client, image_name: str) -> None:
    async with fresh(client, image_name, MIB) as image:
        watch = AttemptWatch()
        for refused in (
            lambda: image.try_read(-1, 512, watch.done),
            lambda: image.try_write(-1, memoryview(b"x"), watch.done),
            lambda: image.try_discard(-1, 512, watch.done),
        ):
            with pytest.raises(OverflowError):
                refused()
        assert client.completions.outstanding == 0
    assert watch.calls == 0


async def test_memory_of_requests_is_given_back(client: Client, image_name: str) -> None:
    """Ten times the first round's requests do not take more memory than it did, but for noise."""
    async with fresh(client, image_name, 4 * MIB) as image:

        async def rounds(number: int) -> int:
            for _ in range(number):
                await put(image, 0, pattern(MIB, 5))
                await fetch(image, 0, MIB)
            return resident()

        first = await rounds(20)
        assert await rounds(100) - first < 32 * MIB


def resident() -> int:
    """Return the bytes of memory that this process takes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def test_a_reader_that_gave_up_disturbs_nobody(client: Client, image_name: str) -> None:
    async with fresh(client, image_name, 4 * MIB) as image:
        data = pattern(4 * MIB, 6)
        await put(image, 0, data)
        for _ in range(20):
            with trio.move_on_after(0):
                await image.read(0, 4 * MIB)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(image.read, 0, 4 * MIB)
                await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert await content(image) == data
    assert client.completions.outstanding == 0
