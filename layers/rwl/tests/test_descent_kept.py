"""While generations are kept: when write-back rests none is, and what is below is retired, or moves again."""

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import LayerState
from fusecache.testing import Request
from fusecache_rwl.format import RecordType
from layers.rwl.tests.support.bench import BLOCK, Bench, block, read, write
from layers.rwl.tests.support.failing_medium import PATIENCE
from layers.rwl.tests.support.generations import ROWS
from layers.rwl.tests.support.keeping import KeepingRig, keeping
from layers.rwl.tests.support.retiring import (
    fill,
    kept,
    superblocks,
    until,
)

STATES = ROWS.states


@pytest.fixture(params=["pending", "declined"])
async def rig(bench: Bench, request: pytest.FixtureRequest) -> AsyncIterator[KeepingRig]:
    async with keeping(bench, request.param) as made:
        yield made


async def test_a_stop_retires_what_is_kept_and_begins_nothing_more(rig: KeepingRig) -> None:
    stopped = await rig.start(rig.layer.moving.stop)
    assert not stopped.is_set()
    await rig.rests(3)
    await stopped.wait()
    assert len(rig.superblocks) == 1
    rig.layer.moving.resume()
    await until(lambda: rig.below == STATES[-1])


async def test_a_pause_retires_what_is_kept_and_begins_nothing_more(rig: KeepingRig) -> None:
    """The rate is 0 already; nobody waits any more."""
    rig.scope.cancel()
    await wait_all_tasks_blocked()
    await rig.rests(3)


async def test_a_rate_that_is_set_meanwhile_is_kept_to(rig: KeepingRig) -> None:
    moving = rig.layer.moving
    rig.scope.cancel()
    await wait_all_tasks_blocked()
    moving._last = ROWS.last
    rig.layer.set_writeback_rate(1)
    rig.bench.gate.open()
    await until(lambda: BLOCK / 2 < moving._pacing.deadline - trio.current_time() <= BLOCK)
    assert moving.state is LayerState.WRITING_BACK
    assert ROWS.is_point(rig.below, 3, 3)
    assert rig.below != STATES[4], "more than one block has passed"
    rig.layer.set_writeback_rate(0)
    await until(moving._idle.is_set)
    assert kept(rig.layer) == 0
    assert rig.superblocks == [3]
    rig.layer.set_writeback_rate(1)
    # Whoever waits does not wait for the rate.
    await rig.layer.writeback()
    assert rig.below == STATES[-1]


async def test_who_waits_for_write_back_has_it_only_when_the_last_superblock_is_durable(rig: KeepingRig) -> None:
    over = await rig.start(rig.layer.writeback)
    rig.bench.medium.hold("superblock")
    rig.bench.gate.open()
    for _ in range(4):
        await rig.bench.medium.wait_held()
        await wait_all_tasks_blocked()
        assert not over.is_set()
        assert rig.bench.mark.is_set
        rig.bench.medium.held.pop(0)()
        await wait_all_tasks_blocked()
    with trio.fail_after(PATIENCE):
        await over.wait()
    assert rig.superblocks == [3, 5, 8, 9]
    assert rig.below == STATES[-1]
    assert not rig.bench.mark.is_set


async def test_reads_find_what_is_newest_while_older_data_are_kept(rig: KeepingRig) -> None:
    reader = await read(rig.layer, 0, ROWS.blocks)
    assert reader == STATES[-1]
    await write(rig.layer, 0, 99)
    assert await read(rig.layer) == block(99)
    assert rig.below == STATES[2]


async def test_the_level_below_grows_only_when_nothing_is_kept(rig: KeepingRig) -> None:
    size = rig.layer.size
    rig.nursery.start_soon(rig.layer.resize, 2 * size)
    await wait_all_tasks_blocked()
    assert rig.bench.bare.size == size
    passed = rig.bench.bare.resize
    seen: list[tuple[int, int]] = []

    async def resize(size: int) -> None:
        seen.append((kept(rig.layer), rig.layer._log.superblock.written_back))
        await passed(size)

    rig.bench.bare.resize = resize  # type: ignore[method-assign]
    rig.bench.gate.open()
    await until(lambda: rig.layer.size == 2 * size)
    assert seen == [(0, 3)]
    await rig.layer.writeback()
    assert rig.below == STATES[-1]


async def test_dirty_data_are_dropped_only_when_nothing_is_kept(rig: KeepingRig) -> None:
    dropped = await rig.start(lambda: rig.layer.invalidate(dirty=True))
    assert rig.layer.status().dirty_bytes
    rig.bench.gate.open()
    await dropped.wait()
    assert kept(rig.layer) == 0
    assert rig.superblocks == [3]
    assert not rig.layer.status().dirty_bytes
    assert await read(rig.layer, 0, ROWS.blocks) == rig.below == STATES[3]
    assert not rig.bench.mark.is_set
    await write(rig.layer, 0, 50)
    await rig.layer.writeback()
    assert rig.bench.below() == block(50)


async def test_somebody_short_of_space_has_that_of_what_is_kept_at_once(rig: KeepingRig) -> None:
    """Without what is on its way below, which may take long."""
    log = rig.layer._log
    while log.append(RecordType.DATA, 40 * BLOCK, BLOCK, block(1), 0.0):
        pass
    written = await rig.start(lambda: rig.layer.write(50 * BLOCK, memoryview(block(2))))
    await written.wait()
    assert rig.superblocks == [2]
    assert kept(rig.layer) == 0
    assert rig.bench.gate.held, "the third is still on its way"
    assert rig.below == STATES[2]


async def test_somebody_who_needs_more_space_has_it_one_generation_at_a_time(rig: KeepingRig) -> None:
    log = rig.layer._log
    while log.append(RecordType.DATA, 40 * BLOCK, BLOCK, block(1), 0.0):
        pass
    written = await rig.start(lambda: rig.layer.write(50 * BLOCK, memoryview(bytes(7 * BLOCK))))
    await until(lambda: rig.superblocks)
    assert not written.is_set()
    rig.bench.gate.open()
    await written.wait()
    assert rig.superblocks[:4] == [2, 3, 4, 5]


async def test_who_waits_for_one_generation_waits_for_no_later_one(bench: Bench) -> None:
    bench.gate.attempts = "pending"
    with trio.fail_after(PATIENCE):
        async with bench.opened() as layer, trio.open_nursery() as nursery:
            found = superblocks(layer)
            for number in range(3):
                await write(layer, 2 * number, number)
                await layer.flush()
            bench.gate.close()
            over = trio.Event()

            async def drain() -> None:
                await layer.moving.drain()
                over.set()

            nursery.start_soon(drain)
            await bench.gate.wait_held(1)
            for number in range(3, 6):
                await write(layer, 2 * number, number)
                await layer.flush()
            while bench.gate.held[0].request != Request("write", 6 * BLOCK, BLOCK):
                bench.gate.held[0].let_go()
                await wait_all_tasks_blocked()
                await until(lambda: bench.gate.held)
            await over.wait()
            assert found == [3]
            assert bench.below(6 * BLOCK) == bytes(BLOCK)
            bench.gate.open()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_who_waits_no_more_has_nothing_retired_early(bench: Bench, cancelled: bool) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        with trio.CancelScope() as scope:
            if cancelled:
                scope.cancel()
            await layer.moving.drain()
        await wait_all_tasks_blocked()
        await until(layer.moving._idle.is_set)
        found = superblocks(layer)
        for number in range(4):
            await write(layer, 2 * number + 1, number)
            await layer.flush()
        await layer.writeback()
        assert found == [5]


async def test_a_row_goes_on_beside_a_superblock_that_somebody_waits_for(bench: Bench, rig: KeepingRig) -> None:
    """One generation, which may change what is being retired; it is kept when that is."""
    bench.medium.hold("superblock")
    descent = rig.layer.moving._descent
    descent.hurry()
    await bench.medium.wait_held()
    rig.bench.gate.open()
    await until(lambda: rig.below == STATES[3])
    await wait_all_tasks_blocked()
    assert rig.below == STATES[3]
    assert kept(rig.layer) == 2
    descent.hurry()
    assert len(bench.medium.held) == 1, "two superblocks are written at once"
    bench.medium.held.pop(0)()
    await bench.medium.wait_held()
    await wait_all_tasks_blocked()
    assert rig.superblocks == [2]
    assert rig.below[0:BLOCK] == STATES[4][0:BLOCK], "the fourth, which changes what the first did, is beside it"
    bench.medium.let_go()
    await until(lambda: rig.below == STATES[-1])


async def test_at_a_rate_each_generation_is_retired_when_it_is_below(bench: Bench) -> None:
    async with bench.opened(writeback_rate="1GiB") as layer:
        found = superblocks(layer)
        await fill(layer, ROWS)
        layer.moving._last = ROWS.last
        await layer.moving._descent.carry_on()
    assert found == list(range(1, ROWS.last + 1))


async def test_the_low_water_mark_counts_what_is_kept_as_free(bench: Bench) -> None:
    bench.bare.attempts = "pending"
    async with bench.opened(writeback_rate="max", high_water=0.5, low_water=0.3) as layer:
        log, ring = layer._log, layer._log.medium.ring_size
        number = 0
        while log.space.dirty_used <= 0.5 * ring:
            await write(layer, number, number)
            await layer.flush()
            number += 1
        found = superblocks(layer)
        await until(lambda: found and layer.moving._idle.is_set())
        assert 0.3 * ring - 2 * BLOCK < log.space.dirty_used <= 0.3 * ring
        assert len(found) == 1, "it rested in between"
