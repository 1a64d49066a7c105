"""What is below and not yet retired: what may be kept together, and how one superblock retires all of it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache_rwl.failures import LogFailed
from fusecache_rwl.format import RecordType
from fusecache_rwl.layer import SECTOR, RwlLayer
from fusecache_rwl.ledger import Generation
from fusecache_rwl.retirement import Retirement, is_small
from layers.rwl.tests.support.bench import BLOCK, Bench
from layers.rwl.tests.support.failing_medium import PATIENCE, broken
from layers.rwl.tests.support.retiring import until
from layers.rwl.tests.support.switched import io_error

MOST = 32
DATA, DISCARD = RecordType.DATA, RecordType.DISCARD


def generation(*runs: tuple[int, int], kind: RecordType = DATA) -> Generation:
    """Return a generation that is in no log: offset and length of each record."""
    made = Generation(1)
    for offset, length in runs:
        made.add(kind, offset, length, 0, 0.0)
    return made


@pytest.mark.parametrize(
    ("what", "small"),
    [
        (generation((0, 512)), True),
        (generation(*((n * 512, 512) for n in range(64))), True),
        (generation(*((n * 512, 512) for n in range(65))), False),
        (generation((0, 64 << 10)), True),
        (generation((0, 64 << 10), (0, 512)), False),
        (generation((0, (64 << 10) + 512)), False),
        # It takes next to nothing in the log, and long below: once more after a crash, and while others are kept.
        (generation((0, 1 << 44), kind=DISCARD), False),
        (generation((0, (64 << 10) + 512), kind=RecordType.ZERO), False),
        (generation((0, 64 << 10), kind=DISCARD), True),
        (generation((0, 60 << 10), (0, 4 << 10)), True),
    ],
)
def test_a_small_generation_has_64_records_and_64_kib_at_the_most(what: Generation, small: bool) -> None:
    assert is_small(what) == small


@dataclass
class Rig:
    """A retirement over a real log, whose layer writes nothing back.

    Attributes:
        told: how many superblocks were durable when it was told.
    """

    bench: Bench
    layer: RwlLayer
    nursery: trio.Nursery
    told: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = self.layer._log
        self.retirement = Retirement(self.log, self.nursery, lambda: self.told.append(self.written_back))

    @property
    def written_back(self) -> int:
        return self.log.superblock.written_back

    async def put(self, *generations: Sequence[tuple[int, int]]) -> Sequence[Generation]:
        """Append generations: offset and length of each record; return them."""
        before = len(self.log.ledger._sealed)
        for each in generations:
            for offset, length in each:
                await self.layer.write(offset, memoryview(bytes(length)))
            self.log.seal()
        await self.layer.flush()
        return [self.at(before + number) for number in range(len(generations))]

    def at(self, number: int) -> Generation:
        found = self.log.ledger.oldest_sealed(number)
        assert found is not None
        return found

    async def keep(self, *generations: Sequence[tuple[int, int]]) -> None:
        for each in await self.put(*generations):
            assert self.retirement.has_room(each)
            self.retirement.keep(each)


@pytest.fixture
async def rig(bench: Bench) -> AsyncIterator[Rig]:
    async with bench.opened() as layer, trio.open_nursery() as nursery:
        yield Rig(bench, layer, nursery)
        bench.medium.let_go()


SMALL = [(0, BLOCK)]
LARGE = [(0, 65 << 10)]


async def test_whatever_comes_first_has_room(rig: Rig) -> None:
    for each in await rig.put(SMALL, LARGE):
        assert rig.retirement.has_room(each)


async def test_what_shares_no_byte_with_any_that_is_kept_has_room_also_where_it_touches_one(rig: Rig) -> None:
    await rig.keep([(0, BLOCK)], [(BLOCK, BLOCK), (8 * BLOCK, SECTOR)], [(4 * BLOCK, BLOCK)])
    assert len(rig.retirement) == 3
    for run in [(0, SECTOR), (2 * BLOCK - SECTOR, SECTOR), (4 * BLOCK, BLOCK), (2 * BLOCK, 3 * BLOCK), (0, 16 * BLOCK)]:
        assert not rig.retirement.has_room(generation(run))
        assert not rig.retirement.has_room(generation((6 * BLOCK, BLOCK), run, (7 * BLOCK, SECTOR)))
        assert not rig.retirement.has_room(generation(run, kind=DISCARD))
    for run in [(2 * BLOCK, 2 * BLOCK), (5 * BLOCK, 3 * BLOCK), (8 * BLOCK + SECTOR, BLOCK)]:
        assert rig.retirement.has_room(generation(run))
        assert rig.retirement.has_room(generation(run, kind=DISCARD))


async def test_a_large_generation_is_kept_alone(rig: Rig) -> None:
    await rig.keep(SMALL)
    assert not rig.retirement.has_room(generation((1 << 19, 65 << 10)))
    await rig.retirement.retire_kept()
    await rig.keep(LARGE)
    assert not rig.retirement.has_room(generation((1 << 19, SECTOR)))
    await rig.retirement.retire_kept()
    assert rig.retirement.has_room(generation((0, SECTOR)))
    await rig.keep(SMALL)
    assert rig.retirement.has_room(generation((1 << 19, SECTOR))), "what was large counts no more"


async def test_one_superblock_retires_32_at_the_most(rig: Rig) -> None:
    await rig.keep(*([(number * SECTOR, SECTOR)] for number in range(MOST - 1)))
    assert rig.retirement.has_room(generation((1 << 19, SECTOR)))
    await rig.keep([((MOST - 1) * SECTOR, SECTOR)])
    assert not rig.retirement.has_room(generation((1 << 19, SECTOR)))
    await rig.retirement.retire_kept()
    assert rig.told == [MOST]
    assert rig.retirement.has_room(generation((0, SECTOR)))


async def test_one_superblock_retires_all_that_are_kept_and_nothing_before_it_is_durable(rig: Rig) -> None:
    await rig.keep([(0, BLOCK)], [(BLOCK, BLOCK)], [(2 * BLOCK, BLOCK)])
    (behind,) = await rig.put(SMALL)
    superblock, used = rig.log.superblock, rig.log.space.dirty_used
    rig.bench.medium.hold("superblock")
    rig.retirement.begin()
    await rig.bench.medium.wait_held()
    await wait_all_tasks_blocked()
    assert len(rig.retirement) == 3
    assert rig.log.ledger.records == 4
    assert not rig.told
    assert rig.log.space.dirty_used == used
    assert rig.retirement.is_under_way
    assert rig.retirement.has_room(behind), "what it meets is retired before it can be kept"
    rig.bench.medium.let_go()
    await rig.retirement.settle()
    assert not rig.retirement.is_under_way
    assert len(rig.retirement) == 0
    assert rig.told == [3]
    assert rig.log.superblock.sequence == superblock.sequence + 1
    assert rig.at(0) is behind
    assert rig.log.ledger.records == 1


async def test_whoever_retires_what_is_kept_waits_for_what_has_begun_and_begins_it_once(rig: Rig) -> None:
    await rig.retirement.retire_kept()
    assert not rig.told
    await rig.keep(SMALL)
    rig.bench.medium.hold("superblock")
    rig.retirement.begin()
    over = trio.Event()

    async def retire() -> None:
        await rig.retirement.retire_kept()
        over.set()

    rig.nursery.start_soon(retire)
    await rig.bench.medium.wait_held()
    await wait_all_tasks_blocked()
    assert len(rig.bench.medium.held) == 1
    assert not over.is_set()
    rig.bench.medium.let_go()
    await over.wait()
    assert rig.told == [1]


async def test_nothing_is_kept_while_something_is_being_retired_nor_is_that_begun_twice_or_for_nothing(
    rig: Rig,
) -> None:
    with pytest.raises(AssertionError):
        rig.retirement.begin()
    await rig.keep(SMALL)
    (more,) = await rig.put([(BLOCK, BLOCK)])
    rig.bench.medium.hold("superblock")
    rig.retirement.begin()
    with pytest.raises(AssertionError):
        rig.retirement.begin()
    with pytest.raises(AssertionError):
        rig.retirement.keep(more)
    rig.bench.medium.let_go()
    await rig.retirement.settle()
    rig.retirement.keep(more)
    await rig.retirement.retire_kept()
    assert rig.told == [1, 2]


@pytest.mark.parametrize("torn", [False, True])
async def test_a_superblock_that_fails_leaves_all_that_were_kept_dirty_and_is_told_once(rig: Rig, torn: bool) -> None:
    await rig.keep([(0, BLOCK)], [(BLOCK, BLOCK)])
    # So that the layer, which saves what a failed log has, does not get in the way.
    rig.layer.moving._stopped = True
    broken(rig.bench, "superblock", torn=torn)
    rig.retirement.begin()
    await until(lambda: not len(rig.retirement))
    assert rig.retirement.is_under_way, "what comes next would be kept out of order"
    with pytest.raises(AssertionError):
        rig.retirement.keep(rig.at(0))
    with pytest.raises(LogFailed):
        await rig.retirement.settle()
    assert not rig.retirement.is_under_way
    assert len(rig.retirement) == 0
    assert not rig.told
    assert rig.log.ledger.records == 2
    assert rig.written_back == 0
    await rig.retirement.settle()
    await rig.retirement.retire_kept()
    assert rig.retirement.has_room(rig.at(0)), "it still meets what is kept no more"


async def test_who_is_in_a_hurry_has_what_is_kept_retired_at_once(rig: Rig) -> None:
    rig.retirement.hurry()
    assert not rig.retirement.is_under_way
    await rig.keep([(0, BLOCK)], [(BLOCK, BLOCK)])
    rig.bench.medium.hold("superblock")
    rig.retirement.hurry()
    assert rig.retirement.is_under_way
    rig.retirement.hurry()
    await rig.bench.medium.wait_held()
    await wait_all_tasks_blocked()
    assert len(rig.bench.medium.held) == 1
    rig.bench.medium.let_go()
    await rig.retirement.settle()
    assert rig.told == [2]


async def test_the_bytes_of_what_is_kept_are_those_that_will_be_free(rig: Rig) -> None:
    assert rig.retirement.kept_bytes == 0
    await rig.put([(0, BLOCK)], [(BLOCK, BLOCK), (9 * BLOCK, SECTOR)], [(2 * BLOCK, BLOCK)])
    for number in range(2):
        rig.retirement.keep(rig.at(number))
    used, kept = rig.log.space.dirty_used, rig.retirement.kept_bytes
    assert 2 * BLOCK + SECTOR < kept < used - BLOCK
    await rig.retirement.retire_kept()
    assert rig.log.space.dirty_used == used - kept
    assert rig.retirement.kept_bytes == 0


async def test_what_is_kept_in_a_log_that_has_failed_is_retired_in_memory(rig: Rig) -> None:
    await rig.keep([(0, BLOCK)], [(BLOCK, BLOCK)])
    rig.layer.moving._stopped = True
    rig.log.fail(OSError("gone"))
    await rig.retirement.retire_kept()
    assert rig.told == [0]
    assert rig.log.ledger.records == 0
    assert rig.log.space.tail != rig.log.superblock.tail_position


async def test_a_cancelled_wait_ends_when_what_is_being_retired_is(rig: Rig) -> None:
    await rig.keep(SMALL)
    rig.bench.medium.hold("superblock")
    rig.retirement.begin()
    over = trio.Event()
    scope = trio.CancelScope()

    async def settle() -> None:
        with scope:
            await rig.retirement.settle()
        over.set()

    rig.nursery.start_soon(settle)
    await rig.bench.medium.wait_held()
    scope.cancel()
    await wait_all_tasks_blocked()
    assert not over.is_set()
    rig.bench.medium.let_go()
    await over.wait()
    assert rig.told == [1]


async def test_what_is_abandoned_stays_dirty_and_is_met_by_nothing(rig: Rig) -> None:
    await rig.keep([(0, BLOCK)], [(BLOCK, BLOCK)])
    await rig.retirement.abandon()
    assert len(rig.retirement) == 0
    assert not rig.told
    assert rig.written_back == 0
    assert rig.log.ledger.records == 2
    assert rig.retirement.has_room(rig.at(0))
    for number in range(2):
        rig.retirement.keep(rig.at(number))
    await rig.retirement.retire_kept()
    assert rig.told == [2]


@pytest.mark.parametrize("fails", [False, True])
async def test_what_is_being_retired_is_waited_for_by_who_abandons_it_and_no_failure_is_told(
    rig: Rig, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.keep(SMALL)
    rig.layer.moving._stopped = True
    rig.bench.medium.hold("superblock")
    rig.retirement.begin()
    over = trio.Event()

    async def abandon() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            await rig.retirement.abandon()
        over.set()

    rig.nursery.start_soon(abandon)
    await rig.bench.medium.wait_held()
    await wait_all_tasks_blocked()
    assert not over.is_set()
    if fails:
        monkeypatch.setattr(rig.bench.medium._inner, "write_superblock", lambda data, at, done: done(io_error()))
    rig.bench.medium.let_go()
    with trio.fail_after(PATIENCE):
        await over.wait()
    assert len(rig.retirement) == 0
    assert rig.told == ([] if fails else [1])
    await rig.retirement.settle()
