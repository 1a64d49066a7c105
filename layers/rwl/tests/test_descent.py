"""Generations on their way below: which of them one superblock retires, and what ends a row of them."""

import sys
from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import Attempt, Done
from fusecache.testing import AttemptMode
from fusecache_rwl.layer import SECTOR, RwlLayer
from layers.rwl.tests.support.bench import BLOCK, Bench, benched, block, write
from layers.rwl.tests.support.failing_medium import PATIENCE
from layers.rwl.tests.support.generations import CLEARED, LARGE, OVERWRITES, PARTS, ROWS, Generations
from layers.rwl.tests.support.retiring import fill, filled, kept, superblocks
from layers.rwl.tests.support.scripted import Answer, ScriptedVolume, times

# ---- which superblock retires what ----


@pytest.mark.parametrize("attempts", ["pending", "done", "declined"])
@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (OVERWRITES, [1, 2, 3, 4]),
        (ROWS, [3, 5, 8, 9]),
        (PARTS, [2, 4, 6, 7]),
        (CLEARED, [3, 4, 5, 8, 9, 10, 11]),
        (LARGE, [2, 3, 5, 6]),
    ],
    ids=lambda value: value.name if isinstance(value, Generations) else "",
)
async def test_one_superblock_retires_all_before_the_first_that_changes_a_byte_of_theirs(
    bench: Bench, history: Generations, expected: Sequence[int], attempts: AttemptMode
) -> None:
    bench.bare.attempts = attempts
    async with filled(bench, history) as layer:
        found = superblocks(layer)
        await layer.writeback()
        assert found == expected
        written = sum(change.blocks for each in history.each for change in each if any(change.data))
        assert layer.status().writeback_bytes == written * BLOCK
    assert bench.below(0, history.size) == history.states[-1]


@pytest.mark.parametrize("attempts", ["pending", "done", "declined"])
async def test_one_superblock_retires_32_generations_at_the_most(bench: Bench, attempts: AttemptMode) -> None:
    bench.bare.attempts = attempts
    async with bench.opened() as layer:
        await sectors(layer, 70)
        found = superblocks(layer)
        await layer.writeback()
    assert found == [32, 64, 70]


async def sectors(layer: RwlLayer, count: int) -> None:
    """Write generations of a sector each, which do not meet."""
    for number in range(count):
        await layer.write(number * SECTOR, memoryview(bytes([1 + number % 255]) * SECTOR))
        layer._log.seal()
    await layer.flush()


@pytest.mark.parametrize("attempts", ["pending", "done", "declined"])
async def test_nothing_of_a_row_goes_below_that_the_log_could_still_lose(bench: Bench, attempts: AttemptMode) -> None:
    bench.bare.attempts = attempts
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        await write(layer, 0, 1)
        await layer.flush()
        await write(layer, 1, 2)
        bench.medium.hold("sync")
        nursery.start_soon(layer.flush)
        await bench.medium.wait_held()
        nursery.start_soon(layer.writeback)
        await bench.medium.wait_held(2)
        await wait_all_tasks_blocked()
        assert layer._log.ledger.oldest_sealed(1) is not None
        assert bench.below(0, 2 * BLOCK) == block(1) + bytes(BLOCK)
        bench.medium.let_go()
    assert bench.below(0, 2 * BLOCK) == block(1) + block(2)


@pytest.mark.parametrize("attempts", ["pending", "done"])
async def test_a_large_generation_has_a_superblock_of_its_own(attempts: AttemptMode) -> None:
    with benched(ring=1 << 20) as bench:
        bench.bare.attempts = attempts
        async with bench.opened() as layer:
            for blocks in (1, 1, 17, 1, 1, 17, 17):
                at = layer._log.ledger.records * 20 * BLOCK
                await layer.write(at % bench.bare.size, memoryview(bytes(blocks * BLOCK)))
                await layer.flush()
            found = superblocks(layer)
            await layer.writeback()
        assert found == [2, 3, 5, 6, 7]


async def test_nothing_is_kept_in_grouped_order(bench: Bench) -> None:
    async with filled(bench, ROWS, order="grouped") as layer:
        found = superblocks(layer)
        most = 0

        def note() -> None:
            nonlocal most
            most = max(most, kept(layer))

        layer.moving._descent._retirement.keep = lambda generation: note()  # type: ignore[method-assign]
        await layer.writeback()
        assert most == 0
    assert found[-1] == ROWS.last


@pytest.mark.parametrize("attempts", ["pending", "done", "declined"])
async def test_somebody_short_of_space_has_it_one_generation_at_a_time(bench: Bench, attempts: AttemptMode) -> None:
    bench.bare.attempts = attempts
    async with bench.opened() as layer:
        number = 0
        while layer._log.medium.ring_size - layer._log.space.dirty_used > 2 * BLOCK:
            await write(layer, number, number)
            await layer.flush()
            number += 1
        found = superblocks(layer)
        with trio.fail_after(PATIENCE):
            # Space of eight of them.
            await layer.write(200 * BLOCK, memoryview(bytes(8 * BLOCK)))
        assert found == list(range(1, len(found) + 1))
        assert 8 <= len(found) <= 10


# ---- a great many ----


class Deep(ScriptedVolume):
    """Says how deep in calls it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.depths: list[int] = []

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        depth, frame = 0, sys._getframe()
        while frame.f_back is not None:
            depth, frame = depth + 1, frame.f_back
        self.depths.append(depth)
        return super().try_write(offset, data, done)


@pytest.mark.parametrize(
    "answers", [("done", "done"), ("pending", "done"), ("done", "pending"), ("pending", "pending")]
)
async def test_thousands_of_generations_go_below_without_deep_calls_and_others_have_turns(
    answers: Sequence[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2000
    below = Deep()
    below.writes += times(2 * count, answers[0])
    below.flushes += times(2 * count, answers[1])
    turns, over = 0, trio.Event()

    async def others() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            if below.under_way:
                below.end()
            await trio.lowlevel.checkpoint()

    with benched(ring=2 << 20) as bench:
        bench.faults.below = below
        async with bench.opened() as layer, trio.open_nursery() as nursery:
            await sectors(layer, count)
            nursery.start_soon(others)
            await layer.writeback()
            over.set()
    assert len(below.depths) == count
    assert max(below.depths) - min(below.depths) < 10
    assert turns > count / 4
    assert bytes(below.content.read(0, SECTOR)) == b"\1" * SECTOR


async def test_a_row_is_written_again_whole_where_one_write_of_a_generation_was_declined(bench: Bench) -> None:
    """And its bytes are counted as often as they were written."""
    below = ScriptedVolume()
    below.writes += ["done", "declined", *times(20, "done")]
    below.flushes += times(20, "done")
    bench.faults.below = below
    async with filled(bench, OVERWRITES) as layer:
        await layer.writeback()
        assert layer.status().writeback_bytes == 10 * BLOCK
    assert bytes(below.content.read(0, OVERWRITES.size)) == OVERWRITES.states[-1]


async def test_what_is_written_while_others_go_below_goes_with_them(bench: Bench) -> None:
    async with bench.opened(writeback_rate="max", max_dirty_age="0s") as layer:
        await fill(layer, ROWS)
        with trio.fail_after(PATIENCE):
            await layer.writeback()
    assert bench.below(0, ROWS.size) == ROWS.states[-1]
