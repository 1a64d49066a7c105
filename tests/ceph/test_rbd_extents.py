"""Extents of images of a pool: they cover exactly what was asked, no hole hides data, and they cost little."""

import random
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from fusecache.api import Extent, ExtentKind, Span
from fusecache.api.ranges import merge_extents
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.image import RbdImage
from fusecache.testing.harness import fetch, pattern, put
from tests.support.ceph import Cluster
from tests.support.rbd import clone, create, make_snapshot, opened, running_client
from tests.support.rbd import rbd as bindings

# After the module above, which skips where the bindings are missing.
from fusecache.backends.rbd.extents import covering  # isort: skip

MIB = 1 << 20
WITHOUT_MAP = 5
"""Layering and exclusive-lock."""
OBJECT = 4 * MIB
DATA, HOLE = ExtentKind.DATA, ExtentKind.HOLE


@pytest.fixture
async def client(ceph_cluster: Cluster) -> AsyncIterator[Client]:
    """A client of the shared cluster."""
    async with running_client(ceph_cluster) as client:
        yield client


def exact(extents: Sequence[Extent], offset: int, length: int) -> bool:
    """Say whether *extents* cover the range in order, without gap, and joined."""
    at = offset
    for extent in extents:
        if extent.offset != at or extent.length < 1:
            return False
        at = extent.end
    return at == offset + length and list(merge_extents(extents)) == list(extents)


async def hide_no_data(image: RbdImage, offset: int, length: int) -> Sequence[Extent]:
    """Return the extents of a range after a look at what the holes read as."""
    extents = await image.extents(offset, length)
    assert exact(extents, offset, length)
    for extent in extents:
        if extent.kind is HOLE:
            assert not any(await fetch(image, extent.offset, extent.length)), f"{extent} holds data"
    return extents


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], [(10, 90, HOLE)]),
        ([(0, 200)], [(10, 90, DATA)]),
        ([(40, 50), (20, 30)], [(10, 10, HOLE), (20, 10, DATA), (30, 10, HOLE), (40, 10, DATA), (50, 50, HOLE)]),
        ([(0, 15), (15, 20), (12, 18), (95, 300)], [(10, 10, DATA), (20, 75, HOLE), (95, 5, DATA)]),
        ([(0, 10), (100, 110)], [(10, 90, HOLE)]),
    ],
)
def test_data_in_any_order_covers_the_range_with_holes_between(
    data: list[tuple[int, int]], expected: list[tuple[int, int, ExtentKind]]
) -> None:
    spans = [Span(*part) for part in data]
    assert list(merge_extents(covering(Span(10, 100), spans))) == [Extent(*part) for part in expected]


async def test_holes_are_the_objects_that_do_not_exist(client: Client, image_name: str) -> None:
    size = 10 * OBJECT + 517
    await client.call(create, client, image_name, size)
    async with opened(client, image_name) as image:
        assert await image.extents(0, size) == [Extent(0, size, HOLE)]
        await put(image, OBJECT + 5, b"x")
        await put(image, size - 1, b"x")
        ends = 10 * OBJECT
        assert await image.extents(0, size) == [
            Extent(0, OBJECT, HOLE),
            Extent(OBJECT, OBJECT, DATA),
            Extent(2 * OBJECT, ends - 2 * OBJECT, HOLE),
            Extent(ends, 517, DATA),
        ]
        assert await image.extents(OBJECT + 7, 3) == [Extent(OBJECT + 7, 3, DATA)]
        assert await image.extents(OBJECT - 1, 2) == [Extent(OBJECT - 1, 1, HOLE), Extent(OBJECT, 1, DATA)]
        await image.discard(OBJECT, OBJECT)
        assert await image.extents(0, ends) == [Extent(0, ends, HOLE)]


async def test_no_hole_of_an_image_its_snapshots_and_clones_hides_data(
    client: Client, image_name: str, seed: int
) -> None:
    """A seeded run of changes and snapshots; then the same on a clone of the last."""
    rng = random.Random(seed)
    size = 6 * OBJECT + 517
    await client.call(create, client, image_name, size)
    async with opened(client, image_name) as image:
        for number in range(5):
            await change_at_random(image, rng)
            await client.call(make_snapshot, client, image_name, f"s{number}")
        await image.resize(3 * OBJECT)
        await image.resize(size)
        await hide_no_data(image, 0, size)
        for number in range(5):
            async with opened(client, image_name, snapshot=f"s{number}") as snapshot:
                await hide_no_data(snapshot, 0, size)
    await client.call(clone, client, image_name, "s4", f"{image_name}-clone")
    async with opened(client, f"{image_name}-clone") as image:
        await hide_no_data(image, 0, size)
        await change_at_random(image, rng)
        await hide_no_data(image, OBJECT + 5, size - OBJECT - 5)
        await image.resize(2 * OBJECT)
        await image.resize(size)
        assert (await hide_no_data(image, 0, size))[-1].kind is HOLE


async def change_at_random(image: RbdImage, rng: random.Random) -> None:
    """Write to some objects, discard some wholly and some in part."""
    for _ in range(4):
        at = rng.randrange(6) * OBJECT
        change = rng.randrange(3)
        if change == 0:
            await put(image, at + rng.randrange(MIB), pattern(rng.randrange(1, MIB), at))
        else:
            await image.discard(at + (change - 1) * rng.randrange(MIB), OBJECT)


async def test_a_clone_tells_the_data_of_its_parent(client: Client, image_name: str) -> None:
    await client.call(create, client, image_name, 4 * OBJECT)
    async with opened(client, image_name) as image:
        await put(image, OBJECT, b"x")
    await client.call(make_snapshot, client, image_name, "s")
    await client.call(clone, client, image_name, "s", f"{image_name}-clone")
    async with opened(client, f"{image_name}-clone") as image:
        assert [extent.kind for extent in await image.extents(0, 4 * OBJECT)] == [HOLE, DATA, HOLE]


async def test_all_is_data_where_there_is_no_map(client: Client, image_name: str) -> None:
    await client.call(create, client, image_name, 4 * OBJECT, WITHOUT_MAP)
    async with opened(client, image_name) as image:
        assert await image.extents(5, OBJECT) == [Extent(5, OBJECT, DATA)]


async def test_all_is_data_where_the_map_is_invalid(ceph_cluster: Cluster, client: Client, image_name: str) -> None:
    await client.call(create, client, image_name, 4 * OBJECT)
    header = ceph_cluster.rbd("info", image_name).partition("id: ")[2].split()[0]
    ceph_cluster.run("rados", "-p", "rbd", "rm", f"rbd_object_map.{header}")
    async with opened(client, image_name) as image:
        await put(image, OBJECT, b"x")
        assert image._handle.image.flags() & bindings.RBD_FLAG_FAST_DIFF_INVALID
        assert await image.extents(0, 4 * OBJECT) == [Extent(0, 4 * OBJECT, DATA)]


async def test_extents_of_the_largest_images_take_little_time(client: Client, image_name: str) -> None:
    size = 64 << 40
    await client.call(create, client, image_name, size)
    async with opened(client, image_name) as image:
        await put(image, 5 << 40, b"x")
        began = time.monotonic()
        extents = await image.extents(0, size)
        took = time.monotonic() - began
        assert exact(extents, 0, size)
        assert extents[0].kind is HOLE
        assert extents[-1].kind is DATA
        assert took < 3
