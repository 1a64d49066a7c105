"""Write-back in groups: overwrites cancel across flushes, and in mid-group everybody knows that something is torn."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import trio

from fusecache.api.errors import CorruptState
from fusecache.testing import Fault
from fusecache_rwl.format import HEADER_SIZE, RING_OFFSET
from fusecache_rwl.inspection import inspect_pool
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, RING, SIZE, Bench, block, read, write

GROUP = RING // 8 // BLOCK
"""Generations of one block each in a group, at the most."""
PATIENCE = 10


async def flushed(layer: RwlLayer, number: int, content: int) -> None:
    """Make a generation of one block."""
    await write(layer, number, content)
    await layer.flush()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other tasks bring about."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()


def log_of(bench: Bench) -> Mapping[str, Any]:
    """Return what an inspection says of the log."""
    facts = inspect_pool(bench.pool, verify=True).facts
    log, records = facts["log"], facts["records"]
    assert isinstance(log, Mapping)
    assert isinstance(records, Mapping)
    return {**log, "groups": records["group"]}


def held_writes(bench: Bench) -> list[tuple[str, int, int]]:
    """Return what stands at the gate."""
    return [(held.request.operation, held.request.offset, held.request.end) for held in bench.gate.held]


async def test_of_a_group_only_the_newest_content_of_each_range_goes_below(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer, trio.open_nursery() as nursery:
        for number, content in ((0, 1), (1, 2), (0, 3), (1, 4)):
            await flushed(layer, number, content)
        bench.gate.close()
        nursery.start_soon(layer.writeback)
        await bench.gate.wait_held(1)
        assert held_writes(bench) == [("write", 0, 2 * BLOCK)]
        bench.gate.open()
    assert bench.below(0, 2 * BLOCK) == block(3) + block(4)


async def test_before_its_first_byte_goes_below_a_group_is_named_in_the_log_and_the_mark_says_torn(
    bench: Bench,
) -> None:
    async with bench.opened(order="grouped") as layer, trio.open_nursery() as nursery:
        for number in range(3):
            await flushed(layer, number, number)
        bench.gate.close()
        bench.medium.hold("sync")
        nursery.start_soon(layer.writeback)
        await bench.medium.wait_held()
        assert bench.mark.told == ["set"]
        bench.medium.let_go()
        await bench.gate.wait_held(1)
        assert bench.mark.told == ["set", "tear"]
        assert layer.torn
        assert log_of(bench)["group_in_flight"] == "generations 1 to 3"
        bench.gate.open()
    assert not layer.torn
    assert not bench.mark.is_torn
    assert log_of(bench)["group_in_flight"] is None


async def test_the_mark_stays_over_groups_that_follow_each_other(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer:
        for number in range(3 * GROUP):
            await flushed(layer, number, number)
        await layer.writeback()
        assert log_of(bench)["groups"] > 0
        assert bench.mark.told.count("tear") == 1
        assert not bench.mark.is_torn
    assert bench.below(0, 3 * GROUP * BLOCK) == b"".join(map(block, range(3 * GROUP)))


async def test_one_generation_alone_is_no_group(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer, trio.open_nursery() as nursery:
        for number in range(2 * GROUP):
            await write(layer, number, number)
        await layer.flush()
        bench.gate.close()
        nursery.start_soon(layer.writeback)
        await bench.gate.wait_held(1)
        assert not layer.torn
        assert log_of(bench)["groups"] == 0
        bench.gate.open()
    assert "tear" not in bench.mark.told


async def test_in_strict_order_nothing_is_ever_torn(bench: Bench) -> None:
    async with bench.opened() as layer:
        for number in range(2 * GROUP):
            await flushed(layer, number, number)
        await layer.writeback()
        assert log_of(bench)["groups"] == 0
    assert bench.mark.told == ["set", "clear"]


async def test_a_full_log_is_written_back_in_groups(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer:
        number = 0
        await flushed(layer, 0, 0)
        while layer.try_write((number + 1) * BLOCK, memoryview(block(number + 1)), lambda _: None):
            number += 1
            await layer.flush()
            if layer.status().used_bytes + 2 * BLOCK > RING:
                break
        bench.gate.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flushed, layer, number + 1, number + 1)
            nursery.start_soon(flushed, layer, number + 2, number + 2)
            await bench.gate.wait_held(1)
            bench.gate.open()
        await layer.writeback()
        assert "tear" in bench.mark.told
    assert bench.below(0, (number + 3) * BLOCK) == b"".join(map(block, range(number + 3)))


async def in_mid_group(bench: Bench, layer: RwlLayer, nursery: trio.Nursery, depth: int = GROUP) -> trio.CancelScope:
    """Stop in the middle of a group of all generations but the last two; return what cancels who waits for it.

    Args:
        depth: the layer's writeback_depth, or the group's moves.
    """
    for number in range(GROUP + 2):
        await flushed(layer, 2 * number, number)
    bench.gate.close()
    waiting = trio.CancelScope()

    async def write_back() -> None:
        with waiting:
            await layer.writeback()

    nursery.start_soon(write_back)
    await bench.gate.wait_held(depth)
    bench.gate.held[0].let_go()
    await until(lambda: any(bench.below(0, SIZE)) and len(bench.gate.held) == min(depth, GROUP - 1))
    assert layer.torn
    return waiting


def expect_group_below(bench: Bench) -> None:
    """All of the group is below, and nothing of what came after it."""
    for number in range(GROUP + 2):
        assert bench.below(2 * number * BLOCK) == (block(number) if number < GROUP else bytes(BLOCK))


async def test_a_group_is_finished_though_nobody_waits_and_the_rate_is_0(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer, trio.open_nursery() as nursery:
        waiting = await in_mid_group(bench, layer, nursery)
        waiting.cancel()
        await flushed(layer, 0, 100)
        bench.gate.open()
        await until(lambda: bench.mark.told == ["set", "tear", "mend"])
        expect_group_below(bench)
        assert await read(layer) == block(100)


async def test_the_next_process_finishes_the_group_and_no_more_before_it(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer, trio.open_nursery() as nursery:
        await in_mid_group(bench, layer, nursery)
        nursery.cancel_scope.cancel()
    assert bench.mark.is_torn
    bench.gate.open()
    # Whatever the order is by now.
    async with bench.opened() as layer:
        assert layer.torn
        await flushed(layer, 0, 100)
        await until(lambda: not bench.mark.is_torn)
        assert not layer.torn
        expect_group_below(bench)
        await layer.writeback()
    assert bench.below() == block(100)


async def test_after_an_error_the_same_group_goes_below_again(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer, trio.open_nursery() as nursery:
        waiting = await in_mid_group(bench, layer, nursery)
        waiting.cancel()
        bench.faults.inject(Fault(["flush"], count=1))
        bench.gate.open()
        await flushed(layer, 0, 100)
        await bench.wait_for("writeback-resumed")
        await until(lambda: not bench.mark.is_torn)
        expect_group_below(bench)


async def test_where_torn_cannot_be_said_nothing_goes_below(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer:
        for number in range(3):
            await flushed(layer, number, number)
        bench.mark.failure = OSError("the record cannot be written")
        with pytest.raises(OSError, match="the record cannot be written"):
            await layer.writeback()
        assert not any(bench.below(0, SIZE))
        assert not layer.torn
        bench.mark.failure = None
        await layer.writeback()
    assert bench.below(0, 3 * BLOCK) == b"".join(map(block, range(3)))


async def test_a_group_whose_record_may_not_be_there_does_not_begin(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer:
        for number in range(3):
            await flushed(layer, number, number)
        bench.medium.failing.add("sync")
        await layer.writeback()
        assert "tear" not in bench.mark.told
        assert bench.below(0, 3 * BLOCK) == b"".join(map(block, range(3)))


async def test_a_torn_layer_that_is_dropped_is_torn_no_more(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer, trio.open_nursery() as nursery:
        waiting = await in_mid_group(bench, layer, nursery)
        waiting.cancel()
        bench.gate.open()
        await layer.invalidate(dirty=True)
        assert not layer.torn
        assert not bench.mark.is_torn
        assert not bench.mark.is_set
        await flushed(layer, 1, 1)
        await layer.writeback()
    assert bench.below(BLOCK) == block(1)


async def test_a_resize_in_mid_group_leaves_the_group_as_it_was(bench: Bench) -> None:
    async with bench.opened(order="grouped", writeback_depth=2) as layer, trio.open_nursery() as nursery:
        waiting = await in_mid_group(bench, layer, nursery, depth=2)
        waiting.cancel()
        nursery.start_soon(layer.resize, 2 * SIZE)
        await trio.testing.wait_all_tasks_blocked()
        bench.gate.open()
        await until(lambda: not bench.mark.is_torn and layer.size == 2 * SIZE)
        expect_group_below(bench)


async def test_a_group_in_flight_whose_record_is_damaged_is_corruption(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer, trio.open_nursery() as nursery:
        await in_mid_group(bench, layer, nursery)
        nursery.cancel_scope.cancel()
    bench.gate.open()
    pool, below = bench.pool.read_bytes(), bench.below(0, SIZE)
    head = log_of(bench)["head_position"]
    for byte in (0, 5, 24, 32, HEADER_SIZE - 1):
        damaged = bytearray(pool)
        damaged[RING_OFFSET + head - HEADER_SIZE + byte] ^= 1
        bench.pool.write_bytes(damaged)
        with pytest.raises(CorruptState, match="the log breaks"):
            async with bench.opened():
                raise AssertionError("it opened")
        assert bench.below(0, SIZE) == below
    bench.pool.write_bytes(pool)
    async with bench.opened():
        await until(lambda: not bench.mark.is_torn)
    expect_group_below(bench)


async def test_where_an_older_superblock_counts_all_groups_since_go_below_as_one(bench: Bench) -> None:
    async with bench.opened(order="grouped") as layer, trio.open_nursery() as nursery:
        for number in range(2 * GROUP + 1):
            await flushed(layer, number, number)
        begun = bench.pool.read_bytes()[:RING_OFFSET]
        bench.gate.close()
        nursery.start_soon(layer.writeback)
        await bench.gate.wait_held(1)
        second = f"generations {GROUP + 1} to {2 * GROUP}"
        while log_of(bench)["group_in_flight"] != second or not bench.gate.held:
            for held in bench.gate.held:
                held.let_go()
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    bench.gate.open()
    assert log_of(bench)["groups"] == 2
    bench.pool.write_bytes(begun + bench.pool.read_bytes()[RING_OFFSET:])
    async with bench.opened():
        await until(lambda: not bench.mark.is_torn)
    assert bench.below(0, 2 * GROUP * BLOCK) == b"".join(map(block, range(2 * GROUP)))
    assert not any(bench.below(2 * GROUP * BLOCK))


@pytest.mark.parametrize("close", [True, False], ids=["closed", "left open"])
async def test_a_mark_that_says_torn_of_a_whole_level_is_put_right(bench: Bench, close: bool) -> None:
    async with bench.opened(order="grouped") as layer:
        await flushed(layer, 0, 0)
    bench.mark.is_torn = True
    async with bench.opened(order="grouped") as layer:
        assert not layer.torn
        if not close:
            await until(lambda: not bench.mark.is_torn)
    assert bench.mark.is_set
    assert not bench.mark.is_torn
    assert not any(bench.below())
