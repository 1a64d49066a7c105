"""A medium and a level below that fail, and processes that end, at random: below is a point of the order, or torn."""

import contextlib
import random

import pytest
import trio

from fusecache.api import FusecacheError
from fusecache.testing import Fault
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, Bench, benched, block, read, write
from layers.rwl.tests.support.failing_medium import STEPS

BLOCKS = 4
STEPS_OF_A_LIFE = 24
LIVES = 5
RUNS = 16


class Run:
    """One image in use, a generation for each block written.

    Attributes:
        states: of the image, after each of them.
        last: the newest of these.
    """

    def __init__(self, bench: Bench, chance: random.Random) -> None:
        self.bench = bench
        self.chance = chance
        self.last = bytes(BLOCKS * BLOCK)
        self.states = {self.last}

    async def watch(self) -> None:
        """Look at the level below at every turn of the loop."""
        while True:
            assert self.bench.mark.is_torn or self.bench.below(0, BLOCKS * BLOCK) in self.states
            await trio.lowlevel.checkpoint()

    async def live(self, layer: RwlLayer, ended: trio.CancelScope) -> None:
        """Use the layer, with trouble, and die."""
        for _ in range(self.chance.randrange(1, STEPS_OF_A_LIFE)):
            step = self.chance.choice([*[self.put] * 5, self.drain, *[self.trouble] * 4])
            with contextlib.suppress(FusecacheError, OSError):
                await step(layer)
        for _ in range(self.chance.randrange(60)):
            await trio.lowlevel.checkpoint()
        ended.cancel()

    async def put(self, layer: RwlLayer) -> None:
        at, number = self.chance.randrange(BLOCKS) * BLOCK, len(self.states)
        wanted = self.last[:at] + block(number) + self.last[at + BLOCK :]
        # It may be below before it is acknowledged.
        self.states.add(wanted)
        try:
            await write(layer, at // BLOCK, number)
        finally:
            self.last = await read(layer, 0, BLOCKS)
            assert self.last in self.states
        await layer.flush()

    async def drain(self, layer: RwlLayer) -> None:
        await layer.writeback()

    async def trouble(self, layer: RwlLayer) -> None:
        kind, medium = self.chance.randrange(4), self.bench.medium
        if kind < 2:
            medium.failing.add(self.chance.choice(STEPS))
            medium.torn = self.chance.random() < 0.5
        elif kind == 2:
            medium.failing.clear()
            self.bench.faults.heal()
        else:
            operation, skip = self.chance.choice(["write", "flush"]), self.chance.randrange(6)
            count = self.chance.choice([1, None])
            self.bench.faults.inject(Fault([operation], skip=skip, count=count))  # type: ignore[list-item]


@pytest.mark.parametrize("order", ["strict", "grouped"])
@pytest.mark.parametrize("run", range(RUNS))
async def test_below_is_a_point_of_the_order_whatever_fails_or_the_mark_says_torn(
    run: int, order: str, seed: int
) -> None:
    with benched() as bench:
        used = Run(bench, random.Random(f"{seed} {run}"))
        for _ in range(LIVES):
            rate, age = used.chance.choice(["0", "max"]), used.chance.choice(["0s", "30s"])
            async with (
                bench.opened(order=order, stall_timeout="20ms", writeback_rate=rate, max_dirty_age=age) as layer,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(used.watch)
                nursery.start_soon(used.live, layer, nursery.cancel_scope)
            bench.faults.heal()
            async with bench.opened() as layer, trio.open_nursery() as nursery:
                nursery.start_soon(used.watch)
                assert await read(layer, 0, BLOCKS) == used.last
                # What must go below goes by itself.
                while layer.torn or bench.mark.is_torn:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        async with bench.opened() as layer:
            await layer.writeback()
        assert bench.below(0, BLOCKS * BLOCK) == used.last
        assert not bench.mark.is_torn
