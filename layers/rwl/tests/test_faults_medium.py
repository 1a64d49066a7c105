"""The pool's medium fails: what is dirty is saved below, nothing wrong is ever read, and the layer stands aside."""

import errno

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusecache.api import PENDING, FusecacheError, LayerState, Span
from fusecache.testing import HANG, Fault
from fusecache_rwl.failures import LogFailed, LogFull
from layers.rwl.tests.support.bench import BLOCK, SIZE, Bench, block, read, write
from layers.rwl.tests.support.failing_medium import PATIENCE, STEPS, broken, fail, opened_again, stood_aside
from layers.rwl.tests.support.switched import Step


@pytest.fixture(params=[False, True], ids=["whole", "torn"])
def torn(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


# ---- the data are saved ----


async def test_an_append_that_fails_goes_below_behind_all_that_was_before_it(bench: Bench, torn: bool) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        await layer.flush()
        await write(layer, 1, 2)
        broken(bench, "append", "sync", torn=torn)
        await write(layer, 0, 3)
        assert bench.below(0, 2 * BLOCK) == block(3) + block(2)
        assert await read(layer, 0, 2) == block(3) + block(2)
        assert bench.events == ["log-failed", "log-aside"]
        status = layer.status()
        assert (status.state, status.dirty_bytes, status.errors) == (LayerState.DEGRADED, 0, 1)
        assert not bench.mark.is_set
    await opened_again(bench, block(3) + block(2))


@pytest.mark.parametrize("persist", ["flush", "write"])
async def test_a_sync_that_fails_is_answered_when_all_is_durable_below(bench: Bench, persist: str) -> None:
    async with bench.opened(persist=persist) as layer:
        await write(layer, 0, 1)
        broken(bench, "sync")
        fault = bench.faults.inject(Fault({"flush"}, error=None))
        await write(layer, 0, 2)
        await layer.flush()
        assert fault.hits
        assert bench.below() == block(2)
        assert layer.status().state is LayerState.DEGRADED
    await opened_again(bench, block(2))


async def test_a_retirement_that_fails_has_the_data_below_all_the_same(bench: Bench, torn: bool) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        broken(bench, "superblock", torn=torn)
        await layer.writeback()
        assert bench.below() == block(1)
        await stood_aside(bench)
        assert not bench.mark.is_set
    await opened_again(bench, block(1))


@pytest.mark.parametrize("step", STEPS)
async def test_generations_go_below_in_their_order(bench: Bench, step: Step) -> None:
    async with bench.opened() as layer:
        for number in range(4):
            await write(layer, 0, number)
            await write(layer, 1 + number, number)
            await layer.flush()
        if step == "sync":
            await write(layer, 20, 20)
        bench.faults.inject(Fault({"write"}, span=Span(3 * BLOCK, 4 * BLOCK)))
        broken(bench, *STEPS)
        with trio.move_on_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail, layer, step)
                await bench.wait_for("writeback-failed")
                nursery.cancel_scope.cancel()
        assert bench.below(BLOCK, 4 * BLOCK) == block(0) + block(1) + bytes(2 * BLOCK)
        assert layer.status().state is LayerState.FAILED
        assert bench.mark.is_set
        bench.faults.heal()
        await layer.writeback()
        assert bench.below(0, 5 * BLOCK) == block(3) + b"".join(block(number) for number in range(4))


async def test_a_pause_does_not_keep_a_failed_log_from_being_saved(bench: Bench) -> None:
    async with bench.opened(writeback_rate="0", persist="write") as layer:
        await write(layer, 0, 1)
        layer.moving._log.fail(OSError(5, "the disk failed"))
        await stood_aside(bench)
        assert bench.below() == block(1)


async def test_an_invalidation_that_fails_drops_nothing_and_the_next_one_all(bench: Bench, torn: bool) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        bench.faults.inject(Fault({"write"}))
        broken(bench, "superblock", torn=torn)
        with pytest.raises(LogFailed):
            await layer.invalidate(dirty=True)
        assert await read(layer) == block(1)
        assert bench.mark.is_set
        await layer.invalidate(dirty=True)
        assert not bench.mark.is_set
        await stood_aside(bench)
        assert await read(layer) == bench.below() == bytes(BLOCK)
    bench.faults.heal()
    await opened_again(bench, bytes(BLOCK))


# ---- as long as that is not possible ----


@pytest.mark.parametrize("step", ["append", "sync"])
async def test_a_flush_fails_until_all_is_durable_below_and_then_succeeds(bench: Bench, step: Step) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        bench.faults.inject(Fault({"flush"}, OSError(5, "the level below failed, too")))
        broken(bench, step)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail, layer, step)
            await bench.wait_for("log-failed")
            for _ in range(3):
                with pytest.raises(OSError, match="the level below failed, too"):
                    await layer.flush()
            assert layer.status().state is LayerState.FAILED
            assert layer.status().dirty_bytes == BLOCK
            assert await read(layer) == block(1)
            bench.faults.heal()
            await layer.flush()
            assert bench.below() == block(1)
            assert layer.status().state is LayerState.DEGRADED
            assert not bench.mark.is_set


async def test_changes_wait_and_fail_as_in_a_full_log(bench: Bench, hurried_clock: MockClock) -> None:
    async with bench.opened(stall_timeout="60s", stall_errno="ENOSPC") as layer:
        await write(layer, 0, 1)
        bench.faults.inject(Fault({"write"}))
        broken(bench, "append")
        with pytest.raises(LogFull) as caught:
            await write(layer, 0, 2)
        assert caught.value.errno == errno.ENOSPC
        assert trio.current_time() >= 60
        assert await read(layer) == block(1)
        bench.faults.heal()
        await write(layer, 0, 3)
        assert bench.below() == block(3)


async def test_nothing_is_acknowledged_before_the_image_is_durably_not_marked(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        broken(bench, *STEPS)
        bench.mark.failure = OSError(5, "the record cannot be written")
        with pytest.raises(OSError, match="the record cannot be written"):
            await layer.flush()
        assert bench.below() == block(1)
        assert layer.status().state is LayerState.FAILED
        bench.mark.failure = None
        await layer.flush()
        assert bench.mark.told == ["set", "clear"]
        assert layer.status().state is LayerState.DEGRADED


async def test_a_crash_before_it_stands_aside_loses_nothing_that_was_flushed(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        await write(layer, 1, 1)
        await layer.flush()
        await write(layer, 0, 2)
        bench.faults.inject(Fault({"flush"}, delay=HANG, skip=1))
        broken(bench, *STEPS)
        told: list[BaseException | None] = []
        assert layer.try_flush(told.append) is PENDING
        while bench.below() != block(2):
            await trio.lowlevel.checkpoint()
        with trio.move_on_after(0.01) as scope:
            await layer.flush()
        assert scope.cancelled_caught
        assert not told
    assert isinstance(told[0], FusecacheError)
    assert bench.mark.is_set
    bench.faults.heal()
    await opened_again(bench, block(1) + block(1), block(2) + block(1))


@pytest.mark.parametrize("step", STEPS)
async def test_a_close_ends_whatever_has_failed(bench: Bench, step: Step) -> None:
    with trio.fail_after(PATIENCE):
        async with bench.opened(writeback_rate="max", max_dirty_age="0s") as layer:
            await write(layer, 0, 1)
            await layer.flush()
            bench.gate.close()
            broken(bench, step)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail, layer, step)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
    bench.gate.open()
    await opened_again(bench, block(1))


async def test_a_close_does_not_wait_for_a_medium_that_hangs(bench: Bench, hurried_clock: MockClock) -> None:
    steps: tuple[Step, ...] = ("sync", "superblock")
    for number, step in enumerate(steps):
        async with bench.opened(writeback_rate="max", max_dirty_age="0s") as layer:
            bench.medium.hold(step)
            await write(layer, 0, number)
            await bench.medium.wait_held()
            began = trio.current_time()
        assert trio.current_time() - began < 5
        assert bench.mark.is_set
        await opened_again(bench, block(number))


# ---- opening ----


@pytest.mark.parametrize("step", ["superblock", "read", "sync"])
async def test_a_recovery_that_fails_changes_nothing(bench: Bench, step: Step) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        await layer.flush()
        await write(layer, 0, 2)
    bench.fails_to_open = {step}
    with pytest.raises((FusecacheError, OSError)):
        async with bench.opened():
            pytest.fail("it opened")
    bench.fails_to_open.clear()
    assert bench.mark.is_set
    await opened_again(bench, block(2))


async def test_a_new_log_that_cannot_begin_is_not_opened(bench: Bench) -> None:
    bench.fails_to_open = {"superblock"}
    with pytest.raises(LogFailed):
        async with bench.opened():
            pytest.fail("it opened")
    bench.fails_to_open.clear()
    assert not bench.mark.is_set
    async with bench.opened() as layer:
        assert await read(layer, 0, SIZE // BLOCK) == bytes(SIZE)


async def test_a_read_that_fails_is_told_moves_nothing_wrong_and_may_succeed_later(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        bench.medium.cold = True
        broken(bench, "read")
        with pytest.raises(OSError, match="error"):
            await read(layer)
        with pytest.raises(OSError, match="error"):
            await layer.writeback()
        assert bench.below() == bytes(BLOCK)
        assert layer.status().state is LayerState.DEGRADED
        bench.medium.failing.clear()
        assert await read(layer) == block(1)
        await layer.writeback()
    assert bench.below() == block(1)
