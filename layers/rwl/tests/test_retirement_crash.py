"""Every event of a write-back in which superblocks and moves go beside each other, and a crash at each."""

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import pytest
import trio

from fusecache.testing import AttemptMode
from fusecache_rwl.format import RING_OFFSET, SUPERBLOCK_SIZE
from fusecache_rwl.superblock import newest
from layers.rwl.tests.support.failing_medium import PATIENCE
from layers.rwl.tests.support.generations import CLEARED, OVERWRITES, PARTS, ROWS, Generations, drawn
from layers.rwl.tests.support.recorded_image import is_marked
from layers.rwl.tests.support.recording import legal_states
from layers.rwl.tests.support.retiring import fill, quietly
from layers.rwl.tests.support.run import content
from layers.rwl.tests.support.world import IMAGE, LayerKind, Open, World, mark, opened, pool

SSD: Final = LayerKind("ssd", 128 << 10, paused=True)
PMEM: Final = LayerKind("pmem", 128 << 10, paused=True)


def written_back(world: World, history: Generations) -> int:
    """Return the last generation that the devices say is below; of two layers they say it only when both are clean."""
    if not any(is_marked(world.devices[mark(index)].content) for index in range(len(world.kinds))):
        return history.last
    if len(world.kinds) > 1:
        return 0
    stored = bytes(world.devices[pool(0)].content)
    return newest(stored[:SUPERBLOCK_SIZE], stored[SUPERBLOCK_SIZE:RING_OFFSET]).written_back


def judged(world: World, history: Generations) -> bool:
    """Say whether the image is all that is written back, or any number of generations more, and some of the next."""
    return history.is_point(world.image, written_back(world, history))


async def write_back(stack: Open) -> None:
    """Write everything back, lower layers while upper ones do, and then what has come to them meanwhile."""
    async with trio.open_nursery() as nursery:
        for layer in stack.layers[1:]:
            nursery.start_soon(quietly, layer.writeback)
        while nursery.child_tasks:
            await quietly(stack.layers[0].writeback)
            await trio.lowlevel.checkpoint()
    await quietly(stack.layers[0].writeback)


async def live(world: World, history: Generations, *, filling: bool = False, die_in: int | None = None) -> int:
    """Open the layer, write everything back, and die after so many events of that; return how many there were.

    Args:
        filling: write all generations first, and count no events until then.
    """
    wrong: list[bytes] = []

    def judge() -> None:
        if not judged(world, history):
            wrong.append(world.image)

    with trio.fail_after(PATIENCE):
        async with opened(world, die_in=None if filling else die_in) as stack:
            begun = world.timeline.now
            if filling:
                await fill(stack.top, history)
                begun = world.timeline.now
                world.timeline.die_at = None if die_in is None else begun + die_in
            elif stack.alive:
                assert await content(stack.top) == history.states[-1]
            world.devices[IMAGE].changed = judge
            await write_back(stack)
    assert not wrong
    return begun


def crash_everywhere(make: Callable[[], World], history: Generations, seed: int, *, every: int, states: int) -> int:
    """Kill the process after every so many events, and its recovery, too; and take the power away at so many instants.

    Returns:
        how many of those found more below than the superblock and the next generation.
    """
    whole = make()
    begun = trio.run(partial(live, whole, history, filling=True))
    for die_in in range(seed % every, whole.timeline.now - begun, every):
        world = make()
        trio.run(partial(live, world, history, filling=True, die_in=die_in))
        assert judged(world, history)
        trio.run(partial(live, world, history, die_in=6 + die_in % 11))
        assert judged(world, history)
        trio.run(live, world, history)
        assert world.image == history.states[-1]
    ahead = 0
    for state in legal_states(whole.timeline, random.Random(seed), states, since=begun):
        world = whole.after(state.contents)
        assert judged(world, history)
        first = written_back(world, history)
        ahead += not history.is_point(world.image, first, first)
        trio.run(live, world, history)
        assert world.image == history.states[-1]
    return ahead


KINDS: Final = {"ssd": [SSD], "pmem": [PMEM], "two": [SSD, SSD], "mixed": [PMEM, SSD]}


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_wherever_a_process_dies_and_whenever_power_is_lost_what_is_below_is_a_point_of_the_order(
    kinds: Sequence[LayerKind], seed: int
) -> None:
    one = len(kinds) == 1
    make = partial(World.new, OVERWRITES.size, kinds)
    ahead = crash_everywhere(make, OVERWRITES, seed, every=2 if one else 7, states=60 // len(kinds))
    assert ahead, "no superblock was lost beside the next generation"


@pytest.mark.parametrize(
    ("kinds", "attempts"),
    [([SSD], "pending"), ([PMEM], "done"), ([SSD], "declined"), ([PMEM, SSD], "pending")],
    ids=["pending", "done", "declined", "mixed"],
)
@pytest.mark.parametrize("history", [ROWS, PARTS, CLEARED], ids=lambda history: history.name)
def test_so_it_is_where_one_superblock_retires_a_row(
    kinds: Sequence[LayerKind], attempts: AttemptMode, history: Generations, seed: int
) -> None:
    make = partial(World.new, history.size, kinds, attempts)
    assert crash_everywhere(make, history, seed, every=9 if len(kinds) == 1 else 29, states=20 // len(kinds)), (
        "no superblock was lost beside a row"
    )


@pytest.mark.parametrize("number", range(4))
def test_so_it_is_with_generations_drawn_at_random(number: int, seed: int) -> None:
    rng = random.Random(f"{seed} {number}")
    history = drawn(rng)
    make = partial(World.new, history.size, [SSD], rng.choice(("pending", "done")))
    crash_everywhere(make, history, rng.randrange(1 << 20), every=11, states=15)
