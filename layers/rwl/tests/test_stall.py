"""A log that stays full: people are told once that it is, while it is, and once that it is over."""

import errno

import pytest
import trio
from trio.testing import MockClock

from fusecache.api import DECLINED, LayerState
from fusecache.testing import Fault
from fusecache_rwl.failures import LogFull
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, Bench, benched, block, write

FULL = ["log-stalled", "log-flows"]
PATIENCE = 30.0


def fill(layer: RwlLayer) -> None:
    """Write until the log is full."""
    for number in range(1000):
        if layer.try_write(number * BLOCK, memoryview(block(number)), lambda _: None) is DECLINED:
            return
    raise AssertionError("the log is never full")


def told(bench: Bench) -> list[str]:
    return [event for event in bench.events if event in FULL]


@pytest.mark.parametrize(
    ("patience", "error", "reason"),
    [
        ("5s", OSError(errno.EIO, "the cluster is sick"), "failed: [Errno 5] the cluster is sick"),
        ("60s", None, "reported no error"),
        ("5s", None, "reported no error"),
    ],
)
async def test_a_log_that_stays_full_is_told_of_once_and_so_is_its_end(
    patience: str, error: Exception | None, reason: str, hurried_clock: MockClock
) -> None:
    with benched() as bench:
        async with bench.opened(stall_timeout=patience, stall_errno="ENOSPC") as layer:
            await write(layer, 0, 0)
            if error is None:
                bench.gate.close()
            else:
                bench.faults.inject(Fault({"write"}, error=error))
            fill(layer)
            for _ in range(2):
                with pytest.raises(LogFull):
                    await write(layer, 0, 1)
            status = layer.status()
            assert status.state is LayerState.DEGRADED
            assert "full" in status.note
            assert reason in status.note
            assert "KiB are dirty" in status.note
            assert told(bench) == FULL[:1]
            assert reason in bench.texts["log-stalled"]
            assert f"{min(10, float(patience[:-1])):.0f} s;" in bench.texts["log-stalled"]
            bench.faults.heal()
            bench.gate.open()
            hurried_clock.autojump_threshold = 0.5
            await layer.writeback()
            with trio.fail_after(PATIENCE):
                await bench.wait_for("log-flows")
            assert layer.status().note == ""
            assert layer.status().state is LayerState.CLEAN
            await write(layer, 0, 2)
            assert told(bench) == FULL


async def test_a_write_that_waits_for_ever_is_told_of_and_its_space_is_the_end(hurried_clock: MockClock) -> None:
    with benched() as bench:
        async with bench.opened(stall_timeout="never") as layer, trio.open_nursery() as nursery:
            bench.faults.inject(Fault({"write"}, error=None, delay=40))
            await write(layer, 0, 0)
            fill(layer)
            nursery.start_soon(write, layer, 0, 1)
            await bench.wait_for("log-stalled")
            assert trio.current_time() == pytest.approx(10, abs=1)
            await bench.wait_for("log-flows")
        assert told(bench) == FULL


async def test_a_discard_of_a_full_log_ends_its_stall(hurried_clock: MockClock) -> None:
    with benched() as bench:
        async with bench.opened(stall_timeout="1s") as layer:
            await write(layer, 0, 0)
            bench.faults.inject(Fault({"write"}))
            fill(layer)
            with pytest.raises(LogFull):
                await write(layer, 0, 1)
            await layer.invalidate(dirty=True)
            await write(layer, 0, 2)
            with trio.fail_after(PATIENCE):
                await bench.wait_for("log-flows")
            assert layer.status().note == ""


async def test_a_wait_that_ends_soon_is_no_stall_and_a_close_is_not_its_end(hurried_clock: MockClock) -> None:
    with benched() as bench:
        async with bench.opened(stall_timeout="60s") as layer:
            bench.faults.inject(Fault({"write"}, error=None, delay=0.1))
            await write(layer, 0, 0)
            fill(layer)
            await write(layer, 0, 1)
            assert bench.events == []
            bench.faults.heal()
            bench.faults.inject(Fault({"write"}))
            fill(layer)
            with pytest.raises(LogFull):
                await layer.write(0, memoryview(bytes(64 * BLOCK)))
        assert told(bench) == FULL[:1]
