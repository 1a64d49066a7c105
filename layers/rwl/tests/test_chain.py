"""A row of small generations goes below in the callbacks of the level below, each begun where the one before ends."""

from collections.abc import AsyncIterator, Sequence

import pytest
from trio.testing import wait_all_tasks_blocked

from layers.rwl.tests.support.bench import BLOCK, Bench
from layers.rwl.tests.support.chained import FIRST, SECOND, THIRD, THREE, TWICE, ChainRig, chained
from layers.rwl.tests.support.generations import Change, Generations, discard, writes, zeroes
from layers.rwl.tests.support.scripted import Answer, times


@pytest.fixture
def history() -> Generations:
    return THREE


@pytest.fixture
def depth() -> int:
    return 8


@pytest.fixture
async def rig(bench: Bench, history: Generations, depth: int) -> AsyncIterator[ChainRig]:
    async with chained(bench, history, depth) as made:
        yield made


def of(*made: Generations) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("history", made, ids=lambda history: history.name)


# ---- one after the other ----


async def test_each_begins_in_the_callback_that_ends_the_one_before(rig: ChainRig) -> None:
    """No task has a turn in between."""
    await rig.start()
    assert rig.below.asked == [FIRST]
    rig.below.end()
    assert rig.below.asked == [FIRST, "flush"]
    assert rig.row.kept == []
    rig.below.end()
    assert rig.below.asked == [FIRST, "flush", SECOND]
    assert rig.row.kept == [1]
    rig.below.end()
    rig.below.end()
    assert rig.row.kept == [1, 2]
    rig.below.end()
    rig.below.end()
    assert await rig.ended() == 3
    assert rig.below.asked == [FIRST, "flush", SECOND, "flush", THIRD, "flush"]
    assert rig.is_below(3)
    assert rig.row.moved_bytes == 3 * BLOCK


async def test_the_next_one_is_read_while_the_one_before_is_under_way(rig: ChainRig) -> None:
    await rig.start()
    assert rig.row.asked == [0, 1]
    rig.bench.medium.cold = True
    rig.below.end()
    rig.below.end()
    assert rig.below.asked[-1] == SECOND
    assert await rig.end_all() == 2
    assert rig.is_below(2)


async def test_flushes_that_end_at_once_hold_nothing_up(rig: ChainRig) -> None:
    rig.below.flushes = ["done", "done", "done"]
    await rig.start()
    for number in range(3):
        assert rig.row.kept == list(range(1, number + 1))
        rig.below.end()
    assert await rig.ended() == 3
    assert rig.below.asked == [FIRST, "flush", SECOND, "flush", THIRD, "flush"]


async def test_a_flush_that_is_declined_is_done_by_the_task_and_ends_the_row(rig: ChainRig) -> None:
    rig.below.flushes = ["pending", "declined"]
    await rig.start()
    assert await rig.end_all() == 2
    assert rig.row.kept == [1, 2]
    assert rig.below.asked == [FIRST, "flush", SECOND, "flush", "flush()"]


async def test_a_write_that_ends_at_once_is_flushed_by_the_task_and_ends_the_row(rig: ChainRig) -> None:
    """So others have turns where nothing ever waits."""
    rig.below.writes = ["done"]
    await rig.start()
    assert await rig.ended() == 1
    assert rig.row.kept == [1]
    assert rig.below.asked == [FIRST, "flush()"]


async def test_so_does_one_in_the_middle_of_the_row(rig: ChainRig) -> None:
    rig.below.writes = ["pending", "done"]
    await rig.start()
    assert await rig.end_all() == 2
    assert rig.row.kept == [1, 2]
    assert rig.below.asked == [FIRST, "flush", SECOND, "flush()"]


async def test_a_write_that_is_declined_leaves_its_generation_to_others(rig: ChainRig) -> None:
    rig.below.writes = ["declined"]
    await rig.start()
    assert await rig.ended() == 0
    assert rig.row.kept == []
    assert rig.below.asked == [FIRST]
    assert rig.is_below(0)
    assert rig.row.moved_bytes == 0, "what is moved in another way would be counted twice"


async def test_a_write_that_is_declined_later_keeps_those_before_it(rig: ChainRig) -> None:
    rig.below.writes = ["pending", "declined"]
    await rig.start()
    assert await rig.end_all() == 1
    assert rig.row.kept == [1]
    assert rig.below.asked == [FIRST, "flush", SECOND]


# ---- several writes each ----


@of(TWICE)
async def test_a_generation_is_flushed_when_all_of_its_writes_have_ended(rig: ChainRig) -> None:
    await rig.start()
    assert rig.below.asked == [0, 2 * BLOCK, 4 * BLOCK]
    for at in (1, 1):
        rig.below.end(at=at)
        assert "flush" not in rig.below.asked
    rig.below.end()
    assert rig.below.asked[3:] == ["flush"]
    assert rig.row.kept == []
    rig.below.end()
    assert rig.below.asked[4:] == [BLOCK, 3 * BLOCK, 6 * BLOCK]
    assert await rig.end_all() == 2
    assert rig.is_below(2)
    assert rig.row.moved_bytes == 6 * BLOCK


@of(TWICE)
@pytest.mark.parametrize("answers", [["done", "pending", "pending"], ["pending", "done", "pending"]])
async def test_writes_that_end_at_once_count_as_the_others_do(rig: ChainRig, answers: Sequence[Answer]) -> None:
    rig.below.writes += answers
    await rig.start()
    rig.below.end()
    assert "flush" not in rig.below.asked
    rig.below.end()
    assert rig.below.asked[3:] == ["flush"]
    assert await rig.end_all() == 2


@of(TWICE)
@pytest.mark.parametrize("at", [1, 2])
async def test_one_write_that_is_declined_leaves_all_of_its_generation_to_others_when_the_rest_has_ended(
    rig: ChainRig, at: int
) -> None:
    rig.below.writes += [*times(at), "declined"]
    await rig.start()
    assert len(rig.below.asked) == at + 1, "what is not kept was begun all the same"
    for _ in range(at):
        assert not rig.over.is_set()
        rig.below.end()
        await wait_all_tasks_blocked()
    assert await rig.ended() == 0
    assert rig.row.kept == []
    assert "flush" not in rig.below.asked


# ---- which may follow ----


async def test_what_has_been_read_is_dropped_where_another_generation_follows(rig: ChainRig) -> None:
    await rig.start()
    del rig.row.generations[1]
    rig.below.end()
    rig.below.end()
    assert rig.below.asked[-1] == THIRD
    assert await rig.end_all() == 2
    assert rig.row.kept == [1, 3]


async def test_what_may_follow_only_now_is_read_then(rig: ChainRig) -> None:
    taken = rig.row.generations[1:]
    del rig.row.generations[1:]
    await rig.start()
    rig.row.generations += taken
    assert await rig.end_all() == 3


@pytest.mark.parametrize("flushing", [False, True])
async def test_nothing_follows_once_nothing_may(rig: ChainRig, flushing: bool) -> None:
    """As of a rate that is set, a pause, a stop: what is under way is kept, and no more begins."""
    await rig.start()
    if flushing:
        rig.below.end()
    del rig.row.generations[1:]
    assert await rig.end_all() == 1
    assert rig.below.asked == [FIRST, "flush"]


async def test_nothing_begins_where_nothing_may(rig: ChainRig) -> None:
    rig.row.generations.clear()
    await rig.start()
    assert await rig.ended() == 0
    assert not rig.below.asked


async def test_nothing_begins_that_cannot_be_read_at_once(rig: ChainRig) -> None:
    rig.bench.medium.cold = True
    await rig.start()
    assert await rig.ended() == 0
    assert not rig.below.asked
    assert rig.layer._log.failure is None


async def test_what_cannot_be_read_at_once_ends_the_row(rig: ChainRig) -> None:
    taken = rig.row.generations[1:]
    del rig.row.generations[1:]
    await rig.start()
    rig.bench.medium.cold = True
    rig.row.generations += taken
    assert await rig.end_all() == 1
    assert rig.below.asked == [FIRST, "flush"]


@of(
    Generations("a discard", [[discard(0)], writes({2: 2})]),
    Generations("zeroes", [[zeroes(0, 2)], writes({2: 2})]),
    Generations("a discard beside a write", [[discard(0), Change(2, 1)], writes({4: 2})]),
)
async def test_nothing_begins_that_is_more_than_writes(rig: ChainRig) -> None:
    await rig.start()
    assert await rig.ended() == 0
    assert not rig.below.asked


@of(
    Generations("a discard", [writes({0: 1}), [discard(2)]]),
    Generations("zeroes after a write", [writes({0: 1}), [Change(2, 2), zeroes(4)]]),
)
async def test_what_is_more_than_writes_ends_the_row(rig: ChainRig) -> None:
    await rig.start()
    assert await rig.end_all() == 1
    assert rig.below.asked == [FIRST, "flush"]


@of(Generations("a discard that is written over", [[discard(0, 2), Change(0, 1, blocks=2)], writes({4: 2})]))
async def test_what_comes_to_writes_alone_is_one_of_the_row(rig: ChainRig) -> None:
    await rig.start()
    assert await rig.end_all() == 2
    assert rig.is_below(2)


@of(TWICE)
@pytest.mark.parametrize(("depth", "count"), [(2, 0), (3, 2), (4, 2)])
async def test_no_more_writes_are_under_way_than_the_depth_allows(rig: ChainRig, count: int) -> None:
    await rig.start()
    assert await rig.end_all() == count
    assert len(rig.below.asked) == 4 * count
