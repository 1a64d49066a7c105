"""What is durable below is retired for whoever waits for it, whatever becomes of the generation after it."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import DECLINED
from fusecache.api.ranges import Span
from fusecache.testing import HANG, Fault
from layers.rwl.tests.support.bench import BLOCK, Bench, block, write

MANY = 12
"""Blocks of the generation that is durable below: so few that others may join it."""
NEXT = 20
"""The block of the one after it."""
MOMENT = 0.5
"""Seconds after which a test that waits has failed."""


def hang(bench: Bench) -> Fault:
    """Have the next generation hang below."""
    span = Span(NEXT * BLOCK, (NEXT + 1) * BLOCK)
    return bench.faults.inject(Fault({"write", "discard"}, error=None, span=span, delay=HANG))


async def hanging(fault: Fault) -> None:
    """Wait until it does."""
    with trio.fail_after(MOMENT):
        while not fault.hits:
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("kind", ["write", "discard"])
async def test_a_write_that_waits_gets_the_space_of_what_is_below_though_the_next_generation_hangs(
    bench: Bench, kind: str
) -> None:
    """A discard of a whole image is such a generation, too: it takes minutes, and counts as small."""
    async with bench.opened(stall_timeout="200ms") as layer, trio.open_nursery() as nursery:
        for number in range(MANY):
            await write(layer, number, number)
        await layer.flush()
        await (write(layer, NEXT, NEXT) if kind == "write" else layer.discard(NEXT * BLOCK, BLOCK))
        await layer.flush()
        fault = hang(bench)
        nursery.start_soon(layer.writeback)
        await hanging(fault)
        assert bench.below(0, MANY * BLOCK) == b"".join(block(number) for number in range(MANY))
        at = NEXT + 1
        while layer.try_write(at * BLOCK, memoryview(block(at)), lambda _: None) is not DECLINED:
            at += 1
        await write(layer, at, at)
        nursery.cancel_scope.cancel()


async def test_a_drain_ends_when_its_last_generation_is_below_though_a_later_one_hangs(bench: Bench) -> None:
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        await write(layer, 0, 0)
        await layer.flush()
        fault = hang(bench)
        bench.gate.close()
        over = trio.Event()

        async def drain() -> None:
            await layer.moving.drain()
            over.set()

        nursery.start_soon(drain)
        await bench.gate.wait_held(1)
        await write(layer, NEXT, NEXT)
        await layer.flush()
        nursery.start_soon(layer.writeback)
        await wait_all_tasks_blocked()
        bench.gate.open()
        await hanging(fault)
        with trio.fail_after(MOMENT):
            await over.wait()
        nursery.cancel_scope.cancel()
