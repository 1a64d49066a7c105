"""Images as files: what an opener may do, what lies past the end, and what the kernel may keep."""

import errno
import os

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import DONE, ImageInfo
from fusecache.api.errors import (
    ImageExists,
    ImageGone,
    ImageNotFound,
    NotPermitted,
    OutOfRange,
    VolumeClosed,
    VolumeReadOnly,
)
from fusecache.images.files import FilePolicy, ImageFile, ImageNode, RootDirectory, image_inode
from fusecache.images.node import FileNode, OpenFile
from fusecache.testing.claims import FreeClaim
from fusecache.testing.gated import GatedVolume
from fusecache.testing.harness import put
from tests.support.images import Call, Shelf, read, shelf, write
from tests.support.nodes import Folder

CLOSED = FilePolicy(uid=1000, gid=100)
OPEN = FilePolicy(uid=1000, gid=100, create=True, rename=True, remove=True, resize=True)


async def node_of(images: Shelf, name: str = "disk", policy: FilePolicy = CLOSED) -> ImageNode:
    return ImageNode(images.registry, await images.registry.lookup(name), policy)


async def opened(
    images: Shelf, flags: int = os.O_RDWR, *, name: str = "disk", policy: FilePolicy = CLOSED
) -> ImageFile:
    file = await (await node_of(images, name, policy)).open(flags)
    assert isinstance(file, ImageFile)
    return file


def never(*_: object) -> None:
    raise AssertionError("done was called")


async def test_openers_are_counted_and_the_last_one_closes_the_image() -> None:
    async with shelf("disk") as images:
        reader, writer = await opened(images, os.O_RDONLY), await opened(images, os.O_WRONLY)
        image = images.registry.all_open()[0]
        assert (image.openers, image.writers) == (2, 1)
        writer.close()
        assert (image.openers, image.writers) == (1, 0)
        await wait_all_tasks_blocked()
        assert not images.closed
        reader.close()
        await wait_all_tasks_blocked()
        assert images.closed == ["disk"]


async def test_opening_with_truncation_changes_nothing() -> None:
    async with shelf("disk") as images:
        file = await opened(images, os.O_RDWR | os.O_TRUNC)
        assert file.end == 4096


@pytest.mark.parametrize(("flags", "direct"), [(os.O_RDWR, False), (os.O_RDWR | os.O_DIRECT, True)])
async def test_only_direct_openers_bypass_the_page_cache(flags: int, direct: bool) -> None:
    async with shelf("disk") as images:
        file = await opened(images, flags)
        assert (file.direct, file.parallel, file.interruptible_writes) == (direct, True, False)


async def test_pages_are_kept_once_the_kernel_has_dropped_the_old_ones() -> None:
    async with shelf("disk") as images:
        first, second = await opened(images), await opened(images)
        # Nothing shows yet that the first open is complete.
        assert (first.keep_cache, second.keep_cache) == (False, False)
        await read(first, 0, 10).result()
        third = await opened(images)
        assert third.keep_cache
        images.registry.all_open()[0].cache_valid = False
        await read(first, 0, 10).result()
        assert not (await opened(images)).keep_cache


async def test_a_write_shows_that_an_open_is_complete() -> None:
    async with shelf("disk") as images, images.registry.using("disk") as image:
        file = await opened(images)
        assert not image.cache_valid
        await write(file, 0, b"a").result()
        assert image.cache_valid


async def test_pages_are_not_kept_over_a_time_without_the_lock() -> None:
    async with shelf("disk") as images:
        file = await opened(images)
        await read(file, 0, 10).result()
        file.close()
        await wait_all_tasks_blocked()
        assert images.closed == ["disk"]
        assert not (await opened(images)).keep_cache


async def test_a_write_stops_at_the_end_of_the_image() -> None:
    async with shelf("disk") as images:
        file = await opened(images, policy=OPEN)
        assert file.clip(4000, 1000) == 96
        for offset in (4096, 1 << 40):
            with pytest.raises(OutOfRange, match=f"'disk' ends at 4096: nothing can be written at {offset}"):
                file.clip(offset, 1)


async def test_its_creator_grows_an_image_by_writing() -> None:
    async with shelf("disk") as images:
        root = RootDirectory(images.registry, Folder(inode=2), OPEN)
        node, file = await root.create("new", os.O_RDWR)
        assert (file.end, file.clip(5000, 100)) == (0, 100)
        await write(file, 1000, b"b" * 10).result()
        await write(file, 0, b"a" * 10).result()
        assert (await node.attributes()).size == 1010
        assert await read(file, 0, 1010).result() == b"a" * 10 + bytes(990) + b"b" * 10
        other = await opened(images, name="new", policy=CLOSED)
        with pytest.raises(OutOfRange):
            other.clip(1010, 1)


async def test_of_two_who_create_a_name_at_once_the_second_opens_what_the_first_made() -> None:
    async with shelf("disk") as images, trio.open_nursery() as nursery:
        root = RootDirectory(images.registry, Folder(inode=2), OPEN)
        made: list[tuple[FileNode, OpenFile]] = []

        async def create(flags: int) -> None:
            made.append(await root.create("new", flags))

        for _ in range(3):
            nursery.start_soon(create, os.O_CREAT | os.O_RDWR)
        await wait_all_tasks_blocked()
        assert len({node.inode for node, _ in made}) == 1
        assert sorted(file.creator for _, file in made) == [False, False, True]
        with pytest.raises(ImageExists):
            await root.create("new", os.O_CREAT | os.O_EXCL | os.O_RDWR)
        for _, file in made:
            file.close()
    assert images.closed == ["new"]


async def test_the_second_to_create_a_name_waits_until_the_image_is_whole() -> None:
    async with shelf("disk") as images, trio.open_nursery() as nursery:
        root = RootDirectory(images.registry, Folder(inode=2), OPEN)
        half, order = trio.Event(), []
        create = images.backend.create

        async def create_slowly(name: str, size: int) -> ImageInfo:
            order.append("begun")
            info = await create(name, size)
            await half.wait()
            order.append("whole")
            return info

        images.backend.create = create_slowly  # type: ignore[method-assign]
        for _ in range(2):
            nursery.start_soon(root.create, "new", os.O_CREAT | os.O_RDWR)
        await wait_all_tasks_blocked()
        assert (order, images.begun) == (["begun"], [])
        half.set()
        await wait_all_tasks_blocked()
        assert order[:2] == ["begun", "whole"]
        assert images.registry.all_open()[0].openers == 2
        nursery.cancel_scope.cancel()


async def test_a_taken_name_without_an_image_stays_taken() -> None:
    async with shelf("disk") as images:

        async def taken(name: str, size: int) -> ImageInfo:
            raise ImageExists("the name is taken; `rbd rm` clears it away")

        images.backend.create = taken  # type: ignore[method-assign]
        root = RootDirectory(images.registry, Folder(inode=2), OPEN)
        with pytest.raises(ImageExists, match="clears it away"):
            await root.create("new", os.O_CREAT | os.O_RDWR)


async def test_a_write_that_cannot_make_the_image_grow_fails() -> None:
    async with shelf() as images:
        _, file = await RootDirectory(images.registry, Folder(inode=2), OPEN).create("new", os.O_RDWR)
        images.volumes["new"].below.close()  # type: ignore[attr-defined]
        with pytest.raises(VolumeClosed):
            await write(file, 0, b"a").result()
        with pytest.raises(VolumeClosed):
            await Call(lambda done: file.allocate(0, 10, done, keep_size=False)).result()


@pytest.mark.parametrize("how", ["write", "allocate"])
async def test_growing_is_answered_even_when_the_stack_ends_meanwhile(how: str) -> None:
    async with shelf() as images:
        _, file = await RootDirectory(images.registry, Folder(inode=2), OPEN).create("new", os.O_RDWR)
        gate = GatedVolume(images.volumes["new"].below, {"resize"})
        images.registry.all_open()[0].top.resize = gate.resize  # type: ignore[method-assign]
        if how == "write":
            call = write(file, 0, b"a")
        else:
            call = Call(lambda done: file.allocate(0, 10, done, keep_size=False))
        await gate.wait_held(1)
        images.nurseries["new"].cancel_scope.cancel()
        with pytest.raises(VolumeClosed):
            await call.result()


async def test_ranges_are_cleared_as_far_as_the_image_goes() -> None:
    async with shelf("disk") as images:
        file = await opened(images)
        await write(file, 0, b"a" * 4096).result()
        await Call(lambda done: file.zero(4000, 1000, done)).result()
        await Call(lambda done: file.discard(0, 100, done)).result()
        assert file.zero(4096, 10, never) is DONE
        assert file.discard(1 << 40, 10, never) is DONE
        assert await read(file, 0, 4096).result() == bytes(100) + b"a" * 3900 + bytes(96)
        assert file.end == 4096


async def test_allocating_grows_only_where_that_is_allowed() -> None:
    async with shelf("disk") as images:
        closed, permitted = await opened(images), await opened(images, policy=OPEN)
        assert closed.allocate(0, 4096, never, keep_size=False) is DONE
        assert closed.allocate(0, 8192, never, keep_size=True) is DONE
        with pytest.raises(NotPermitted, match="set resize = true"):
            closed.allocate(0, 4097, never, keep_size=False)
        await Call(lambda done: permitted.allocate(0, 8192, done, keep_size=False)).result()
        assert closed.end == 8192


async def test_a_length_is_set_only_where_that_is_allowed() -> None:
    async with shelf("disk") as images:
        node, file = await node_of(images), await opened(images)
        for size in (0, 4095, 4097):
            for target in (node, file):
                with pytest.raises(NotPermitted, match="image 'disk': set resize = true"):
                    await target.resize(size)
        await file.resize(4096)
        await node.resize(4096)
        await (await node_of(images, policy=OPEN)).resize(100)
        assert file.end == 100
        await (await opened(images, policy=OPEN)).resize(200)
        assert file.end == 200


async def test_its_creator_makes_an_image_longer_but_never_shorter() -> None:
    async with shelf() as images:
        _, file = await RootDirectory(images.registry, Folder(inode=2), FilePolicy(0, 0, create=True)).create(
            "new", os.O_RDWR
        )
        await file.resize(1000)
        assert file.end == 1000
        with pytest.raises(NotPermitted):
            await file.resize(999)


async def test_a_flush_makes_what_was_written_durable() -> None:
    async with shelf("disk") as images:
        file = await opened(images)
        await write(file, 0, b"a").result()
        assert images.volumes["disk"].unflushed
        await Call(file.flush).result()
        assert not images.volumes["disk"].unflushed


async def test_a_seek_past_the_end_or_without_data_finds_nothing() -> None:
    async with shelf("disk") as images:
        file = await opened(images)
        await put(images.volumes["disk"], 0, b"a" * 100)
        assert await file.seek(0, hole=True) == 100
        assert await file.seek(50, hole=False) == 50
        for offset, hole in ((100, False), (4096, True), (1 << 60, False)):
            with pytest.raises(OSError, match="image 'disk': no") as caught:
                await file.seek(offset, hole=hole)
            assert caught.value.errno == errno.ENXIO


async def test_a_read_only_image_is_opened_for_reading_only() -> None:
    async with shelf("disk") as images:
        images.read_only = True
        with pytest.raises(VolumeReadOnly, match="'disk' can only be read"):
            await opened(images, os.O_RDWR)
        with pytest.raises(VolumeReadOnly):
            await opened(images, os.O_WRONLY)
        await wait_all_tasks_blocked()
        assert not images.registry.all_open()
        assert await read(await opened(images, os.O_RDONLY), 0, 4).result() == bytes(4)


async def test_a_new_image_that_cannot_be_written_is_not_kept_open() -> None:
    async with shelf() as images:
        images.read_only = True
        with pytest.raises(VolumeReadOnly):
            await RootDirectory(images.registry, Folder(inode=2), OPEN).create("new", os.O_RDWR)
        await wait_all_tasks_blocked()
        assert not images.registry.all_open()


async def test_attributes_come_with_the_lookup_and_later_from_what_is_there() -> None:
    async with shelf("disk", release_after=1e9) as images:
        node = await node_of(images)
        await put_behind(images, b"a" * 512)
        first = await node.attributes()
        assert (first.size, first.blocks, first.mtime_ns) == (4096, 0, 0)
        later = await node.attributes()
        assert (later.blocks, later.mtime_ns) == (1, 1)
        assert (later.uid, later.gid, later.mode) == (1000, 100, 0o100600)
        assert later.inode == node.inode == image_inode(images.backend.images["disk"].key)
        file = await opened(images, policy=OPEN)
        await write(file, 0, b"a").result()
        await file.resize(8192)
        changed = await node.attributes()
        assert changed.size == 8192
        assert changed.mtime_ns > 1 << 60


async def put_behind(images: Shelf, data: bytes) -> None:
    async with images.backend.open("disk", FreeClaim()) as volume:
        await put(volume, 0, data)


async def test_an_image_that_was_replaced_is_gone() -> None:
    async with shelf("disk") as images:
        node = await node_of(images, policy=OPEN)
        await node.attributes()
        await images.backend.remove("disk")
        await images.backend.create("disk", 100)
        for use in (node.attributes(), node.open(os.O_RDWR), node.resize(0)):
            with pytest.raises(ImageGone, match="'disk' was replaced"):
                await use
        assert images.backend.images["disk"].content.size == 100
        await wait_all_tasks_blocked()
        assert not images.registry.all_open()


def test_inode_numbers_come_from_the_key_alone() -> None:
    numbers = {image_inode(f"key {number}") for number in range(1000)}
    assert len(numbers) == 1000
    assert all(1 << 62 <= number < 1 << 63 for number in numbers)
    # Pinned: it outlives a restart.
    assert image_inode("2049:131") == 0x668557CD76CA2B16
    image_inode("\udcff")


async def test_the_root_shows_the_images_and_the_control_directory_in_order() -> None:
    async with shelf("b", "a", "-") as images:
        control = Folder(inode=2)
        root = RootDirectory(images.registry, control, CLOSED)
        assert [name for name, _ in await root.entries()] == ["-", ".control", "a", "b"]
        assert await root.lookup(".control") is control
        found = await root.lookup("a")
        assert isinstance(found, ImageNode)
        assert (await found.attributes()).size == 4096
        with pytest.raises(ImageNotFound):
            await root.lookup("c")


async def test_the_root_is_a_directory_of_the_owner() -> None:
    async with shelf() as images:
        attributes = await RootDirectory(images.registry, Folder(inode=2), CLOSED).attributes()
        assert (attributes.inode, attributes.mode, attributes.nlink) == (1, 0o040755, 3)
        assert (attributes.uid, attributes.gid) == (CLOSED.uid, CLOSED.gid)


async def test_names_change_only_where_that_is_allowed() -> None:
    async with shelf("disk") as images:
        root = RootDirectory(images.registry, Folder(inode=2), CLOSED)
        with pytest.raises(NotPermitted, match="set create = true"):
            await root.create("new", os.O_RDWR)
        with pytest.raises(NotPermitted, match="set remove = true"):
            await root.unlink("disk")
        with pytest.raises(NotPermitted, match="set rename = true"):
            await root.rename("disk", "new")
        assert list(images.backend.images) == ["disk"]
        permitted = RootDirectory(images.registry, Folder(inode=2), OPEN)
        await permitted.rename("disk", "new")
        await permitted.unlink("new")
        assert not images.backend.images
