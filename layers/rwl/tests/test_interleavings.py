"""Requests and write-back that meet halfway, in every order that a gate can make."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import DECLINED
from fusecache_rwl import movement
from fusecache_rwl.failures import LogFull
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, RING, SIZE, Bench, benched, block, read, write

FULL = RING // (2 * BLOCK)
"""Writes of one block that leave room in the ring for many, or for hardly any if done twice."""


@pytest.fixture
def hurried_clock() -> trio.testing.MockClock:
    """A clock that jumps to the next deadline when everybody waits, for longer than any thread of the pool works."""
    return trio.testing.MockClock(autojump_threshold=0.1)


async def fill(layer: RwlLayer) -> int:
    """Write from block 0 on until the log takes no more; return how many blocks it took."""
    number = 0
    while layer.try_write(number * BLOCK, memoryview(block(number)), lambda _: None) is not DECLINED:
        number += 1
    assert number > FULL
    return number


async def test_a_fetch_that_a_write_overtakes_does_not_hide_it(bench: Bench) -> None:
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        await write(layer, 1, 1)
        bench.gate.close()
        fetched: list[bytes] = []

        async def fetch() -> None:
            fetched.append(await read(layer, 0, 3))

        nursery.start_soon(fetch)
        await bench.gate.wait_held(2)
        await write(layer, 2, 2)
        bench.gate.open()
        while not fetched:
            await trio.lowlevel.checkpoint()
        # As it was when the fetch began, or as it is now.
        assert fetched[0][: 2 * BLOCK] == bytes(BLOCK) + block(1)
        assert fetched[0][2 * BLOCK :] in (bytes(BLOCK), block(2))
        assert await read(layer, 0, 3) == bytes(BLOCK) + block(1) + block(2)


async def test_a_read_keeps_its_record_while_it_is_retired_and_the_ring_goes_round(bench: Bench) -> None:
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        await write(layer, 0, 100)
        bench.medium.cold = True
        bench.medium.hold("read")
        found: list[bytes] = []

        async def fetch() -> None:
            found.append(await read(layer))

        nursery.start_soon(fetch)
        await bench.medium.wait_held()
        bench.medium.cold = False
        await layer.writeback()
        count = await fill_clean(layer)
        # The first of these that is taken would go where the record is.
        await bench.mark.set()
        while layer.try_write(count * BLOCK, memoryview(block(count)), lambda _: None) is not DECLINED:
            count += 1
        bench.medium.let_go()
        while not found:
            await trio.lowlevel.checkpoint()
        assert found == [block(100)]
        await layer.writeback()
        assert bench.below(BLOCK, (count - 1) * BLOCK) == b"".join(block(number) for number in range(1, count))


async def fill_clean(layer: RwlLayer) -> int:
    """Write from block 1 on until the log takes no more, and write everything back; return the next block."""
    number = 1
    if layer.try_write(BLOCK, memoryview(block(1)), lambda _: None) is DECLINED:
        await write(layer, 1, 1)
    while layer.try_write(number * BLOCK, memoryview(block(number)), lambda _: None) is not DECLINED:
        number += 1
    await layer.writeback()
    return number


async def test_a_write_that_waits_for_a_read_alone_goes_on_when_that_ends(bench: Bench) -> None:
    async with bench.opened(stall_timeout="10s") as layer, trio.open_nursery() as nursery:
        await write(layer, 0, 100)
        bench.medium.cold = True
        bench.medium.hold("read")
        nursery.start_soon(read, layer)
        await bench.medium.wait_held()
        bench.medium.cold = False
        await layer.writeback()
        count = await fill_clean(layer)
        assert not layer.status().dirty_bytes
        with trio.fail_after(5):
            async with trio.open_nursery() as writing:
                writing.start_soon(write, layer, count, count)
                await wait_all_tasks_blocked()
                bench.medium.let_go()
        assert await read(layer, count) == block(count)


async def test_a_read_that_is_cancelled_lets_its_record_go(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 0)
        bench.medium.cold = True
        bench.medium.hold("read")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, layer)
            await bench.medium.wait_held()
            nursery.cancel_scope.cancel()
            bench.medium.let_go()
        bench.medium.cold = False
        await layer.writeback()
        for number in range(4 * FULL):
            await write(layer, number, number)
        assert await read(layer, 0, 4 * FULL) == b"".join(block(number) for number in range(4 * FULL))


@pytest.mark.parametrize("attempts", ["done", "pending", "declined"])
async def test_a_newer_write_survives_the_move_of_an_older_one(attempts: str) -> None:
    with benched(attempts=attempts) as bench:  # type: ignore[arg-type]
        async with bench.opened() as layer, trio.open_nursery() as nursery:
            await write(layer, 0, 1)
            bench.gate.close()
            nursery.start_soon(layer.writeback)
            await bench.gate.wait_held(1)
            await write(layer, 0, 2)
            assert await read(layer) == block(2)
            bench.gate.open()
            await layer.writeback()
            assert bench.below() == block(2)
            await layer.discard(0, BLOCK)
            bench.gate.close()
            nursery.start_soon(layer.writeback)
            await bench.gate.wait_held(1)
            await write(layer, 0, 3)
            bench.gate.open()
            await layer.writeback()
            assert bench.below() == await read(layer) == block(3)


async def test_a_flush_does_not_wait_for_a_frozen_write_back(bench: Bench) -> None:
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        await write(layer, 0, 1)
        bench.gate.close()
        nursery.start_soon(layer.writeback)
        await bench.gate.wait_held(1)
        with trio.fail_after(5):
            await write(layer, 1, 2)
            await layer.flush()
            assert await read(layer, 0, 2) == block(1) + block(2)
        assert len(bench.gate.held) == 1
        bench.gate.open()


async def test_a_close_does_not_wait_for_a_frozen_write_back(bench: Bench) -> None:
    with trio.fail_after(10):
        async with bench.opened(writeback_rate="max", max_dirty_age="0s") as layer:
            bench.gate.close()
            await write(layer, 0, 1)
            await bench.gate.wait_held(1)
    assert bench.mark.is_set
    bench.gate.open()
    async with bench.opened() as layer:
        assert await read(layer) == block(1)
        await layer.writeback()
    assert bench.below() == block(1)


async def test_flushes_share_a_sync_and_all_wait_for_it(bench: Bench) -> None:
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        bench.medium.hold("sync")
        ended: list[int] = []

        async def flush(number: int) -> None:
            await write(layer, number, number)
            await layer.flush()
            ended.append(number)

        for number in range(3):
            nursery.start_soon(flush, number)
        await bench.medium.wait_held(3)
        assert await read(layer, 0, 3) == block(0) + block(1) + block(2)
        assert not ended
        bench.medium.let_go()


async def test_a_write_while_the_mark_is_being_set_is_neither_kept_nor_acknowledged(bench: Bench) -> None:
    async with bench.opened() as layer:
        with bench.mark.held():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, layer, 0, 1)
                nursery.start_soon(write, layer, 1, 2)
                await wait_all_tasks_blocked()
                assert layer.try_write(0, memoryview(block(3)), lambda _: None) is DECLINED
                assert layer.try_discard(0, SIZE, lambda _: None) is DECLINED
                assert not layer.status().dirty_bytes
                assert await read(layer, 0, 2) == bytes(2 * BLOCK)
                nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert await read(layer, 0, 2) == bytes(2 * BLOCK)
        await write(layer, 1, 2)
        assert await read(layer, 0, 2) == bytes(BLOCK) + block(2)


async def test_a_write_while_the_mark_is_being_cleared_sets_it_again(bench: Bench) -> None:
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        await write(layer, 0, 1)
        bench.mark.on_clear = lambda: nursery.start_soon(write, layer, 1, 2)
        await layer.writeback()
        while not layer.status().dirty_bytes:
            await trio.lowlevel.checkpoint()
        bench.mark.on_clear = lambda: None
        assert bench.mark.is_set
    async with bench.opened() as layer:
        assert await read(layer, 0, 2) == block(1) + block(2)


async def test_an_invalidation_waits_for_the_move_in_flight_and_none_comes_after_it(bench: Bench) -> None:
    async with bench.opened(writeback_depth=1) as layer:
        for number in range(4):
            # Apart, so that they do not merge.
            await write(layer, 2 * number, number)
        async with trio.open_nursery() as nursery:
            bench.gate.close()
            nursery.start_soon(layer.writeback)
            await bench.gate.wait_held(1)
            over = trio.Event()

            async def invalidate() -> None:
                await layer.invalidate(dirty=True)
                over.set()

            nursery.start_soon(invalidate)
            await wait_all_tasks_blocked()
            assert not over.is_set()
            bench.gate.open()
        assert over.is_set()
        left = bench.below(0, SIZE)
        assert sum(any(left[at : at + BLOCK]) for at in range(0, SIZE, BLOCK)) == 1
        assert not layer.status().dirty_bytes
        assert await read(layer, 0, SIZE // BLOCK) == left
        await layer.writeback()
        assert bench.below(0, SIZE) == left
        await write(layer, 1, 9)
    async with bench.opened() as layer:
        assert await read(layer, 0, 8) == left[:BLOCK] + block(9) + left[2 * BLOCK : 8 * BLOCK]


async def test_no_more_is_copied_for_a_write_back_at_once_than_its_bound(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(movement, "_MOST", 2 * BLOCK)
    async with bench.opened() as layer:
        for number in range(4):
            # Apart, so that they do not merge.
            await write(layer, 2 * number, number + 1)
        bench.gate.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(layer.writeback)
            await bench.gate.wait_held(2)
            await wait_all_tasks_blocked()
            assert len(bench.gate.held) == 2
            bench.gate.open()
        assert [bench.below(2 * number * BLOCK, BLOCK) for number in range(4)] == [block(n + 1) for n in range(4)]


async def test_a_cancelled_invalidation_leaves_all_that_was_dirty(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        bench.gate.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(layer.writeback)
            await bench.gate.wait_held(1)
            with trio.CancelScope() as scope:
                scope.cancel()
                await layer.invalidate(dirty=True)
            assert layer.status().dirty_bytes
            bench.gate.open()
        assert bench.below() == await read(layer) == block(1)


async def test_a_write_cancelled_while_the_log_is_full_leaves_no_trace(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 0)
        bench.gate.close()
        count = await fill(layer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, layer, 0, 99)
            await bench.gate.wait_held(1)
            nursery.cancel_scope.cancel()
        assert await read(layer, 0, count) == b"".join(block(number) for number in range(count))
        bench.gate.open()
        await write(layer, count, count)
        await layer.writeback()
        assert bench.below(0, (count + 1) * BLOCK) == b"".join(block(number) for number in range(count + 1))


async def test_a_cancelled_write_back_leaves_its_data_dirty_and_the_next_one_moves_them(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        bench.gate.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(layer.writeback)
            await bench.gate.wait_held(1)
            nursery.cancel_scope.cancel()
        assert layer.status().dirty_bytes
        bench.gate.open()
        await layer.writeback()
        assert bench.below() == block(1)
        assert not bench.mark.is_set


async def test_a_retirement_in_flight_loses_nothing_that_comes_meanwhile(bench: Bench) -> None:
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        await write(layer, 0, 1)
        bench.medium.hold("superblock")
        nursery.start_soon(layer.writeback)
        await bench.medium.wait_held()
        await write(layer, 0, 2)
        await layer.discard(BLOCK, BLOCK)
        bench.medium.let_go()
    assert bench.mark.is_set
    async with bench.opened() as layer:
        assert await read(layer) == block(2)


async def test_what_stalls_in_a_full_log_goes_on_or_fails_in_time(
    bench: Bench, hurried_clock: trio.testing.MockClock
) -> None:
    async with bench.opened(stall_timeout="100s") as layer:
        await write(layer, 0, 0)
        bench.gate.close()
        count = await fill(layer)
        with pytest.raises(LogFull):
            await write(layer, 0, 99)
        assert trio.current_time() >= 100
        # From here on a thread that is late would be taken for the level below.
        hurried_clock.autojump_threshold = 0.5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, layer, count, count)
            bench.gate.open()
        await layer.writeback()
        assert bench.below(0, (count + 1) * BLOCK) == b"".join(block(number) for number in range(count + 1))
