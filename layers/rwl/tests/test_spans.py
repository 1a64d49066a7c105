"""Spans are a set of bytes: they say whether records change one of these."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusecache_rwl.format import RecordType
from fusecache_rwl.ledger import DirtyRecord
from fusecache_rwl.spans import Spans
from layers.rwl.tests.support.effort import effort

DATA, DISCARD = int(RecordType.DATA), int(RecordType.DISCARD)
SPACE = 24
"""Sectors, so few that runs meet, touch and swallow each other all the time."""


def record(offset: int, length: int, kind: int = DATA) -> DirtyRecord:
    return kind, offset, length, 0


def spans(*runs: tuple[int, int]) -> Spans:
    """Return the bytes of *runs*, each an offset and a length."""
    made = Spans()
    made.add(record(*run) for run in runs)
    return made


def runs(found: Spans) -> list[tuple[int, int]]:
    return list(zip(found._starts, found._ends, strict=True))


ranges = st.tuples(st.integers(0, SPACE - 1), st.integers(1, SPACE // 2))
generations = st.lists(st.lists(ranges, min_size=1, max_size=4), max_size=12)


@effort(300)
@given(generations)
def test_spans_are_the_set_of_what_was_added(drawn: list[list[tuple[int, int]]]) -> None:
    made, model = Spans(), set[int]()
    for generation in drawn:
        changed = {byte for offset, length in generation for byte in range(offset, offset + length)}
        assert made.meet(record(*run) for run in generation) == bool(model & changed)
        made.add(record(*run) for run in generation)
        model |= changed
    found = runs(made)
    assert {byte for start, end in found for byte in range(start, end)} == model
    assert all(start < end for start, end in found)
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(found)), "runs touch"
    for byte in range(SPACE + SPACE // 2 + 1):
        assert made.meet([record(byte, 1)]) == (byte in model)


def test_nothing_meets_no_bytes() -> None:
    assert not Spans().meet([record(0, 1 << 50)])
    assert not spans((0, 512)).meet([])


@pytest.mark.parametrize(
    ("run", "meets"),
    [(run, False) for run in ((0, 8), (16, 8), (32, 8), (32, 99))]
    + [(run, True) for run in ((0, 9), (8, 8), (10, 1), (15, 1), (15, 9), (16, 9), (31, 1), (31, 9), (0, 99))],
)
def test_what_touches_does_not_meet_and_what_shares_a_byte_does(run: tuple[int, int], meets: bool) -> None:
    assert spans((8, 8), (24, 8)).meet([record(*run)]) == meets


def test_one_of_several_records_is_enough_wherever_it_stands() -> None:
    made = spans((8, 8), (24, 8))
    misses, hit = [record(0, 8), record(16, 8), record(40, 8)], record(31, 1)
    assert not made.meet(misses)
    for at in range(4):
        assert made.meet([*misses[:at], hit, *misses[at:]])


def test_neighbours_become_one_run_and_what_lies_between_two_joins_them() -> None:
    made = spans((8, 8), (24, 8))
    assert runs(made) == [(8, 16), (24, 32)]
    made.add([record(16, 4)])
    assert runs(made) == [(8, 20), (24, 32)]
    made.add([record(20, 4)])
    assert runs(made) == [(8, 32)]
    made.add([record(0, 8), record(32, 8)])
    assert runs(made) == [(0, 40)]
    made.add([record(2, 3)])
    assert runs(made) == [(0, 40)]


def test_a_discard_of_a_huge_image_swallows_every_run_and_meets_them_all() -> None:
    made = spans(*((number << 20, 4096) for number in range(1000)))
    everything = [record(0, 1 << 60, DISCARD)]
    assert made.meet(everything)
    made.add(everything)
    assert runs(made) == [(0, 1 << 60)]
    assert made.meet([record((1 << 60) - 1, 1)])
    assert not made.meet([record(1 << 60, 512)])
