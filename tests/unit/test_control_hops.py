"""The hops of open images, as the metrics count them."""

import trio

from fusecache.control.hops import hops_of
from fusecache.stack.stats import Op
from tests.support.controlled import World


async def test_every_hop_of_every_open_image_is_counted(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("a", "b", "closed"), indexes=(0, 1))
    async with world.opened("a") as (lower, _), world.opened("b"):
        lower.dirty = 100
        image = world.registry.opened("a")
        assert image is not None
        await image.top.write(0, memoryview(b"x" * 512))
        hops = [hop for image in hops_of(world.registry, "memory") for hop in image]
        assert [(hop.image, hop.layer, hop.plugin) for hop in hops] == [
            (name, layer, plugin)
            for name in ("a", "b")
            for layer, plugin in (("1", "held"), ("0", "held"), ("backend", "memory"))
        ]
        assert [hop.figures[Op.WRITE].bytes for hop in hops] == [512, 512, 512, 0, 0, 0]
        assert [hop.status.dirty_bytes if hop.status else None for hop in hops] == [0, 100, None, 0, 0, None]
