"""A log that fails at any step of write-back, and a process that dies then, as ``fusecache_rwl.groups`` tells it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

import pytest
import trio

from fusecache.api import DONE
from fusecache_rwl.format import RING_OFFSET
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, Bench, benched, read
from layers.rwl.tests.support.failing_medium import PATIENCE, STEPS, broken
from layers.rwl.tests.support.generations import Generations, writes
from layers.rwl.tests.support.retiring import Crash, crashed, fill, left, step_by_step

ORDERS: Final = ("strict", "grouped")
HISTORY: Final = Generations(
    "three groups",
    [
        *map(writes, ({0: 1}, {0: 2, 1: 3}, {2: 4})),
        *map(writes, ({1: 5, 3: 6}, {0: 7}, {2: 8})),
        *map(writes, ({0: 9, 3: 10}, {1: 11})),
    ],
    blocks=4,
)
"""Each group is an eighth of the ring at the most, and without the rest no point of the order."""
SIZE: Final = HISTORY.size
LAST: Final = HISTORY.states[-1]
NEVER: Final = 1000


async def stepped(bench: Bench, layer: RwlLayer, at: int, trouble: Callable[[], object]) -> Sequence[tuple[Crash, str]]:
    """Write everything back, with trouble before the step of that number; return what a crash would leave before each,
    and the step."""
    count = 0

    def before() -> None:
        nonlocal count
        assert layer.torn or HISTORY.is_point(bench.below(0, SIZE), 0)
        if count == at:
            trouble()
        count += 1

    found = await step_by_step(bench, layer, before, history=HISTORY)
    for (crash, _), (after, _) in pairwise(found):
        assert crash.is_good
        # What the mark says before a step is what counts when it is taken.
        assert replace(crash, image=after.image).is_good
    return found


async def live(bench: Bench, layer: RwlLayer, fails_at: int) -> Sequence[Crash]:
    """Write everything back, on a medium that fails from a step on; return what a crash would leave before each."""

    def fail() -> None:
        broken(bench, *(STEPS if fails_at % 2 else STEPS[-1:]))
        bench.medium.stored = fails_at % 4 > 1

    return [crash for crash, _ in await stepped(bench, layer, fails_at, fail)]


async def begin(order: str, fails_at: int) -> Sequence[Crash]:
    """Live with a log that has all generations, of which none is below."""
    with benched() as bench:
        async with bench.opened(order=order) as layer:
            await fill(layer, HISTORY)
            return await live(bench, layer, fails_at)


async def recover(crash: Crash, order: str, fails_at: int = NEVER) -> Sequence[Crash]:
    """Live with what a crash left."""
    with left(crash) as bench:
        async with bench.opened(order=order) as layer:
            assert layer.torn == (layer._log.ledger.group is not None and crash.is_torn)
            assert await read(layer, 0, HISTORY.blocks) == LAST
            found = await live(bench, layer, fails_at)
        assert bench.below(0, SIZE) == LAST
        assert not bench.mark.is_set
        assert not bench.mark.is_torn
    return found


async def come_to_rest(crash: Crash, order: str) -> None:
    """Open what a crash left, and have it write back what it must, and nothing else."""
    with left(crash) as bench:
        async with bench.opened(order=order) as layer:
            with trio.fail_after(PATIENCE):
                while layer.torn or bench.mark.is_torn:
                    assert bench.mark.is_torn or crashed(bench, layer, HISTORY).is_good
                    await trio.lowlevel.checkpoint()
            assert crashed(bench, layer, HISTORY).is_good
            # Of the last generation power may have taken some.
            assert not crash.is_torn_beyond or HISTORY.is_point(bench.below(0, SIZE), HISTORY.last - 1)


@pytest.mark.parametrize("order", ORDERS)
async def test_wherever_a_log_fails_and_a_process_dies_below_is_a_point_of_the_order_or_said_to_be_torn(
    order: str,
) -> None:
    ahead = 0
    for fails_at in range(0, len(await begin(order, NEVER)), 3):
        for crash in (await begin(order, fails_at))[fails_at + 1 :: 5]:
            ahead += crash.is_torn_beyond
            await come_to_rest(crash, order)
            await recover(crash, order)
    assert ahead


@pytest.mark.parametrize(("order", "then"), [("grouped", "strict"), ("strict", "grouped"), ("grouped", "grouped")])
async def test_a_recovery_that_dies_or_whose_medium_fails_again_changes_nothing(order: str, then: str) -> None:
    """Nor does another order meanwhile."""
    crash = next(crash for crash in reversed(await begin(order, 5)) if crash.is_torn_beyond)
    again = 0
    for fails_at in (0, 1, 3, NEVER):
        for second in (await recover(crash, then, fails_at))[1::3]:
            again += second.is_torn_beyond
            await come_to_rest(second, order)
            for third in (await recover(second, order))[2::4]:
                await come_to_rest(third, then)
    assert again


@pytest.mark.parametrize("order", ORDERS)
async def test_loss_of_power_at_a_failed_log_leaves_a_point_of_the_order_or_what_is_said_to_be_torn(order: str) -> None:
    """The medium has nothing of the last generation, which was never flushed; the level below may have some."""
    *flushed, (last,) = HISTORY.each
    ahead = 0
    for fails_at in (1, 4, 8):
        with benched() as bench:
            async with bench.opened(order=order) as layer:
                await fill(layer, replace(HISTORY, each=flushed))
                synced = bench.pool.read_bytes()

                def fail(bench: Bench = bench, layer: RwlLayer = layer) -> None:
                    nonlocal synced
                    synced = bench.pool.read_bytes()
                    assert layer.try_write(last.at * BLOCK, memoryview(last.data), lambda _: None) is DONE
                    broken(bench, "superblock")

                steps = await stepped(bench, layer, fails_at, fail)
        image = HISTORY.states[0]
        for number, (crash, step) in enumerate(steps):
            if number > fails_at and crash.is_set:
                found = replace(crash, pool=crash.pool[:RING_OFFSET] + synced[RING_OFFSET:], image=image)
                assert found.is_good
                ahead += found.is_torn_beyond
                await come_to_rest(found, order)
            if step == "flush":
                image = crash.image
    assert ahead


async def test_nothing_goes_below_after_the_group_of_a_failed_log_until_the_mark_can_say_so() -> None:
    with benched() as bench:

        def fail() -> None:
            broken(bench, "superblock")
            bench.mark.failure = OSError(5, "the record cannot be written")

        async with bench.opened(order="grouped") as layer:
            await fill(layer, HISTORY)
            await stepped(bench, layer, 1, fail)
            assert bench.below(0, SIZE) == HISTORY.states[3]
            assert bench.mark.told == ["set", "tear"]
            bench.mark.failure = None
            await layer.writeback()
            assert bench.mark.told == ["set", "tear", "tear beyond", "clear"]
            assert bench.below(0, SIZE) == LAST


async def test_a_log_that_comes_back_is_ahead_of_nothing() -> None:
    with benched() as bench:
        async with bench.opened(order="grouped") as layer:
            await fill(layer, HISTORY)
            await live(bench, layer, 2)
            assert bench.mark.told == ["set", "tear", "tear beyond", "clear"]
            bench.medium.failing.clear()
            await layer.writeback()
            with trio.fail_after(PATIENCE):
                await bench.wait_for("log-resumed")
            bench.mark.told.clear()
            await fill(layer, HISTORY)
            await layer.writeback()
        assert "tear" in bench.mark.told
        assert "tear beyond" not in bench.mark.told
        assert bench.below(0, SIZE) == LAST
