"""A medium and a level below that fail and recover at random: what was acknowledged is there, always."""

import random

import pytest

from fusecache.api import FusecacheError
from fusecache.testing import Fault
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, Bench, benched, block, read, write
from layers.rwl.tests.support.failing_medium import STEPS

BLOCKS = 6
OPERATIONS = 60
LIVES = 4
RUNS = 12


class Run:
    """One image in use, over several lives of its layer.

    Attributes:
        allowed: of each block the contents that it may have: what was acknowledged last, and what failed since.
    """

    def __init__(self, bench: Bench, chance: random.Random) -> None:
        self.bench = bench
        self.chance = chance
        self.allowed: list[set[bytes]] = [{bytes(BLOCK)} for _ in range(BLOCKS)]
        self.numbers = 0

    async def live(self, layer: RwlLayer) -> None:
        """Use the layer, with trouble."""
        for _ in range(self.chance.randrange(OPERATIONS)):
            step = self.chance.choice([self.change, self.change, self.change, self.look, self.sync, self.trouble])
            await step(layer)

    async def change(self, layer: RwlLayer) -> None:
        at, number = self.chance.randrange(BLOCKS), self.numbers
        self.numbers += 1
        clears = self.chance.random() < 0.2
        wanted = bytes(BLOCK) if clears else block(number)
        try:
            await (layer.discard(at * BLOCK, BLOCK) if clears else write(layer, at, number))
        except (FusecacheError, OSError):
            self.allowed[at].add(wanted)
        else:
            self.allowed[at] = {wanted}

    async def look(self, layer: RwlLayer) -> None:
        first = self.chance.randrange(BLOCKS)
        count = self.chance.randrange(1, BLOCKS - first + 1)
        found = await read(layer, first, count)
        for number in range(count):
            content = found[number * BLOCK :][:BLOCK]
            assert content in self.allowed[first + number]
            self.allowed[first + number] = {content}

    async def sync(self, layer: RwlLayer) -> None:
        try:
            await self.chance.choice([layer.flush, layer.flush, layer.writeback])()
        except (FusecacheError, OSError):
            assert self.bench.faults.faults or self.bench.medium.failing or self.bench.mark.failure

    async def trouble(self, layer: RwlLayer) -> None:
        medium, bench = self.bench.medium, self.bench
        kind = self.chance.randrange(6)
        if kind < 3:
            medium.failing.clear()
            bench.faults.heal()
            bench.mark.failure = None
        if kind == 0:
            await layer.writeback()
        elif kind in (1, 3):
            medium.failing.add(self.chance.choice(STEPS))
            medium.torn = self.chance.random() < 0.5
        elif kind == 4:
            bench.faults.inject(Fault({self.chance.choice(["write", "flush", "discard"])}))
        elif kind == 5:
            bench.mark.failure = OSError(5, "the record cannot be written")


@pytest.mark.parametrize("order", ["strict", "grouped"])
@pytest.mark.parametrize("run", range(RUNS))
async def test_what_was_acknowledged_is_there_whatever_fails(run: int, order: str, seed: int) -> None:
    with benched() as bench:
        used = Run(bench, random.Random(f"{seed} {run}"))
        for _ in range(LIVES):
            persist = used.chance.choice(["flush", "write"])
            async with bench.opened(order=order, stall_timeout="20ms", persist=persist) as layer:
                await used.live(layer)
            bench.faults.heal()
            bench.mark.failure = None
        async with bench.opened() as layer:
            found = await read(layer, 0, BLOCKS)
            assert all(found[at * BLOCK :][:BLOCK] in used.allowed[at] for at in range(BLOCKS))
            await layer.writeback()
            assert bench.below(0, BLOCKS * BLOCK) == found
