"""The size of an image that was changed behind the mount was believed for a second after the image was opened.

A virtual machine that started just then had a disk of the old size.
"""

import os
from collections.abc import Callable

from fusecache.images.files import FilePolicy, ImageNode
from tests.support.images import shelf
from tests.support.mounts import Mount, Place


def test_an_opener_sees_the_size_the_image_has_when_it_is_locked(place: Place, mounted: Callable[..., Mount]) -> None:
    image = place.image("disk", size=4096)
    disk = mounted().path / "disk"
    assert disk.stat().st_size == 4096
    os.truncate(image, 8192)
    fd = os.open(disk, os.O_RDONLY)
    try:
        assert os.lseek(fd, 0, os.SEEK_END) == 8192
        assert len(os.pread(fd, 16384, 0)) == 8192
    finally:
        os.close(fd)


async def test_attributes_are_believed_only_while_the_image_is_in_use() -> None:
    async with shelf("disk") as images:
        node = ImageNode(images.registry, await images.registry.lookup("disk"), FilePolicy(uid=0, gid=0))
        images.registry.release_after = 5.0
        assert (await node.attributes()).timeout == 0
        file = await node.open(os.O_RDONLY)
        assert (await node.attributes()).timeout == 1
        images.registry.release_after = 0.25
        assert (await node.attributes()).timeout == 0.25
        images.registry.release_after = 5.0
        file.close()
        assert (await node.attributes()).timeout == 0
        images.registry.release_after = 0.0
