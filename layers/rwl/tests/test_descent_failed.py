"""While generations are kept: what fails, or ends, loses none of them, and leaves a point of the order."""

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import LayerState
from fusecache.testing import Fault
from layers.rwl.tests.support.bench import Bench, read, write
from layers.rwl.tests.support.failing_medium import PATIENCE, STEPS, broken
from layers.rwl.tests.support.generations import ROWS
from layers.rwl.tests.support.keeping import KeepingRig, failing_superblock, keeping
from layers.rwl.tests.support.retiring import (
    Way,
    crashed,
    filled,
    kept,
    quietly,
    recover,
    step_by_step,
    until,
    until_kept,
)

STATES = ROWS.states


@pytest.fixture(params=["pending", "declined"])
async def rig(bench: Bench, request: pytest.FixtureRequest) -> AsyncIterator[KeepingRig]:
    async with keeping(bench, request.param) as made:
        yield made


@pytest.mark.parametrize("torn", [False, True])
async def test_a_superblock_that_fails_beside_a_row_keeps_nothing_behind_it(
    bench: Bench, rig: KeepingRig, torn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was on its way meanwhile is dirty, as are those that were to be retired, and goes below again after them."""
    bench.medium.hold("superblock")
    rig.layer.moving._descent.hurry()
    await bench.medium.wait_held()
    broken(bench, *STEPS)
    monkeypatch.setattr(bench.medium._inner, "write_superblock", failing_superblock(bench, torn))
    bench.medium.let_go()
    await until(lambda: rig.layer._log.failure is not None)
    assert rig.layer._log.ledger.records == sum(map(len, ROWS.each))
    oldest = rig.layer._log.ledger.oldest_sealed()
    assert oldest is not None
    assert oldest.number == 1
    crashes = [crash for crash, _ in await step_by_step(bench, rig.layer, history=ROWS)]
    assert rig.below == STATES[-1]
    assert all(crash.is_good for crash in crashes)
    assert any(crash.is_torn for crash in crashes)
    for crash in crashes[::3]:
        await recover(crash)


async def test_an_error_below_is_told_when_what_is_kept_is_retired(rig: KeepingRig) -> None:
    fault = rig.bench.faults.inject(Fault({"write"}))
    rig.bench.gate.open()
    await rig.bench.wait_for("writeback-failed")
    assert fault.hits
    assert kept(rig.layer) == 0
    assert rig.superblocks == [3]
    assert rig.layer.status().state is LayerState.DEGRADED
    rig.bench.faults.heal()
    await rig.layer.writeback()
    assert rig.below == STATES[-1]


async def test_a_flush_below_that_fails_keeps_nothing_of_its_generation(rig: KeepingRig) -> None:
    rig.bench.faults.inject(Fault({"flush"}))
    rig.bench.gate.open()
    await rig.bench.wait_for("writeback-failed")
    assert rig.superblocks == [2]
    assert rig.layer._log.superblock.written_back == 2
    rig.bench.faults.heal()
    await rig.layer.writeback()
    assert rig.below == STATES[-1]


async def test_a_log_that_fails_has_what_is_kept_below_and_the_mark_says_torn_before_it_goes_on(
    bench: Bench, rig: KeepingRig
) -> None:
    broken(bench, *STEPS)
    await rig.start(lambda: quietly(lambda: write(rig.layer, 20, 20)))
    assert rig.layer._log.failure is not None
    crashes = [crash for crash, _ in await step_by_step(bench, rig.layer, history=ROWS)]
    assert kept(rig.layer) == 0
    assert rig.below == STATES[-1]
    assert bench.events[:2] == ["log-failed", "log-aside"]
    assert all(crash.written_back == 0 for crash in crashes)
    assert all(crash.is_good for crash in crashes)
    said = next(number for number, crash in enumerate(crashes) if crash.is_torn)
    assert all(ROWS.is_point(crash.image, 0, 2) for crash in crashes[:said]), "it went on before the mark said so"
    for crash in crashes:
        await recover(crash)


async def test_a_damaged_record_that_is_found_while_some_are_kept_fails_the_log_and_loses_none_of_these(
    bench: Bench, rig: KeepingRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusecache_rwl.proof.whole_data", lambda *_: None)
    bench.gate.open()
    await bench.wait_for("writeback-failed")
    assert kept(rig.layer) == 0
    monkeypatch.undo()
    assert ROWS.is_point(rig.below, 3, 4)
    await recover(crashed(bench, rig.layer, ROWS))
    rig.layer.moving.retries.hurry()
    await rig.layer.writeback()
    assert rig.below == STATES[-1]


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("beside", range(5))
@pytest.mark.parametrize("way", ["pending", "declined"])
async def test_a_superblock_of_several_that_fails_loses_nothing(
    bench: Bench, beside: int, torn: bool, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The level below is a point of the order, or the mark says torn; the latter never before the log has failed."""
    passed = 0
    bench.gate.attempts = way
    async with filled(bench, ROWS) as layer:
        fail = failing_superblock(bench, torn)

        def before() -> None:
            nonlocal passed
            if not bench.medium.held:
                return
            if passed == beside or not bench.gate.held:
                broken(bench, *STEPS)
                monkeypatch.setattr(bench.medium._inner, "write_superblock", fail)
                bench.medium.let_go()
            passed += 1

        steps = await step_by_step(bench, layer, before, history=ROWS)
        assert bench.events[:2] == ["log-failed", "log-aside"]
        assert await read(layer, 0, ROWS.blocks) == STATES[-1]
    crashes = [crash for crash, _ in steps]
    assert all(crash.written_back == 0 for crash in crashes)
    assert all(crash.is_good for crash in crashes)
    assert any(crash.is_torn for crash in crashes)
    for crash in crashes[beside % 3 :: 3]:
        await recover(crash, way=way)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("way", ["pending", "declined"])
async def test_a_layer_that_is_closed_while_some_are_kept_leaves_a_point_of_the_order_that_recovers(
    bench: Bench, way: Way, held: bool
) -> None:
    """Also where the request that is under way ends only afterwards."""
    bench.gate.attempts = way
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE):
            async with filled(bench, ROWS) as layer:
                bench.gate.close()
                nursery.start_soon(quietly, layer.writeback)
                await until_kept(bench, layer, 2)
                if not held:
                    bench.gate.open()
        assert kept(layer) == 0
        after = crashed(bench, layer, ROWS)
        bench.gate.open()
        await wait_all_tasks_blocked()
        later = crashed(bench, layer, ROWS)
        nursery.cancel_scope.cancel()
    assert after.is_set
    for crash in (after, later):
        assert crash.is_good
        assert not crash.is_torn
        await recover(crash, way=way)


@pytest.mark.parametrize("way", ["pending", "declined"])
async def test_a_process_that_is_cancelled_as_a_whole_while_some_are_kept_leaves_a_point_of_the_order(
    bench: Bench, way: Way
) -> None:
    bench.gate.attempts = way
    with trio.fail_after(PATIENCE), trio.CancelScope() as scope:
        async with filled(bench, ROWS) as layer, trio.open_nursery() as nursery:
            bench.gate.close()
            nursery.start_soon(layer.writeback)
            await until_kept(bench, layer, 2)
            scope.cancel()
    assert layer._log.superblock.written_back in (0, 2)
    crash = crashed(bench, layer, ROWS)
    assert crash.is_good
    await recover(crash, way=way)
