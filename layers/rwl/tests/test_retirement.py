"""While the superblock that retires one generation is on its way, the next one goes below, and no further one."""

from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import LayerState
from fusecache_rwl import layer as layer_module
from layers.rwl.tests.support.bench import BLOCK, Bench, block, read, write
from layers.rwl.tests.support.failing_medium import PATIENCE, STEPS, broken
from layers.rwl.tests.support.generations import OVERWRITES
from layers.rwl.tests.support.retiring import (
    Choose,
    crashed,
    early,
    filled,
    late,
    overlap,
    quietly,
    recover,
    step_by_step,
    until,
)
from layers.rwl.tests.support.switched import io_error

BLOCKS, STATES, LAST = OVERWRITES.blocks, OVERWRITES.states, OVERWRITES.last


async def test_the_next_generation_goes_below_beside_a_superblock_and_no_further_one(bench: Bench) -> None:
    async with filled(bench) as layer, trio.open_nursery() as nursery:
        bench.medium.hold("superblock")
        nursery.start_soon(layer.writeback)
        await overlap(bench)
        assert len(bench.medium.held) == 1
        assert layer._log.superblock.written_back == 0
        assert layer._log.ledger.records == sum(map(len, OVERWRITES.each)), "nothing is retired before it is durable"
        assert bench.below(0, BLOCKS * BLOCK) == STATES[2]
        assert layer.status().state is LayerState.WRITING_BACK
        bench.medium.let_go()
    assert bench.below(0, BLOCKS * BLOCK) == STATES[-1]
    assert not bench.mark.is_set
    assert bench.mark.told == ["set", "clear"]


async def test_the_image_stays_marked_until_the_last_superblock_is_durable(bench: Bench) -> None:
    async with filled(bench) as layer, trio.open_nursery() as nursery:
        await layer.writeback()
        await write(layer, 1, 20)
        bench.medium.hold("superblock")
        nursery.start_soon(layer.writeback)
        await bench.medium.wait_held()
        await wait_all_tasks_blocked()
        assert bench.below(BLOCK) == block(20)
        assert layer.status().dirty_bytes == BLOCK
        assert bench.mark.is_set
        bench.medium.let_go()
    assert not bench.mark.is_set


@pytest.mark.parametrize("keep_clean", [True, False])
async def test_a_process_that_dies_beside_a_superblock_leaves_a_point_of_the_order_and_so_does_its_recovery(
    bench: Bench, keep_clean: bool
) -> None:
    async with filled(bench, keep_clean=keep_clean) as layer:
        steps = await step_by_step(bench, layer)
    crashes = [crash for crash, _ in steps]
    assert all(crash.is_good for crash in crashes)
    ahead = [crash for crash in crashes if crash.is_ahead]
    assert len({crash.written_back for crash in ahead}) == LAST - 1, "not every generation met a superblock"
    assert len(ahead) > LAST, "none was met in its middle"
    for crash in crashes:
        again = await recover(crash)
        if crash is ahead[0] or crash is ahead[-1]:
            for second in again:
                await recover(second)


@pytest.mark.parametrize("choose", [early, late])
async def test_a_loss_of_power_beside_a_superblock_finds_the_generation_before_it_durable_below(
    bench: Bench, choose: Choose
) -> None:
    """Whatever of the level below was written since its last flush is lost."""
    flushed = bench.below(0, BLOCKS * BLOCK)
    async with filled(bench) as layer:
        for crash, step in await step_by_step(bench, layer, choose=choose):
            durable = crash.unpowered(flushed)
            assert durable.is_good
            await recover(durable)
            if step == "flush":
                flushed = crash.image


async def test_nothing_goes_below_beside_a_superblock_that_the_log_could_still_lose(bench: Bench) -> None:
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        await write(layer, 0, 1)
        await layer.flush()
        await write(layer, 0, 2)
        bench.medium.hold("superblock", "sync")
        nursery.start_soon(layer.writeback)
        await bench.medium.wait_held(2)
        await wait_all_tasks_blocked()
        assert bench.below() == block(1)
        bench.medium.let_go()
    assert bench.below() == block(2)


@pytest.mark.parametrize("beside", range(4))
@pytest.mark.parametrize("torn", [False, True])
async def test_a_superblock_that_fails_while_the_next_generation_goes_below_loses_nothing(
    bench: Bench, beside: int, torn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The level below is a point of the order, or the mark says torn; the latter only once the log has failed, and
    never before its oldest generation is below anew."""
    passed = 0
    async with filled(bench) as layer:
        inner = bench.medium._inner.write_superblock

        def fail(data: bytes, at: int, done: Callable[[BaseException | None], None]) -> None:
            if torn:
                inner(data[: len(data) // 2] + bytes(len(data) // 2), at, lambda _: done(io_error()))
            else:
                done(io_error())

        def before() -> None:
            nonlocal passed
            if not bench.medium.held:
                return
            if passed == beside or not bench.gate.held:
                broken(bench, *STEPS)
                monkeypatch.setattr(bench.medium._inner, "write_superblock", fail)
                bench.medium.let_go()
            passed += 1

        steps = await step_by_step(bench, layer, before)
        assert bench.events[:2] == ["log-failed", "log-aside"]
        assert await read(layer, 0, BLOCKS) == STATES[-1]
    crashes = [crash for crash, _ in steps]
    assert all(crash.written_back == 0 for crash in crashes)
    assert all(crash.is_good for crash in crashes)
    assert bench.mark.told == ["set", "tear beyond", "clear"]
    said = next(number for number, crash in enumerate(crashes) if crash.is_torn)
    assert all(OVERWRITES.is_point(crash.image, 0, 1) for crash in crashes[:said])
    for crash in crashes:
        await recover(crash)


@pytest.mark.parametrize("arrives", [False, True])
async def test_a_close_over_a_superblock_that_hangs_ends_and_the_next_open_recovers_everything(
    bench: Bench, arrives: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the hanging superblock reaches the pool after all."""
    monkeypatch.setattr(layer_module, "_PATIENCE", 0.05)
    hanging: list[tuple[bytes, int]] = []
    with trio.fail_after(PATIENCE):
        async with filled(bench) as layer:
            monkeypatch.setattr(bench.medium, "write_superblock", lambda data, at, done: hanging.append((data, at)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(layer.writeback)
                await until(lambda: bench.below(0, BLOCKS * BLOCK) == STATES[2])
                nursery.cancel_scope.cancel()
    assert len(hanging) == 1
    assert bench.mark.is_set
    assert not bench.mark.is_torn
    if arrives:
        with bench.pool.open("r+b") as pool:
            ((data, at),) = hanging
            pool.seek(at)
            pool.write(data)
    await recover(crashed(bench, layer))


async def test_a_superblock_that_ends_while_the_layer_is_closed_retires_its_generation(bench: Bench) -> None:
    """And so does that of the next, which was below; nothing more goes there."""

    async def let_go() -> None:
        await until(lambda: layer.moving.waiters.count == 0)
        await wait_all_tasks_blocked()
        bench.medium.let_go()

    async with trio.open_nursery() as nursery, filled(bench) as layer:
        bench.medium.hold("superblock")
        async with trio.open_nursery() as waiting:
            waiting.start_soon(layer.writeback)
            await overlap(bench)
            waiting.cancel_scope.cancel()
        nursery.start_soon(let_go)
    assert "writeback-failed" not in bench.events
    assert layer._log.superblock.written_back == 2
    assert bench.below(0, BLOCKS * BLOCK) == STATES[2]
    assert bench.mark.is_set
    await recover(crashed(bench, layer))


async def test_dirty_data_are_dropped_only_when_no_superblock_is_on_its_way(bench: Bench) -> None:
    async with filled(bench) as layer, trio.open_nursery() as nursery:
        bench.medium.hold("superblock")
        nursery.start_soon(quietly, layer.writeback)
        await overlap(bench)
        nursery.start_soon(lambda: layer.invalidate(dirty=True))
        await wait_all_tasks_blocked()
        assert len(bench.medium.held) == 1, "two superblocks are written at once"
        assert layer.status().dirty_bytes
        bench.medium.let_go()
        await until(lambda: not layer.status().dirty_bytes)
        nursery.cancel_scope.cancel()
    assert bench.below(0, BLOCKS * BLOCK) == STATES[2]
    assert not bench.mark.is_set


async def test_the_level_below_is_resized_only_when_no_superblock_is_on_its_way(bench: Bench) -> None:
    async with filled(bench) as layer, trio.open_nursery() as nursery:
        bench.medium.hold("superblock")
        nursery.start_soon(quietly, layer.writeback)
        await overlap(bench)
        size = layer.size
        nursery.start_soon(layer.resize, 2 * size)
        await wait_all_tasks_blocked()
        assert bench.bare.size == size
        bench.medium.let_go()
        await until(lambda: bench.bare.size == 2 * size)
    assert bench.below(0, BLOCKS * BLOCK) == STATES[-1]


async def test_nothing_goes_below_beside_the_superblock_of_a_group(bench: Bench) -> None:
    async with filled(bench, order="grouped") as layer, trio.open_nursery() as nursery:
        bench.medium.hold("superblock")
        nursery.start_soon(layer.writeback)
        # The first one makes the group durable.
        await bench.medium.wait_held()
        bench.medium.held.pop(0)()
        await bench.medium.wait_held()
        await write(layer, 1, 20)
        await layer.flush()
        await wait_all_tasks_blocked()
        assert bench.below(0, BLOCKS * BLOCK) == STATES[2], "it has room for two generations"
        assert bench.mark.is_torn
        assert layer.torn
        bench.medium.held.pop(0)()
        await bench.medium.wait_held()
        assert layer._log.superblock.written_back == 2, "the group was retired in parts"
        bench.medium.let_go()
    assert not bench.mark.is_torn


async def test_an_error_below_beside_a_superblock_is_told_and_both_are_seen_to(bench: Bench) -> None:
    async with filled(bench) as layer, trio.open_nursery() as nursery:
        bench.medium.hold("superblock")
        bench.gate.close()
        nursery.start_soon(quietly, layer.writeback)
        for count in (2, 1):
            # The moves of the first generation, and the flush.
            await bench.gate.wait_held(count)
            for held in bench.gate.held[:count]:
                held.let_go()
            await wait_all_tasks_blocked()
        await bench.medium.wait_held()
        await bench.gate.wait_held(2)
        nursery.start_soon(lambda: quietly(layer.writeback))
        bench.bare.read_only = True
        bench.gate.open()
        await wait_all_tasks_blocked()
        assert "writeback-failed" not in bench.events, "the superblock was not waited for"
        bench.medium.let_go()
        await bench.wait_for("writeback-failed")
        assert layer._log.superblock.written_back == 1
        assert layer.status().state is LayerState.DEGRADED
        bench.bare.read_only = False
    async with bench.opened() as layer:
        await layer.writeback()
    assert bench.below(0, BLOCKS * BLOCK) == STATES[-1]
