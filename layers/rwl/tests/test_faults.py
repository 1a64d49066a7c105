"""The level below fails, dawdles or hangs: data stay, are tried again, and nobody waits for ever."""

import errno
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusecache.api import DECLINED, LayerState
from fusecache.testing import HANG, Fault
from fusecache.testing.requests import AttemptMode, Operation
from fusecache_rwl.failures import LogFull
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, SIZE, Bench, benched, block, read, write

STEPS: tuple[Operation, ...] = ("write", "discard", "write_zeroes", "flush")


@pytest.fixture(params=["done", "pending", "declined"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    attempts: AttemptMode = request.param
    with benched(attempts=attempts) as made:
        yield made


async def change(layer: RwlLayer) -> bytes:
    """Dirty the layer with every kind of record; return what the first blocks hold now."""
    for number in range(4):
        await write(layer, number, number)
    await layer.discard(BLOCK, BLOCK)
    await layer.write_zeroes(2 * BLOCK, BLOCK)
    return block(0) + bytes(2 * BLOCK) + block(3)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("step", STEPS)
async def test_what_the_level_below_refuses_stays_and_the_command_tells(
    bench: Bench, step: Operation, number: int
) -> None:
    async with bench.opened() as layer:
        expected = await change(layer)
        fault = bench.faults.inject(Fault({step}, OSError(number, "refused")))
        with pytest.raises(OSError, match="refused") as caught:
            await layer.writeback()
        assert caught.value.errno == number
        assert fault.hits
        assert layer.status().state is LayerState.DEGRADED
        assert layer.status().dirty_bytes
        assert bench.events == ["writeback-failed"]
        assert await read(layer, 0, 4) == expected
        assert bench.mark.is_set
        # It serves on.
        await write(layer, 4, 4)
        await layer.flush()
        bench.faults.heal()
        await layer.writeback()
        assert layer.status().state is LayerState.CLEAN
        assert bench.events == ["writeback-failed", "writeback-resumed"]
        assert bench.below(0, 5 * BLOCK) == expected + block(4)
        assert not bench.mark.is_set


async def test_write_back_is_tried_again_by_itself_and_tells_once(bench: Bench, hurried_clock: MockClock) -> None:
    async with bench.opened(writeback_rate="max", max_dirty_age="0s") as layer:
        fault = bench.faults.inject(Fault({"write"}, count=5))
        await write(layer, 0, 1)
        await bench.wait_for("writeback-resumed")
        assert not layer.status().dirty_bytes
        assert fault.hits == 5
        assert bench.below() == block(1)
        assert bench.events == ["writeback-failed", "writeback-resumed"]


async def test_a_close_over_a_level_that_fails_or_hangs_ends_and_keeps_the_data(bench: Bench) -> None:
    for fault in (Fault({"write"}), Fault({"write"}, delay=HANG), Fault({"flush"}, delay=HANG), Fault({"flush"})):
        with trio.fail_after(10):
            async with bench.opened(writeback_rate="max", max_dirty_age="0s") as layer:
                bench.faults.inject(fault)
                await write(layer, 0, fault.skip + 7)
                while not fault.hits:
                    await trio.lowlevel.checkpoint()
        assert bench.mark.is_set
        bench.faults.heal()
        async with bench.opened() as layer:
            assert await read(layer) == block(7)
            await layer.writeback()
        assert bench.below() == block(7)


async def test_a_write_back_that_hangs_can_be_left_and_goes_on_when_that_ends(bench: Bench) -> None:
    async with bench.opened() as layer:
        expected = await change(layer)
        bench.gate.close()
        with trio.move_on_after(0.01) as scope:
            await layer.writeback()
        assert scope.cancelled_caught
        assert await read(layer, 0, 4) == expected
        bench.gate.open()
        await layer.writeback()
        assert bench.below(0, 4 * BLOCK) == expected


async def test_a_slow_level_is_waited_for(bench: Bench, hurried_clock: MockClock) -> None:
    async with bench.opened() as layer:
        expected = await change(layer)
        bench.faults.inject(Fault(STEPS, error=None, delay=1000))
        await layer.writeback()
        assert trio.current_time() >= 2000
        assert bench.below(0, 4 * BLOCK) == expected
        assert not bench.events


@pytest.mark.parametrize("number", ["EIO", "ENOSPC"])
async def test_a_log_that_stays_full_refuses_changes_in_time_and_forgets_none_it_took(
    bench: Bench, number: str, hurried_clock: MockClock
) -> None:
    async with bench.opened(stall_timeout="60s", stall_errno=number) as layer:
        fault = bench.faults.inject(Fault({"write"}, delay=0.1))
        await write(layer, 0, 0)
        count = 0
        while layer.try_write(count * BLOCK, memoryview(block(count)), lambda _: None) is not DECLINED:
            count += 1
        for length in (BLOCK, 64 * BLOCK):
            with pytest.raises(LogFull) as caught:
                await layer.write(0, memoryview(bytes(length)))
            assert caught.value.errno == getattr(errno, number)
        assert trio.current_time() >= 120
        # Tried again and again, and less and less often.
        assert 2 < fault.hits < 100
        assert await read(layer, 0, count) == b"".join(block(number) for number in range(count))
        bench.faults.heal()
        # From here on a thread that is late would be taken for the level below.
        hurried_clock.autojump_threshold = 0.5
        await write(layer, 0, 100)
        await layer.writeback()
        assert bench.below(0, count * BLOCK) == block(100) + b"".join(block(number) for number in range(1, count))


async def test_a_frozen_level_that_thaws_takes_everything(bench: Bench) -> None:
    async with bench.opened(writeback_rate="max") as layer:
        bench.gate.close()
        async with trio.open_nursery() as nursery:
            # Twice what the ring has room for.
            for number in range(60):
                nursery.start_soon(write, layer, number, number)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            await bench.gate.wait_held(1)
            bench.gate.open()
        assert await read(layer, 0, 60) == b"".join(block(number) for number in range(60))
        await layer.writeback()
        assert bench.below(0, 60 * BLOCK) == b"".join(block(number) for number in range(60))


async def test_a_read_that_the_level_below_refuses_fails_and_hits_do_not(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        bench.faults.inject(Fault({"read"}))
        assert await read(layer) == block(1)
        with pytest.raises(OSError, match="error"):
            await read(layer, 0, 2)
        bench.faults.heal()
        assert await read(layer, 0, 2) == block(1) + bytes(BLOCK)


async def test_a_shrink_that_cannot_write_back_changes_nothing(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        bench.faults.inject(Fault({"write"}))
        with pytest.raises(OSError, match="error"):
            await layer.resize(SIZE // 2)
        assert layer.size == bench.bare.size == SIZE
        assert await read(layer) == block(1)
        bench.faults.heal()
        await layer.resize(SIZE // 2)
        assert bench.below() == block(1)


async def test_a_mark_that_cannot_be_cleared_fails_no_close(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        await layer.moving.drain()
        bench.mark.failure = OSError(errno.EIO, "the record cannot be written")
    bench.mark.failure = None
    assert bench.below() == block(1)


async def test_a_mark_that_cannot_be_cleared_is_cleared_as_soon_as_that_is_possible(
    bench: Bench, hurried_clock: MockClock
) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        bench.mark.failure = OSError(errno.EIO, "the record cannot be written")
        with pytest.raises(OSError, match="the record cannot be written"):
            await layer.writeback()
        await bench.wait_for("writeback-failed")
        assert layer.status().state is LayerState.DEGRADED
        bench.mark.failure = None
        await bench.wait_for("writeback-resumed")
        assert bench.mark.told == ["set", "clear"]
        assert layer.status().state is LayerState.CLEAN


async def test_a_mark_that_could_not_be_cleared_and_is_set_again_stays_set(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        bench.mark.failure = OSError(errno.EIO, "the record cannot be written")
        with pytest.raises(OSError, match="the record cannot be written"):
            await layer.writeback()
        bench.mark.failure = None
        await write(layer, 0, 2)
        await wait_all_tasks_blocked()
        assert bench.mark.is_set
        assert layer.status().dirty_bytes == BLOCK
        assert bench.below() == block(1)
