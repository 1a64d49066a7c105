"""An image that is open here is found and opened by name while its backend does not answer."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import ImageInfo
from fusecache.api.errors import ImageNotFound
from fusecache.images.files import FilePolicy, ImageNode, RootDirectory
from fusecache.testing.memory import MemoryBackend, MemoryVolume
from tests.support.images import Shelf, read, shelf
from tests.support.nodes import Folder


async def never(*_: object) -> ImageInfo:
    await trio.sleep_forever()
    raise AssertionError("it ended")


@asynccontextmanager
async def silent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Shelf, RootDirectory]]:
    """Two images, of which ``disk`` is open, over a backend that does not answer any more."""
    async with shelf("disk", "other") as images, images.registry.using("disk"):
        root = RootDirectory(images.registry, Folder(inode=2), FilePolicy(uid=1, gid=1, rename=True, remove=True))
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBackend, "lookup", never)
            patch.setattr(MemoryVolume, "info", never)
            yield images, root


async def test_it_is_opened_by_name_and_described(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with silent(monkeypatch) as (_, root):
        with trio.fail_after(5):
            node = await root.lookup("disk")
            assert isinstance(node, ImageNode)
            file = await node.open(os.O_RDWR)
            for _ in range(2):
                attributes = await node.attributes()
            assert (attributes.size, attributes.inode) == (4096, node.inode)
            assert await read(file, 0, 10).result() == bytes(10)
            file.close()


async def test_it_keeps_the_name_that_it_was_given_meanwhile(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with shelf("disk") as images, images.registry.using("disk") as image, trio.open_nursery() as nursery:
        with monkeypatch.context() as patch:
            patch.setattr(MemoryBackend, "lookup", never)
            nursery.start_soon(images.registry.lookup, "disk")
            await wait_all_tasks_blocked()
        await images.registry.rename("disk", "new")
        await trio.sleep(5)
        assert image.name == "new"
        assert images.registry.opened("new") is image
        assert images.registry.opened("disk") is None


async def test_what_is_not_open_is_waited_for(monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock) -> None:
    async with silent(monkeypatch) as (images, root):
        for call in (root.lookup("other"), root.unlink("disk"), root.rename("disk", "new")):
            with pytest.raises(trio.TooSlowError), trio.fail_after(60):
                await call
        assert images.registry.opened("disk") is not None


async def test_an_image_that_lost_its_lock_is_nobody_s_word(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    async with silent(monkeypatch) as (images, root), trio.open_nursery() as nursery:
        nursery.start_soon(root.lookup, "disk")
        await wait_all_tasks_blocked()
        images.registry.all_open()[0].lose()
        with pytest.raises(trio.TooSlowError), trio.fail_after(60):
            await root.lookup("disk")
        # Nor to whom asked before.
        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel()


async def test_a_backend_that_answers_knows_better() -> None:
    async with shelf("disk") as images, images.registry.using("disk"):
        root = RootDirectory(images.registry, Folder(inode=2), FilePolicy(uid=1, gid=1))
        await images.backend.rename("disk", "new")
        with pytest.raises(ImageNotFound):
            await root.lookup("disk")
        await images.backend.create("disk", 512)
        node = await root.lookup("disk")
        assert (await node.attributes()).size == 512
