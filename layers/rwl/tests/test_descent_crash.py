"""Rows of generations that one superblock retires: what a crash leaves at each step, and at each of its recovery."""

import random
from collections.abc import Collection

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fusecache.testing import Fault, Operation
from fusecache.testing.requests import CHANGES, FLUSH
from layers.rwl.tests.support.bench import Bench, benched, read
from layers.rwl.tests.support.effort import effort
from layers.rwl.tests.support.failing_medium import STEPS, broken
from layers.rwl.tests.support.generations import CLEARED, LARGE, PARTS, ROWS, Generations, drawn
from layers.rwl.tests.support.retiring import Choose, Way, at_random, early, filled, late, recover, step_by_step


@pytest.mark.parametrize(("way", "choose"), [("pending", late), ("declined", early)])
@pytest.mark.parametrize("history", [ROWS, PARTS, CLEARED, LARGE], ids=lambda history: history.name)
async def test_a_process_that_dies_at_any_step_of_a_row_leaves_a_point_of_the_order_and_so_does_its_recovery(
    bench: Bench, history: Generations, choose: Choose, way: Way, seed: int
) -> None:
    rng = random.Random(seed)
    bench.gate.attempts = way
    async with filled(bench, history) as layer:
        steps = await step_by_step(bench, layer, history=history, choose=choose)
    crashes = [crash for crash, _ in steps]
    assert all(crash.is_good for crash in crashes)
    superblocks = [step for _, step in steps].count("superblock")
    assert superblocks < history.last, "each generation had a superblock of its own"
    assert any(crash.is_ahead for crash in crashes), "nothing was kept"
    for number, crash in enumerate(crashes):
        # Every fourth one dies in its recovery, too.
        again = await recover(crash, choose=choose, way=way)
        if number % 4 == 0 and again:
            await recover(rng.choice(again), choose=at_random(rng), way=way)


@pytest.mark.parametrize(("way", "choose"), [("pending", late), ("pending", early), ("declined", late)])
@pytest.mark.parametrize("history", [ROWS, PARTS, CLEARED, LARGE], ids=lambda history: history.name)
async def test_a_loss_of_power_in_a_row_finds_all_that_is_kept_durable_below(
    bench: Bench, history: Generations, choose: Choose, way: Way
) -> None:
    """Whatever of the level below was written since its last flush is lost."""
    bench.gate.attempts = way
    flushed = bench.below(0, history.size)
    async with filled(bench, history) as layer:
        steps = await step_by_step(bench, layer, history=history, choose=choose)
    for number, (crash, step) in enumerate(steps):
        durable = crash.unpowered(flushed)
        assert durable.is_good
        if number % 3 == 0:
            await recover(durable, choose=choose, way=way)
        if step == "flush":
            flushed = crash.image


@effort(10)
@given(st.integers(0, 1 << 32))
def test_generations_drawn_at_random_leave_a_point_of_the_order_wherever_a_crash_finds_them(number: int) -> None:
    rng = random.Random(number)
    history = drawn(rng, count=rng.randint(4, 12))
    way: Way = rng.choice(("pending", "declined"))
    # How often somebody begins to wait for space.
    hurry = rng.choice((0, 0, 0.2, 1))

    async def crash_and_recover() -> None:
        with benched() as bench:
            bench.gate.attempts = way
            async with filled(bench, history) as layer:

                def before() -> None:
                    if rng.random() < hurry:
                        layer.moving._descent.hurry()

                steps = await step_by_step(bench, layer, before, history=history, choose=at_random(rng))
        crashes = [crash for crash, _ in steps]
        assert all(crash.is_good for crash in crashes)
        for crash in rng.sample(crashes, min(4, len(crashes))):
            again = await recover(crash, choose=at_random(rng), way=way)
            if again:
                await recover(rng.choice(again), choose=at_random(rng), way=way)

    trio.run(crash_and_recover)


@pytest.mark.parametrize("way", ["pending", "declined"])
async def test_what_a_row_leaves_is_recovered_in_grouped_order_too(bench: Bench, way: Way) -> None:
    """What of it is below again lies in mid-group, which the mark says."""
    bench.gate.attempts = way
    async with filled(bench, ROWS) as layer:
        steps = await step_by_step(bench, layer, history=ROWS)
    for crash, _ in steps[::4]:
        for again in (await recover(crash, way=way, order="grouped"))[::5]:
            await recover(again, way=way)


@effort(8)
@given(st.integers(0, 1 << 32))
def test_so_they_do_where_a_medium_or_the_level_below_fails(number: int) -> None:
    """Or the mark says torn."""
    rng = random.Random(number)
    history = drawn(rng, count=rng.randint(4, 12))
    way: Way = rng.choice(("pending", "declined"))
    trouble = rng.randrange(12)
    below: Collection[Operation] = rng.choice((set(), CHANGES, FLUSH))
    hurry = rng.choice((0, 0.2, 1))

    async def fail_and_recover() -> None:
        with benched() as bench:
            bench.gate.attempts = way
            if below:
                bench.faults.inject(Fault(below, skip=trouble, count=1))
            async with filled(bench, history) as layer:
                passed = 0

                def before() -> None:
                    nonlocal passed
                    passed += 1
                    if passed == trouble + 1 and not below:
                        broken(bench, *STEPS, torn=rng.random() < 0.5)
                    if rng.random() < hurry:
                        layer.moving._descent.hurry()

                steps = await step_by_step(bench, layer, before, history=history, choose=at_random(rng))
                steps = [*steps, *await step_by_step(bench, layer, history=history, choose=at_random(rng))]
                assert await read(layer, 0, history.blocks) == history.states[-1]
        crashes = [crash for crash, _ in steps]
        assert all(crash.is_good for crash in crashes)
        for crash in rng.sample(crashes, min(4, len(crashes))):
            await recover(crash, choose=at_random(rng), way=way)

    trio.run(fail_and_recover)
