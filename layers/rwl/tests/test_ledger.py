"""The ledger knows what is dirty, by generation, the same after a recovery as before it."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecache_rwl.format import HEADER_SIZE, RecordType, record_size
from fusecache_rwl.ledger import Generation, Group, Ledger

DATA, DISCARD, ZERO = RecordType.DATA, RecordType.DISCARD, RecordType.ZERO
K = 1024


class Log:
    """Appends to a ledger as a log does, and remembers what recovery would find in it."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.position, self.lsn, self.now = 0, 1, 100.0
        self.records: list[tuple[int, tuple[int, int, int, int], int]] = []

    def write(self, kind: RecordType = DATA, offset: int = 0, length: int = 4 * K) -> None:
        what = (int(kind), offset, length, self.position)
        self.records.append((self.ledger.open_generation, what, self.lsn))
        self.now += 1
        self.ledger.add(*what, self.now)
        self.position += record_size(length) if kind is DATA else HEADER_SIZE
        self.lsn += 1

    def seal(self) -> bool:
        return self.ledger.seal(self.position, self.lsn)

    def recovered(self) -> Ledger:
        """Return a ledger made from what is not yet written back, as a recovery makes it."""
        oldest = self.ledger.oldest_sealed()
        ledger = Ledger(oldest.number if oldest else self.ledger.open_generation)
        for generation, what, lsn in self.records:
            if generation < ledger.open_generation:
                continue
            if generation > ledger.open_generation:
                assert ledger.seal(what[3], lsn)
            ledger.add(*what, self.now)
        return ledger


def figures(ledger: Ledger) -> tuple[int, int, list[tuple[int, int, int, int]]]:
    held = [
        (generation.number, generation.dirty_bytes, generation.end_position, generation.end_lsn)
        for generation in ledger._sealed
    ]
    return ledger.dirty_bytes, ledger.records, held


steps = st.lists(
    st.tuples(st.just("write"), st.sampled_from([DATA, DISCARD, ZERO]), st.integers(0, 9), st.integers(1, 9))
    | st.sampled_from([("seal",), ("retire",), ("clear",)]),
    max_size=60,
)


@settings(deadline=None, max_examples=300)
@given(steps)
def test_the_ledger_is_what_was_appended_and_not_written_back(steps: list[tuple[object, ...]]) -> None:
    ledger = Ledger()
    log = Log(ledger)
    model: list[list[tuple[int, int, int, int]]] = [[]]
    for step in steps:
        match step:
            case "write", RecordType() as kind, int(offset), int(length):
                log.write(kind, offset * 512, length * 512)
                model[-1].append(log.records[-1][1])
            case ("seal",):
                assert log.seal() is bool(model[-1])
                if model[-1]:
                    model.append([])
            case ("retire",):
                oldest = ledger.oldest_sealed()
                assert (oldest is None) is (len(model) == 1)
                if oldest is not None:
                    assert list(oldest.records) == model.pop(0)
                    ledger.written_back(oldest)
            case _:
                ledger.clear()
                log.records.clear()
                model = [[]]
        held = sum(length if kind == DATA else HEADER_SIZE for one in model for kind, _, length, _ in one)
        assert ledger.dirty_bytes == held
        assert ledger.records == sum(map(len, model))
        assert (ledger.records == 0) is (ledger.dirty_bytes == 0) is (ledger.oldest_time is None)
        assert [list(one.records) for one in ledger._sealed] == model[:-1]
    recovered = log.recovered()
    if ledger.open_generation > recovered.open_generation:
        assert recovered.seal(log.position, log.lsn)
    assert figures(recovered) == figures(ledger)


def test_an_empty_generation_is_never_sealed() -> None:
    ledger = Ledger()
    assert not ledger.seal(0, 1)
    assert (ledger.open_generation, ledger.oldest_sealed()) == (1, None)


def test_a_sealed_generation_ends_where_the_next_begins() -> None:
    log = Log(Ledger())
    log.write()
    assert log.seal()
    sealed = log.ledger.oldest_sealed()
    assert sealed is not None
    assert (sealed.number, sealed.end_position, sealed.end_lsn) == (1, record_size(4 * K), 2)
    assert log.ledger.open_generation == 2


def test_a_discarded_image_is_dirty_and_holds_next_to_nothing() -> None:
    log = Log(Ledger())
    log.write(DISCARD, 0, 16 << 40)
    assert log.ledger.dirty_bytes == HEADER_SIZE


def test_overwrites_count_as_they_stand_in_the_log() -> None:
    log = Log(Ledger())
    log.write()
    log.write()
    assert log.ledger.dirty_bytes == 8 * K


def test_the_oldest_time_goes_with_the_oldest_generation() -> None:
    log = Log(Ledger())
    log.write()
    log.write()
    log.seal()
    log.write()
    assert log.ledger.oldest_time == 101.0
    oldest = log.ledger.oldest_sealed()
    assert oldest is not None
    log.ledger.written_back(oldest)
    assert log.ledger.oldest_time == 103.0


def test_only_the_oldest_generation_is_written_back() -> None:
    log = Log(Ledger())
    for _ in range(2):
        log.write()
        log.seal()
    first, second = log.ledger._sealed
    before = figures(log.ledger)
    for wrong in (second, Generation(1)):
        with pytest.raises(ValueError, match="the oldest that is sealed"):
            log.ledger.written_back(wrong)
    assert figures(log.ledger) == before
    log.ledger.written_back(first)
    log.ledger.written_back(second)
    assert log.ledger.dirty_bytes == log.ledger.records == 0


def test_a_number_is_never_used_for_two_generations() -> None:
    log = Log(Ledger())
    log.write()
    log.seal()
    log.write()
    log.ledger.clear()
    assert (log.ledger.open_generation, log.ledger.records, log.ledger.dirty_bytes) == (2, 0, 0)
    log.ledger.skip_to(5)
    log.write()
    for number in (4, 5, 6):
        with pytest.raises(ValueError, match="generation 5 of 1 records"):
            log.ledger.skip_to(number)
    log.seal()
    with pytest.raises(ValueError, match="generation 6 of 0 records"):
        log.ledger.skip_to(5)


def ledger_of(*sizes: int) -> Ledger:
    """Return a ledger of sealed generations, each with so many records of 4 KiB, and an open one with one."""
    log = Log(Ledger())
    for size in sizes:
        for _ in range(size):
            log.write()
        log.seal()
    log.write()
    return log.ledger


def numbers(generations: Sequence[Generation]) -> list[int]:
    return [generation.number for generation in generations]


def test_what_is_oldest_is_taken_up_to_a_bound_and_the_first_of_it_in_any_case() -> None:
    ledger = ledger_of(1, 2, 5, 1)
    assert numbers(ledger.oldest_within(12 * K, 100)) == [1, 2]
    assert numbers(ledger.oldest_within(32 * K - 1, 100)) == [1, 2]
    assert numbers(ledger.oldest_within(32 * K, 100)) == [1, 2, 3]
    assert numbers(ledger.oldest_within(1 << 30, 8)) == [1, 2, 3]
    assert numbers(ledger.oldest_within(1 << 30, 100)) == [1, 2, 3, 4]
    assert numbers(ledger.oldest_within(0, 0)) == [1]
    assert numbers(Ledger().oldest_within(1 << 30, 100)) == []
    assert numbers(ledger.sealed_until(3)) == [1, 2, 3]
    assert numbers(ledger.sealed_until(0)) == []


def test_a_group_is_in_flight_until_its_last_generation_is_written_back() -> None:
    ledger = ledger_of(1, 1, 1)
    ledger.group = Group(1, 2)
    first, second, _ = ledger.oldest_within(1 << 30, 100)
    ledger.written_back(first)
    assert ledger.group == Group(1, 2)
    ledger.written_back(second)
    assert ledger.group is None
    ledger.group = Group(3, 3)
    ledger.clear()
    assert ledger.group is None
