"""Snapshots are files: found by name, listed while their image is open, read and never changed."""

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import BackendImage, Claim, ImageInfo
from fusecache.api.errors import FusecacheError, ImageNotFound, NotPermitted, VolumeReadOnly
from fusecache.images.files import FilePolicy, ImageNode, RootDirectory
from fusecache.images.registry import CONTROL_NAME
from fusecache.testing.gated import GatedVolume
from fusecache.testing.memory import MemoryBackend
from tests.support.controlled import World
from tests.support.images import Shelf, read, shelf
from tests.support.nodes import Folder

OPEN = FilePolicy(uid=1000, gid=100, create=True, rename=True, remove=True, resize=True)


class WithSnapshots(MemoryBackend):
    """Takes what has an ``@`` in its name for a snapshot of what stands before it."""

    broken = False

    async def list(self) -> Sequence[ImageInfo]:
        return [info for info in await super().list() if "@" not in info.name]

    async def lookup(self, name: str) -> ImageInfo:
        info = await super().lookup(name)
        return replace(info, snapshot="@" in name, read_only="@" in name)

    async def snapshots(self, name: str) -> Sequence[ImageInfo]:
        if self.broken:
            raise FusecacheError("the cluster does not answer")
        return [await self.lookup(other) for other in self.images if other.startswith(f"{name}@")]

    @asynccontextmanager
    async def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AsyncIterator[BackendImage]:
        async with super().open(name, claim, read_only="@" in name) as image:
            yield image


def with_snapshots(images: Shelf | World) -> WithSnapshots:
    images.backend.__class__ = WithSnapshots
    assert isinstance(images.backend, WithSnapshots)
    return images.backend


async def names(root: RootDirectory) -> Sequence[str]:
    return [name for name, _node in await root.entries()]


async def test_the_snapshots_of_open_images_are_listed() -> None:
    async with shelf("a", "a@1", "a@2", "b", "b@1") as images:
        with_snapshots(images)
        root = RootDirectory(images.registry, Folder(inode=2), OPEN)
        assert await names(root) == [CONTROL_NAME, "a", "b"]
        async with images.registry.using("a"):
            assert await names(root) == [CONTROL_NAME, "a", "a@1", "a@2", "b"]
        await wait_all_tasks_blocked()
        async with images.registry.using("b@1"):
            assert await names(root) == [CONTROL_NAME, "a", "b"]


async def test_the_snapshots_of_an_image_that_is_being_closed_are_not_listed() -> None:
    async with shelf("a", "a@1") as images:
        with_snapshots(images)
        async with images.registry.using("a"):
            hold = GatedVolume(images.volumes["a"], {"flush"})
            images.registry.all_open()[0].top.flush = hold.flush  # type: ignore[method-assign]
        await wait_all_tasks_blocked()
        assert not images.closed
        assert await names(RootDirectory(images.registry, Folder(inode=2), OPEN)) == [CONTROL_NAME, "a"]


async def test_images_are_listed_where_snapshots_cannot_be() -> None:
    async with shelf("a", "a@1") as images:
        with_snapshots(images).broken = True
        async with images.registry.using("a"):
            assert await names(RootDirectory(images.registry, Folder(inode=2), OPEN)) == [CONTROL_NAME, "a"]


async def test_a_snapshot_is_found_by_name_and_read() -> None:
    async with shelf("a", "a@1") as images:
        with_snapshots(images).images["a@1"].content.write(0, b"before")
        root = RootDirectory(images.registry, Folder(inode=2), OPEN)
        node = await root.lookup("a@1")
        assert isinstance(node, ImageNode)
        assert (await node.attributes()).mode & 0o777 == 0o400
        assert node.inode != (await root.lookup("a")).inode
        file = await node.open(os.O_RDONLY)
        assert await read(file, 0, 6).result() == b"before"


async def test_a_snapshot_is_never_changed() -> None:
    async with shelf("a", "a@1") as images:
        with_snapshots(images)
        root = RootDirectory(images.registry, Folder(inode=2), OPEN)
        node = await root.lookup("a@1")
        assert isinstance(node, ImageNode)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC):
            with pytest.raises(VolumeReadOnly, match="can only be read"):
                await node.open(flags)
        for size in (0, 4096, 8192):
            with pytest.raises(VolumeReadOnly, match="'a@1' is a snapshot"):
                await node.resize(size)
        with pytest.raises(NotPermitted, match="'a@1' is a snapshot"):
            await root.unlink("a@1")
        with pytest.raises(NotPermitted, match="'a@1' is a snapshot"):
            await root.rename("a@1", "b")
        assert sorted(images.backend.images) == ["a", "a@1"]


async def test_an_open_snapshot_is_in_the_status_and_has_no_control_files(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("a", "a@1"))
    with_snapshots(world)
    async with world.registry.using("a@1"):
        shown = json.loads(await world.read("status.json"))["images"]
        assert [(image["name"], image["open"]) for image in shown] == [("a", False), ("a@1", True)]
        with pytest.raises(ImageNotFound, match="only images have control files"):
            await world.node("images/a@1")
        assert await world.write("flush", "all") == 0
    await wait_all_tasks_blocked()
    assert [image["name"] for image in json.loads(await world.read("status.json"))["images"]] == ["a"]
