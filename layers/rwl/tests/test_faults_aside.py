"""A layer whose medium failed stands aside, and comes back when the medium works again."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusecache.api import LayerState
from fusecache.testing import Fault
from layers.rwl.tests.support.bench import BLOCK, SIZE, Bench, block, read, write
from layers.rwl.tests.support.failing_medium import PATIENCE, STEPS, broken, fail, opened_again, stood_aside
from layers.rwl.tests.support.switched import Step, io_error


async def test_a_layer_that_stands_aside_hands_everything_to_the_level_below(bench: Bench) -> None:
    async with bench.opened(persist="write") as layer:
        await write(layer, 0, 1)
        broken(bench, *STEPS)
        await layer.flush()
        await stood_aside(bench)
        flushes = bench.faults.inject(Fault({"flush"}, error=None))
        await write(layer, 1, 2)
        assert flushes.hits == 1, "each write was to be durable"
        await layer.write(2 * BLOCK, memoryview(block(3) * 100))
        await layer.discard(2 * BLOCK, BLOCK)
        await layer.write_zeroes(3 * BLOCK, BLOCK)
        hits = flushes.hits
        await layer.flush()
        assert flushes.hits == hits + 1
        expected = block(1) + block(2) + bytes(2 * BLOCK) + block(3)
        assert bench.below(0, 5 * BLOCK) == await read(layer, 0, 5) == expected
        await layer.resize(SIZE // 2)
        await layer.invalidate(dirty=True)
        await layer.writeback()
        assert bench.below(0, 5 * BLOCK) == expected
        assert not bench.mark.is_set
    await opened_again(bench, expected)


async def test_what_the_pool_still_holds_never_comes_back(bench: Bench) -> None:
    """Neither while the layer stands aside, nor when it is opened again."""
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        await layer.flush()
        broken(bench, *STEPS)
        await write(layer, 0, 2)
        await write(layer, 0, 3)
        assert await read(layer) == block(3)
    await opened_again(bench, block(3))


@pytest.mark.parametrize("step", STEPS)
async def test_a_medium_that_works_again_is_used_again(bench: Bench, step: Step) -> None:
    async with bench.opened() as layer:
        for number in range(3):
            bench.events.clear()
            await write(layer, 0, 10 * number)
            broken(bench, step)
            await fail(layer, step)
            await stood_aside(bench)
            await write(layer, 1, 10 * number + 1)
            bench.medium.failing.clear()
            await layer.writeback()
            with trio.fail_after(PATIENCE):
                await bench.wait_for("log-resumed")
            assert layer.status().state is LayerState.CLEAN
            await write(layer, 2, 10 * number + 2)
            assert layer.status().state is LayerState.DIRTY
            assert bench.below(2 * BLOCK) != block(10 * number + 2)
            assert await read(layer, 0, 3) == b"".join(block(10 * number + at) for at in range(3))
        assert layer.status().errors == 3
    await opened_again(bench, b"".join(block(20 + at) for at in range(3)))


async def test_the_medium_is_tried_again_by_itself_and_less_and_less_often(
    bench: Bench, hurried_clock: MockClock
) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        broken(bench, *STEPS)
        await layer.flush()
        await trio.sleep(1000)
        assert layer.status().state is LayerState.DEGRADED
        assert bench.events == ["log-failed", "log-aside"]
        bench.medium.failing.clear()
        await bench.wait_for("log-resumed")
        assert trio.current_time() < 2000


async def test_what_went_below_meanwhile_is_flushed_there_before_the_log_takes_a_write(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        broken(bench, *STEPS)
        await layer.flush()
        await stood_aside(bench)
        await write(layer, 1, 2)
        bench.gate.close()
        bench.medium.failing.clear()
        layer.moving.aside.hurry()
        layer.moving.wake()
        await bench.gate.wait_held(1)
        assert layer.status().state is not LayerState.CLEAN
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, layer, 0, 3)
            await wait_all_tasks_blocked()
            assert not bench.mark.is_set
            bench.gate.open()
        assert bench.mark.is_set
        assert await read(layer, 0, 2) == block(3) + block(2)


async def test_a_change_under_way_below_ends_before_that_flush_begins(bench: Bench) -> None:
    """It may be acknowledged when the log is there again, whose flushes say nothing of what is below."""
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        await write(layer, 0, 1)
        broken(bench, *STEPS)
        await layer.flush()
        await stood_aside(bench)
        bench.medium.failing.clear()
        bench.gate.close()
        nursery.start_soon(write, layer, 1, 2)
        await bench.gate.wait_held(1)
        layer.moving.aside.hurry()
        layer.moving.wake()
        with trio.fail_after(PATIENCE):
            while layer.moving.aside.active:
                await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        assert [held.request.operation for held in bench.gate.held] == ["write"]
        bench.gate.open()
        await bench.wait_for("log-resumed")


async def test_a_sync_that_fails_late_is_answered_at_once_as_all_is_durable_below(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        await write(layer, 0, 1)
        bench.medium.hold("sync")
        nursery.start_soon(layer.flush)
        await bench.medium.wait_held()
        broken(bench, "append", "superblock")
        await write(layer, 1, 2)
        assert bench.below(0, 2 * BLOCK) == block(1) + block(2)
        tries = layer.moving.aside._next_try
        monkeypatch.setattr(bench.medium, "_sync", lambda done: done(io_error()))
        bench.medium.let_go()
        with trio.fail_after(PATIENCE):
            while nursery.child_tasks:
                await trio.lowlevel.checkpoint()
        assert layer.moving.aside._next_try == tries, "it waited for the next try of the medium"


async def test_a_medium_that_hangs_keeps_nobody_waiting_once_the_layer_stands_aside(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        broken(bench, *STEPS)
        await layer.flush()
        await stood_aside(bench)
        bench.medium.failing.clear()
        bench.medium.hold("superblock")
        await layer.writeback()
        await bench.medium.wait_held()
        with trio.fail_after(PATIENCE):
            await write(layer, 0, 2)
            await layer.flush()
        assert bench.below() == block(2)
        bench.medium.let_go()
        with trio.fail_after(PATIENCE):
            while layer.status().state is not LayerState.CLEAN:
                await wait_all_tasks_blocked()
                bench.medium.let_go()


async def test_a_mark_being_set_when_the_log_fails_does_not_outlive_it(bench: Bench) -> None:
    """A set mark would have a void log recovered over newer data."""
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        with bench.mark.held():
            nursery.start_soon(write, layer, 0, 1)
            await wait_all_tasks_blocked()
            layer.moving._log.fail(OSError(5, "the disk failed"))
            await wait_all_tasks_blocked()
            assert layer.status().state is LayerState.FAILED
        await stood_aside(bench)
        await wait_all_tasks_blocked()
        assert not bench.mark.is_set
        assert bench.below() == block(1)


async def test_an_invalidation_while_the_layer_comes_back_drops_nothing_that_it_takes_from_then_on(
    bench: Bench,
) -> None:
    """A layer above may be writing back."""
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        broken(bench, *STEPS)
        await layer.flush()
        await stood_aside(bench)
        bench.medium.failing.clear()
        bench.medium.hold("superblock")
        await layer.writeback()
        await bench.medium.wait_held()
        cleared = bench.mark.clear

        async def clear() -> None:
            bench.mark.clear = cleared  # type: ignore[method-assign]
            await cleared()
            bench.medium.let_go()
            await bench.wait_for("log-resumed")
            await write(layer, 0, 2)

        bench.mark.clear = clear  # type: ignore[method-assign]
        await layer.invalidate(dirty=False)
        assert await read(layer) == block(2)
        assert layer.status().state is LayerState.DIRTY
        assert bench.mark.is_set
    await opened_again(bench, block(2))
