"""What may go below in a row, and what the way down of one log's generations is told and tells."""

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import Span
from fusecache.testing import Fault
from fusecache_rwl.descent import Descent
from fusecache_rwl.failures import LogFailed
from fusecache_rwl.layer import RwlLayer
from fusecache_rwl.ledger import Generation, Group
from fusecache_rwl.options import RwlOptions
from layers.rwl.tests.support.bench import BLOCK, Bench
from layers.rwl.tests.support.failing_medium import broken
from layers.rwl.tests.support.generations import ROWS
from layers.rwl.tests.support.retiring import filled
from layers.rwl.tests.support.scripted import ScriptedVolume
from layers.rwl.tests.support.switched import io_error


@dataclass
class Orders:
    """What whoever orders write-back says; goes on with everything, unless a test says otherwise.

    Attributes:
        awaited: the generation that somebody waits for; 0 is any.
    """

    stopped: bool = False
    paced: bool = False
    goes: bool = True
    awaited: float = math.inf

    def goes_on(self, generation: Generation | None) -> bool:
        return self.goes

    def awaits(self, number: int) -> bool:
        return self.awaited <= number

    def moved(self, length: int) -> None:
        pass

    async def pace(self, length: int) -> None:
        pass


@dataclass
class Rig:
    """A descent over the generations in a real log, whose layer writes nothing back."""

    layer: RwlLayer
    orders: Orders
    descent: Descent


@pytest.fixture
async def rig(bench: Bench) -> AsyncIterator[Rig]:
    async with filled(bench, ROWS) as layer, trio.open_nursery() as nursery:
        layer.moving._stopped = True
        options = RwlOptions.model_validate({"path": "/nowhere", "size": "16MiB"})
        orders = Orders()
        groups = layer.moving._groups
        yield Rig(layer, orders, Descent(layer._log, bench.faults, options, groups, orders, nursery, lambda: None))


def numbers(rig: Rig) -> list[int | None]:
    """Return which generation may go next, and which may if one more is kept."""
    found = (rig.descent.follower(ahead) for ahead in range(2))
    return [None if generation is None else generation.number for generation in found]


def keep(rig: Rig, count: int) -> None:
    for _ in range(count):
        generation = rig.layer._log.ledger.oldest_sealed(len(rig.descent._retirement))
        assert generation is not None
        rig.descent.keep(generation)


async def test_the_next_generation_that_meets_none_that_is_kept_may_go_in_a_row(rig: Rig) -> None:
    assert numbers(rig) == [1, 2]
    keep(rig, 1)
    assert numbers(rig) == [2, 3]
    keep(rig, 1)
    # What is ahead, and not yet kept, may be met.
    assert numbers(rig) == [3, None]
    keep(rig, 1)
    # The fourth meets, and the fifth does, too.
    assert numbers(rig) == [None, None]


def tail_moved(rig: Rig) -> None:
    """As after a failed log has come back, and before its first superblock."""
    generation = rig.layer._log.ledger.oldest_sealed()
    assert generation is not None
    rig.layer._log.space.retire(generation.end_position)


@pytest.mark.parametrize(
    "change",
    [
        lambda rig: setattr(rig.orders, "stopped", True),
        lambda rig: setattr(rig.orders, "paced", True),
        lambda rig: setattr(rig.orders, "goes", False),
        lambda rig: setattr(rig.layer._log.ledger, "group", Group(1, 2)),
        lambda rig: rig.layer._log.fail(OSError("gone")),
        lambda rig: setattr(rig.layer._log, "durable_lsn", 0),
        lambda rig: setattr(rig.descent, "_strict", False),
        tail_moved,
    ],
    ids=["stopped", "paced", "far enough", "a group", "failed", "not durable", "grouped", "ahead"],
)
async def test_nothing_goes_in_a_row_where(rig: Rig, change: Callable[[Rig], object]) -> None:
    assert numbers(rig) == [1, 2]
    change(rig)
    assert numbers(rig) == [None, None]


async def test_a_generation_goes_in_a_row_only_when_all_of_it_is_durable_in_the_log(rig: Rig) -> None:
    log = rig.layer._log
    second = log.ledger.oldest_sealed(1)
    assert second is not None
    log.durable_lsn = second.end_lsn - 1
    assert numbers(rig) == [1, 2]
    log.durable_lsn -= 1
    assert numbers(rig) == [1, None]


async def test_what_somebody_waits_for_is_retired_as_soon_as_it_is_below_and_what_is_kept_with_it(
    bench: Bench, rig: Rig
) -> None:
    bench.medium.hold("superblock")
    rig.orders.awaited = 2
    keep(rig, 1)
    assert not rig.descent.must_settle
    keep(rig, 1)
    assert rig.descent.must_settle
    # The next one goes below meanwhile, whatever it meets.
    assert numbers(rig) == [3, 4]
    await bench.medium.wait_held()
    bench.medium.let_go()
    await rig.descent.settle()
    assert rig.layer._log.superblock.written_back == 2


async def test_whoever_begins_to_wait_has_what_is_kept_retired_at_once(bench: Bench, rig: Rig) -> None:
    keep(rig, 2)
    assert rig.descent.kept_bytes
    rig.descent.hurry()
    assert rig.descent.must_settle
    await rig.descent.settle()
    assert rig.layer._log.superblock.written_back == 2
    assert not rig.descent.kept_bytes


async def test_a_large_generation_does_not_go_in_a_row(bench: Bench, rig: Rig) -> None:
    await rig.layer.write(1 << 19, memoryview(bytes(65 << 10)))
    rig.layer._log.seal()
    await rig.layer.flush()
    ledger = rig.layer._log.ledger
    assert rig.descent.follower(ROWS.last - 1) is ledger.oldest_sealed(ROWS.last - 1)
    assert rig.descent.follower(ROWS.last) is None


async def test_the_way_down_ends_where_the_orders_say_so_and_nothing_stays_kept(bench: Bench, rig: Rig) -> None:
    class Few(Orders):
        def goes_on(self, generation: Generation | None) -> bool:
            return generation is not None and generation.number <= 2

    rig.descent._orders = Few()
    await rig.descent.carry_on()
    assert len(rig.descent._retirement) == 0
    assert rig.layer._log.superblock.written_back == 2
    assert bench.below(0, ROWS.size) == ROWS.states[2]


async def test_a_failure_below_is_told_when_what_is_kept_is_retired(bench: Bench, rig: Rig) -> None:
    bench.faults.inject(Fault({"write"}, OSError("no more"), Span(4 * BLOCK, 5 * BLOCK)))
    with pytest.raises(OSError, match="no more"):
        await rig.descent.carry_on()
    assert len(rig.descent._retirement) == 0
    assert rig.layer._log.superblock.written_back == 2


async def test_of_two_failures_the_first_is_told(bench: Bench, rig: Rig) -> None:
    """That below, not that of the superblock of what was kept."""
    bench.faults.inject(Fault({"write"}, OSError("no more"), Span(4 * BLOCK, 5 * BLOCK)))
    broken(bench, "superblock")
    with pytest.raises(OSError, match="no more"):
        await rig.descent.carry_on()
    assert rig.layer._log.failure is not None
    assert len(rig.descent._retirement) == 0
    assert rig.layer._log.ledger.oldest_sealed() is not None


async def test_a_superblock_alone_that_fails_is_told(bench: Bench, rig: Rig) -> None:
    broken(bench, "superblock")
    with pytest.raises(LogFailed):
        await rig.descent.carry_on()
    assert len(rig.descent._retirement) == 0
    assert bench.below(0, ROWS.size) != ROWS.states[-1]


async def test_a_flush_below_that_fails_later_is_told_and_keeps_nothing(bench: Bench, rig: Rig) -> None:
    """Of a generation that did not go in a row."""
    below, error, told = ScriptedVolume(), io_error(), []
    below.writes += ["declined", "done"]
    bench.faults.below = below

    async def carry_on() -> None:
        try:
            await rig.descent.carry_on()
        except OSError as failure:
            told.append(failure)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry_on)
        await wait_all_tasks_blocked()
        assert below.asked == [0, 0, "flush"]
        below.end(error)
    assert told == [error]
    assert rig.layer._log.superblock.written_back == 0


async def test_nothing_is_begun_nor_sealed_where_write_back_is_stopped(bench: Bench, rig: Rig) -> None:
    rig.orders.stopped = True
    await rig.descent.carry_on()
    assert bench.below(0, ROWS.size) == ROWS.states[0]
    rig.orders.stopped = False
    await rig.descent.carry_on()
    await rig.layer.write(0, memoryview(bytes(BLOCK)))
    rig.orders.stopped = True
    await rig.descent.carry_on()
    assert rig.layer._log.ledger.open_records == 1
