"""A program whose CREATE was interrupted, and which repeated it, got an image that it could not make any longer.

The image was there by then, empty, and only the creator may grow one: a handle that the kernel had never heard of.
"""

import contextlib
import os
from collections.abc import Callable

import pytest

from fusecache.api.errors import NotPermitted, OutOfRange
from fusecache.images.files import FilePolicy, ImageNode, RootDirectory
from fusecache.images.node import OpenFile
from tests.support.callers import shell
from tests.support.images import Shelf, shelf, write
from tests.support.mounts import Mount, Place
from tests.support.nodes import Folder

CREATES = FilePolicy(0, 0, create=True)


async def opened(images: Shelf, name: str, policy: FilePolicy) -> OpenFile:
    node = ImageNode(images.registry, await images.registry.lookup(name), policy)
    return await node.open(os.O_RDWR)


@pytest.mark.parametrize("by", ["create", "open"])
async def test_whoever_repeats_it_makes_an_image_that_grows(by: str) -> None:
    async with shelf() as images:
        root = RootDirectory(images.registry, Folder(inode=2), CREATES)
        _, unheard = await root.create("new", os.O_RDWR)
        if by == "create":
            _, again = await root.create("new", os.O_RDWR)
        else:
            again = await opened(images, "new", CREATES)
        unheard.close()
        reader = await opened(images, "new", CREATES)
        assert again.clip(0, 5) == 5
        await write(again, 0, b"first").result()
        assert again.clip(5, 4) == 4
        await again.resize(100)
        assert again.end == 100
        for other in (reader, await opened(images, "new", CREATES)):
            with pytest.raises(OutOfRange):
                other.clip(100, 1)
            with pytest.raises(NotPermitted):
                await other.resize(101)


async def test_an_empty_image_stays_empty_where_images_may_not_be_created() -> None:
    async with shelf() as images:
        await images.backend.create("empty", 0)
        file = await opened(images, "empty", FilePolicy(0, 0))
        with pytest.raises(OutOfRange):
            file.clip(0, 1)
        with pytest.raises(NotPermitted):
            await file.resize(1)


def test_after_a_crash_of_the_daemon_it_can_be_repeated_too(place: Place, mounted: Callable[..., Mount]) -> None:
    (place.root / "source").write_bytes(os.urandom(300_001))
    first = mounted(create=True)
    fd = os.open(first.path / "new", os.O_CREAT | os.O_WRONLY)
    first.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    again = mounted(create=True)
    result = shell("cp source mnt/new && cmp source mnt/new", place.root)
    assert result.returncode == 0, result.stdout + result.stderr
    again.unmount()
    assert (place.images / "new").read_bytes() == (place.root / "source").read_bytes()
