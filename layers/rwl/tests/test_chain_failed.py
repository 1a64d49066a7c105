"""A row of generations that fails, is cancelled, or finds what cannot be retired, keeps nothing that is not below."""

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache_rwl.format import HEADER_SIZE, RING_OFFSET
from layers.rwl.tests.support.bench import Bench
from layers.rwl.tests.support.chained import FIRST, SECOND, THREE, TWICE, ChainRig, chained
from layers.rwl.tests.support.failing_medium import PATIENCE
from layers.rwl.tests.support.generations import Generations
from layers.rwl.tests.support.scripted import Answer, times
from layers.rwl.tests.support.switched import io_error


@pytest.fixture
def history() -> Generations:
    return THREE


@pytest.fixture
async def rig(bench: Bench, history: Generations) -> AsyncIterator[ChainRig]:
    async with chained(bench, history) as made:
        yield made


def of(*made: Generations) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("history", made, ids=lambda history: history.name)


# ---- failures ----


@of(TWICE)
@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("generation", [0, 1])
async def test_a_write_that_raises_is_told_when_the_others_have_ended(rig: ChainRig, at: int, generation: int) -> None:
    error = io_error()
    rig.below.writes += [*times(3 * generation + at), error]
    await rig.start()
    for _ in range(4 * generation):
        rig.below.end()
    assert len(rig.below.under_way) == at
    for _ in range(at):
        await wait_all_tasks_blocked()
        assert not rig.over.is_set()
        rig.below.end()
    assert await rig.ended() is error
    assert rig.row.kept == [1][:generation]
    assert rig.below.asked.count("flush") == generation


@of(TWICE)
@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_write_that_fails_later_is_told_when_the_others_have_ended_and_the_first_one_counts(
    rig: ChainRig, at: int
) -> None:
    error = io_error()
    await rig.start()
    rig.below.end(error, at)
    await wait_all_tasks_blocked()
    assert not rig.over.is_set()
    rig.below.end(io_error())
    await wait_all_tasks_blocked()
    assert not rig.over.is_set()
    rig.below.end()
    assert await rig.ended() is error
    assert rig.row.kept == []
    assert "flush" not in rig.below.asked
    assert not rig.below.under_way


@of(TWICE)
async def test_a_write_that_fails_beside_one_that_is_declined_is_told(rig: ChainRig) -> None:
    error = io_error()
    rig.below.writes = ["pending", "declined"]
    await rig.start()
    rig.below.end(error)
    assert await rig.ended() is error
    assert rig.row.kept == []


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("generation", [0, 1, 2])
async def test_a_flush_that_fails_keeps_nothing_of_its_generation(rig: ChainRig, generation: int, raises: bool) -> None:
    error = io_error()
    rig.below.flushes += times(generation)
    if raises:
        rig.below.flushes.append(error)
    await rig.start()
    for _ in range(2 * generation + 1):
        rig.below.end()
    if not raises:
        rig.below.end(error)
    assert await rig.ended() is error
    assert rig.row.kept == [1, 2][:generation]
    assert rig.below.asked.count("flush") == generation + 1


async def test_a_flush_by_the_task_that_fails_keeps_nothing(rig: ChainRig, monkeypatch: pytest.MonkeyPatch) -> None:
    error = io_error()

    async def fail() -> None:
        raise error

    monkeypatch.setattr(rig.below, "flush", fail)
    rig.below.writes = ["done"]
    await rig.start()
    assert await rig.ended() is error
    assert rig.row.kept == []


@pytest.mark.parametrize(
    ("method", "call"),
    [
        (method, call)
        for method, calls in {"follower": 4, "keep": 3, "moved": 2}.items()
        for call in range(1, calls + 1)
    ],
)
async def test_an_error_of_whoever_orders_the_row_is_told_and_nothing_waits_for_ever(
    rig: ChainRig, method: str, call: int
) -> None:
    trouble = RuntimeError("a mistake")
    rig.row.troubles[method, call] = trouble
    await rig.start()
    assert await rig.end_all() is trouble
    asked = len(rig.below.asked)
    while rig.below.under_way:
        rig.below.end()
    assert len(rig.below.asked) == asked, "it went on"


# ---- beside what is being retired ----


async def test_what_cannot_be_kept_yet_waits_below_and_nothing_follows_it_in_the_row(rig: ChainRig) -> None:
    rig.row.must_settle = True
    await rig.start()
    rig.below.end()
    rig.below.end()
    await wait_all_tasks_blocked()
    assert SECOND not in rig.below.asked
    assert rig.row.kept == []
    assert not rig.over.is_set()
    rig.row.settled.set()
    assert await rig.ended() == 1
    assert rig.row.kept == [1]
    assert rig.below.asked == [FIRST, "flush"], "one flush is enough"


async def test_what_began_beside_it_waits_only_where_it_has_not_ended_by_then(rig: ChainRig) -> None:
    rig.row.must_settle = True
    await rig.start()
    rig.below.end()
    rig.row.must_settle = False
    assert await rig.end_all() == 3


@pytest.mark.parametrize("answer", ["pending", "done"])
async def test_nothing_is_kept_behind_what_could_not_be_retired(rig: ChainRig, answer: Answer) -> None:
    rig.row.must_settle, rig.row.failure = True, io_error()
    rig.below.writes += times(1, answer)
    rig.row.settled.set()
    await rig.start()
    assert await rig.end_all() is rig.row.failure
    assert rig.row.kept == []
    assert SECOND not in rig.below.asked


async def test_a_cancellation_while_something_is_retired_keeps_nothing(rig: ChainRig) -> None:
    rig.row.must_settle = True
    await rig.start()
    rig.below.end()
    rig.below.end()
    await wait_all_tasks_blocked()
    rig.scope.cancel()
    with trio.fail_after(PATIENCE):
        await rig.over.wait()
    assert rig.outcome == []
    assert rig.row.kept == []


def damage(rig: ChainRig, number: int) -> None:
    """Change a byte of a generation's data in the pool."""
    ((_, _, _, position),) = rig.row.generations[number].records
    with rig.bench.pool.open("r+b", buffering=0) as pool:
        pool.seek(RING_OFFSET + position + HEADER_SIZE)
        byte = pool.read(1)
        pool.seek(-1, 1)
        pool.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_damaged_record_ends_the_row_before_its_generation_and_is_left_to_whoever_tells(
    rig: ChainRig, number: int
) -> None:
    damage(rig, number)
    await rig.start()
    assert await rig.end_all() == number
    assert rig.is_below(number)
    assert rig.layer._log.failure is None


# ---- the end of whoever waits ----


@of(TWICE)
@pytest.mark.parametrize("ends", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("fails", [False, True])
async def test_what_ends_after_a_cancellation_keeps_nothing_and_begins_nothing(
    rig: ChainRig, ends: int, fails: bool
) -> None:
    await rig.start()
    for _ in range(ends):
        rig.below.end()
    rig.scope.cancel()
    with trio.fail_after(PATIENCE):
        await rig.over.wait()
    assert rig.outcome == []
    kept, asked = list(rig.row.kept), list(rig.below.asked)
    while rig.below.under_way:
        rig.below.end(io_error() if fails else None)
    assert rig.row.kept == kept
    assert rig.below.asked == asked


async def test_a_cancelled_flush_of_the_task_keeps_nothing(rig: ChainRig) -> None:
    rig.below.writes = ["done"]
    rig.scope.cancel()
    await rig.start()
    with trio.fail_after(PATIENCE):
        await rig.over.wait()
    assert rig.row.kept == []
