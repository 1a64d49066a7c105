"""Every event of a write-back in which superblocks and moves go beside each other, and a crash at each."""

import random
from collections.abc import Sequence
from functools import partial
from typing import Final

import pytest
import trio

from fusecache_rwl.format import RING_OFFSET, SUPERBLOCK_SIZE
from fusecache_rwl.superblock import newest
from layers.rwl.tests.support.bench import BLOCK, block
from layers.rwl.tests.support.failing_medium import PATIENCE
from layers.rwl.tests.support.recorded_image import is_marked
from layers.rwl.tests.support.recording import legal_states
from layers.rwl.tests.support.retiring import BLOCKS, GENERATIONS, LAST, STATES, is_point, quietly
from layers.rwl.tests.support.run import content
from layers.rwl.tests.support.world import IMAGE, LayerKind, Open, World, mark, opened, pool

SSD: Final = LayerKind("ssd", 128 << 10, paused=True)
PMEM: Final = LayerKind("pmem", 128 << 10, paused=True)


def written_back(world: World) -> int:
    """Return the last generation that the devices say is below; of two layers they say it only when both are clean."""
    if not any(is_marked(world.devices[mark(index)].content) for index in range(len(world.kinds))):
        return LAST
    if len(world.kinds) > 1:
        return 0
    stored = bytes(world.devices[pool(0)].content)
    return newest(stored[:SUPERBLOCK_SIZE], stored[SUPERBLOCK_SIZE:RING_OFFSET]).written_back


def judged(world: World) -> bool:
    """Say whether the image is all that is written back, or one generation more, and some of the next; of two layers,
    any number of generations more."""
    first = written_back(world)
    return is_point(world.image, first, first + 1 if len(world.kinds) == 1 else LAST)


async def write_back(stack: Open) -> None:
    """Write everything back, lower layers while upper ones do, and then what has come to them meanwhile."""
    async with trio.open_nursery() as nursery:
        for layer in stack.layers[1:]:
            nursery.start_soon(quietly, layer.writeback)
        while nursery.child_tasks:
            await quietly(stack.layers[0].writeback)
            await trio.lowlevel.checkpoint()
    await quietly(stack.layers[0].writeback)


async def live(world: World, *, fill: bool = False, die_in: int | None = None) -> int:
    """Open the layer, write everything back, and die after so many events of that; return how many there were.

    Args:
        fill: write all generations first, and count no events until then.
    """
    wrong: list[bytes] = []

    def judge() -> None:
        if not judged(world):
            wrong.append(world.image)

    with trio.fail_after(PATIENCE):
        async with opened(world, die_in=None if fill else die_in) as stack:
            begun = world.timeline.now
            if fill:
                for generation in GENERATIONS:
                    for at, number in generation.items():
                        await stack.top.write(at * BLOCK, memoryview(block(number)))
                    await stack.top.flush()
                begun = world.timeline.now
                world.timeline.die_at = None if die_in is None else begun + die_in
            elif stack.alive:
                assert await content(stack.top) == STATES[-1]
            world.devices[IMAGE].changed = judge
            await write_back(stack)
    assert not wrong
    return begun


@pytest.mark.parametrize("kinds", [[SSD], [PMEM], [SSD, SSD], [PMEM, SSD]], ids=["ssd", "pmem", "two", "mixed"])
def test_wherever_a_process_dies_and_whenever_power_is_lost_what_is_below_is_a_point_of_the_order(
    kinds: Sequence[LayerKind], seed: int
) -> None:
    whole = World.new(BLOCKS * BLOCK, kinds)
    begun = trio.run(partial(live, whole, fill=True))
    for die_in in range(0, whole.timeline.now - begun, 2 if len(kinds) == 1 else 7):
        world = World.new(BLOCKS * BLOCK, kinds)
        trio.run(partial(live, world, fill=True, die_in=die_in))
        assert judged(world)
        trio.run(partial(live, world, die_in=6 + die_in % 11))
        assert judged(world)
        trio.run(live, world)
        assert world.image == STATES[-1]
    ahead = 0
    for state in legal_states(whole.timeline, random.Random(seed), 60 // len(kinds), since=begun):
        world = whole.after(state.contents)
        assert judged(world)
        ahead += not is_point(world.image, written_back(world), written_back(world))
        trio.run(live, world)
        assert world.image == STATES[-1]
    assert ahead, "no superblock was lost beside the next generation"
