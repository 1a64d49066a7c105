"""A group in flight, and the pool's medium fails: it goes below as one all the same, or nothing of it does."""

import pytest
import trio

from fusecache.testing import HANG, Fault
from layers.rwl.tests.support.bench import BLOCK, Bench, block, write
from layers.rwl.tests.support.failing_medium import PATIENCE, broken


async def test_a_group_that_is_below_but_could_not_be_retired_is_never_undone_in_part(bench: Bench) -> None:
    """Its generations one by one, over its end, would be older data over newer."""
    async with bench.opened(order="grouped") as layer, trio.open_nursery() as nursery:
        for generation in ({0: 1}, {0: 2, 1: 2}, {2: 3}):
            for number, content in generation.items():
                await write(layer, number, content)
            await layer.flush()
        bench.gate.close()
        waiting = nursery.cancel_scope
        nursery.start_soon(layer.writeback)
        await bench.gate.wait_held(1)
        broken(bench, "superblock")
        bench.faults.inject(Fault({"write"}, skip=1))
        bench.gate.open()
        with trio.fail_after(PATIENCE):
            while not {"writeback-failed", "log-aside"} & set(bench.events):
                await trio.lowlevel.checkpoint()
                if "log-failed" in bench.events:
                    assert bench.below(0, 3 * BLOCK) == block(2) + block(2) + block(3)
        waiting.cancel()


async def test_a_log_that_was_saved_in_part_before_a_crash_says_torn_while_it_is_written_back_again(
    bench: Bench,
) -> None:
    """The level below was ahead of the log's durable tail: its generations one by one are older data over newer."""
    async with bench.opened() as layer:
        for generation in ({0: 1}, {0: 2, 1: 2}, {2: 3}):
            for number, content in generation.items():
                await write(layer, number, content)
            await layer.flush()
        broken(bench, "superblock")
        bench.faults.inject(Fault({"flush"}, delay=HANG, skip=4))
        saved = block(2) + block(2) + block(3)
        with trio.move_on_after(PATIENCE) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(layer.writeback)
                while bench.below(0, 3 * BLOCK) != saved:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught
    assert bench.mark.is_set
    bench.faults.heal()
    bench.gate.close()
    async with bench.opened(writeback_rate="max", max_dirty_age="0s") as layer:
        await bench.gate.wait_held(1)
        assert layer.torn
        assert bench.mark.is_torn
        bench.gate.open()
        await layer.writeback()
        assert not layer.torn
        assert not bench.mark.is_torn
        assert bench.below(0, 3 * BLOCK) == saved


async def test_dirty_data_that_could_not_be_dropped_are_saved_under_the_mark_again(bench: Bench) -> None:
    async with bench.opened() as layer:
        for number in range(3):
            await write(layer, number, number)
            await layer.flush()
        broken(bench, "superblock")
        bench.faults.inject(Fault({"flush"}, skip=1))
        with pytest.raises(OSError, match="error"):
            await layer.writeback()
        bench.mark.failure = OSError(5, "the record cannot be written")
        with pytest.raises(OSError, match="the record cannot be written"):
            await layer.invalidate(dirty=True)
        assert not bench.mark.is_set
        bench.mark.failure = None
        bench.faults.heal()
        await layer.writeback()
        assert bench.mark.told == ["set", "tear beyond", "clear"]
        assert bench.below(0, 3 * BLOCK) == b"".join(map(block, range(3)))
