"""Moves that are cancelled end, and do not count as done: nothing is retired that is not below."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache_rwl.layer import RwlLayer
from fusecache_rwl.merge import plan
from fusecache_rwl.movement import Movement
from layers.rwl.tests.support.bench import Bench
from layers.rwl.tests.support.generations import OVERWRITES
from layers.rwl.tests.support.retiring import crashed, filled, recover, until


class Unhurried:
    """Moves go as fast as they can."""

    stopped = False

    async def pace(self, length: int) -> None:
        """Wait for nothing."""


def movement(bench: Bench, layer: RwlLayer, nursery: trio.Nursery) -> tuple[Movement, Callable[[], Awaitable[bool]]]:
    """Return a movement whose tasks are in *nursery*, and what carries it out: the oldest generation's two moves."""
    oldest = layer._log.ledger.oldest_sealed()
    assert oldest is not None
    made = Movement(layer._log, bench.faults, Unhurried(), nursery)
    moves = plan(oldest.records, bench.faults.preferred_io)
    assert len(moves) == len(OVERWRITES.each[0])
    return made, lambda: made.carry_out(moves, 4)


def is_over(made: Movement) -> bool:
    """Say whether nothing of a movement is left behind."""
    return not made._tasks and not made._under_way and not made._bytes


async def test_moves_that_are_cancelled_with_their_nursery_do_not_count_as_done(bench: Bench) -> None:
    """Whoever carries them out is not cancelled, sees all of them end, and no error."""
    async with filled(bench) as layer, trio.open_nursery() as nursery:
        bench.gate.close()
        outcome: list[bool] = []

        async def carry_out() -> None:
            outcome.append(await carry())

        async with trio.open_nursery() as doomed:
            made, carry = movement(bench, layer, doomed)
            nursery.start_soon(carry_out)
            await bench.gate.wait_held(2)
            doomed.cancel_scope.cancel()
        await until(lambda: outcome)
        assert outcome == [False]
        assert is_over(made)
        assert bench.below(0, OVERWRITES.size) == OVERWRITES.states[0]


@pytest.mark.parametrize("run", range(12))
async def test_a_move_that_is_cancelled_just_when_the_one_before_it_ends_does_not_count_as_done(
    bench: Bench, run: int
) -> None:
    """Whoever carries them out has been woken, and is not reached by the cancellation; which of the two goes first is
    trio's choice."""
    async with filled(bench) as layer:
        bench.gate.close()
        outcome: list[bool] = []
        woken: list[bool] = []

        async def carry_out() -> None:
            outcome.append(await carry())

        async with trio.open_nursery() as doomed:
            made, carry = movement(bench, layer, doomed)
            ended = made._ended

            def note(error: BaseException | None) -> None:
                ended(error)
                if not woken:
                    # The second is cancelled while the first, which is done, wakes whoever waits for both.
                    doomed.cancel_scope.cancel()
                woken.append(True)

            made._ended = note  # type: ignore[method-assign]
            doomed.start_soon(carry_out)
            await bench.gate.wait_held(2)
            bench.gate.held[0].let_go()
        assert len(woken) == 2, "a move ended without a word"
        assert outcome in ([], [False])
        assert is_over(made)


async def test_a_cancelled_generation_waits_for_the_moves_that_cannot_be_cancelled(bench: Bench) -> None:
    async with filled(bench) as layer, trio.open_nursery() as nursery:
        bench.gate.close()
        slow = trio.Event()
        passed = bench.faults.write

        async def write_below(offset: int, data: memoryview) -> None:
            with trio.CancelScope(shield=True):
                await slow.wait()
            await passed(offset, data)

        bench.faults.write = write_below  # type: ignore[method-assign]
        made, carry = movement(bench, layer, nursery)
        over = trio.Event()
        scope = trio.CancelScope()

        async def carry_out() -> None:
            with scope:
                await carry()
            over.set()

        nursery.start_soon(carry_out)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert not over.is_set(), "a move was left behind"
        slow.set()
        await until(over.is_set)
        assert is_over(made)
        assert scope.cancelled_caught


async def test_a_layer_whose_nursery_is_cancelled_retires_nothing_that_is_not_below(bench: Bench) -> None:
    with trio.CancelScope() as scope:
        async with filled(bench, writeback_rate="max") as layer:
            bench.gate.close()
            layer.moving._hurry()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(layer.writeback)
                await bench.gate.wait_held(2)
                bench.gate.held[0].let_go()
                scope.cancel()
    assert layer._log.superblock.written_back == 0
    assert OVERWRITES.is_point(bench.below(0, OVERWRITES.size), 0, 0)
    await recover(crashed(bench, layer))
