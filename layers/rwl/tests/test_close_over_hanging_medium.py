"""A close over a medium that hangs ends, whatever write-back was about to do with it."""

import pytest
import trio
from trio.testing import MockClock

from fusecache_rwl.medium_base import ReadEnd
from layers.rwl.tests.support.bench import Bench, write
from layers.rwl.tests.support.failing_medium import STEPS, broken, stood_aside
from layers.rwl.tests.support.switched import io_error

LONG = 60.0
"""Seconds of the mock clock: many times what a close may take."""


async def test_a_close_ends_over_a_medium_that_hangs_when_it_is_tried_again(
    bench: Bench, hurried_clock: MockClock
) -> None:
    """The pause before the next try, of a second at first, is over when the close gives the medium up after three."""
    asked: list[int] = []

    async def rescue() -> None:
        # Else the hang would be that of the whole run.
        while True:
            await trio.sleep(LONG)
            asked.append(len(bench.medium.held))
            layer._log.waits.give_up()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rescue)
        async with bench.opened() as layer:
            await write(layer, 0, 1)
            broken(bench, *STEPS)
            await layer.flush()
            await stood_aside(bench)
            bench.medium.failing.clear()
            bench.medium.hold("superblock")
            layer.moving.aside.hurry()
            layer.moving.wake()
            await bench.medium.wait_held()
        nursery.cancel_scope.cancel()
    assert not asked, f"a medium that was given up was asked for {asked[0] - 1} more superblocks"


async def test_a_close_ends_while_write_back_reads_from_a_medium_that_hangs(
    bench: Bench, hurried_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[ReadEnd] = []
    late = False

    async def rescue() -> None:
        nonlocal late
        await trio.sleep(LONG)
        late = True
        for done in reads:
            done(io_error(), b"")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rescue)
        async with bench.opened() as layer, trio.open_nursery() as waiting:
            await write(layer, 0, 1)
            await layer.flush()
            bench.medium.cold = True
            monkeypatch.setattr(bench.medium, "read", lambda position, length, done: reads.append(done))
            waiting.start_soon(layer.writeback)
            with trio.fail_after(1):
                while not reads:
                    await trio.lowlevel.checkpoint()
            waiting.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    assert not late, "write-back waited for a read of a medium that was given up"
