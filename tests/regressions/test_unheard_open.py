"""An open that was interrupted let the next one keep pages from before the image was locked.

Its handle is closed without the kernel ever having heard of it, so nothing has dropped those pages.
"""

import os

from fusecache.images.files import FilePolicy, ImageNode
from tests.support.images import shelf


async def test_a_close_does_not_show_that_the_kernel_dropped_its_old_pages() -> None:
    async with shelf("disk") as images, images.registry.using("disk"):
        node = ImageNode(images.registry, await images.registry.lookup("disk"), FilePolicy(uid=0, gid=0))
        (await node.open(os.O_RDONLY)).close()
        assert not (await node.open(os.O_RDONLY)).keep_cache
