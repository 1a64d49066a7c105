"""The moves of a generation, in any order, are what its records are one after the other."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecache_rwl.format import HEADER_SIZE, RecordType
from fusecache_rwl.ledger import DirtyRecord
from fusecache_rwl.merge import SLICE, Move, plan, plan_slices

DATA, DISCARD, ZERO = RecordType.DATA, RecordType.DISCARD, RecordType.ZERO
K = 1024
M = 1 << 20
IMAGE = 64
RUN = 1 << 20


def record(number: int, kind: RecordType, offset: int, length: int) -> DirtyRecord:
    """Return a record whose header lies at a position that tells its number."""
    return kind, offset, length, number * RUN


def after(records: list[DirtyRecord]) -> dict[int, object]:
    """Return what each touched byte of the image then is: a log position, DISCARD or ZERO."""
    image: dict[int, object] = {}
    for kind, offset, length, position in records:
        for at in range(offset, offset + length):
            image[at] = position + HEADER_SIZE + at - offset if kind == DATA else RecordType(kind)
    return image


def applied(moves: list[Move]) -> dict[int, object]:
    image: dict[int, object] = {}
    for kind, offset, length, pieces in moves:
        held: list[object] = (
            [where + k for run, where in pieces for k in range(run)] if kind is DATA else [kind] * length
        )
        assert len(held) == length
        for at, what in enumerate(held, offset):
            assert at not in image, "moves overlap"
            image[at] = what
    return image


ranges = st.tuples(st.sampled_from([DATA, DISCARD, ZERO]), st.integers(0, IMAGE - 1), st.integers(1, IMAGE)).map(
    lambda drawn: (drawn[0], drawn[1], min(drawn[2], IMAGE - drawn[1]))
)


@settings(deadline=None, max_examples=500)
@given(st.lists(ranges, max_size=40), st.sampled_from([1, 2, 8, 32, 256]), st.sampled_from([1, 4]))
def test_moves_are_the_records(drawn: list[tuple[RecordType, int, int]], preferred: int, block: int) -> None:
    records = [record(number, *what) for number, what in enumerate(drawn)]
    moves = plan(records, preferred, block)
    assert applied(moves) == after(records)
    window = max(preferred, block)
    assert [move.offset for move in moves] == sorted(move.offset for move in moves)
    for move in moves:
        assert isinstance(move.kind, RecordType)
        if move.kind is DATA:
            assert move.offset // window == (move.offset + move.length - 1) // window, "a multiple is crossed"
            assert all(a + n != b for (n, a), (_, b) in itertools.pairwise(move.pieces))
        else:
            assert move.pieces == ()
    for first, second in itertools.pairwise(moves):
        touching = first.offset + first.length == second.offset and first.kind is second.kind
        assert not touching or (first.kind is DATA and second.offset % window == 0), "neighbours were not joined"


def test_neighbours_join_up_to_the_preferred_size() -> None:
    records = [record(number, DATA, number * 4 * K, 4 * K) for number in (3, 1, 0, 2, 4)]
    moves = plan(records, 16 * K)
    assert [(move.offset, move.length) for move in moves] == [(0, 16 * K), (16 * K, 4 * K)]
    assert moves[0].pieces == tuple((4 * K, number * RUN + HEADER_SIZE) for number in range(4))


def test_a_long_record_is_cut_where_the_level_below_would_cut_it() -> None:
    (first, second) = plan([record(1, DATA, 3 * M, 2 * M)], 4 * M)
    assert first == Move(DATA, 3 * M, M, ((M, RUN + HEADER_SIZE),))
    assert second == Move(DATA, 4 * M, M, ((M, RUN + HEADER_SIZE + M),))


def test_an_overwritten_record_is_not_moved() -> None:
    old = [record(number, DATA, 4 * K * number, 4 * K) for number in range(4)]
    assert plan([*old, record(9, DATA, 0, 16 * K)], M) == [Move(DATA, 0, 16 * K, ((16 * K, 9 * RUN + HEADER_SIZE),))]
    assert plan([*old, record(9, DISCARD, 0, 16 * K)], M) == [Move(DISCARD, 0, 16 * K)]


def test_an_overwrite_within_a_record_leaves_both_its_ends() -> None:
    (move,) = plan([record(1, DATA, 0, 16 * K), record(2, DATA, 4 * K, 4 * K)], M)
    assert move.pieces == (
        (4 * K, RUN + HEADER_SIZE),
        (4 * K, 2 * RUN + HEADER_SIZE),
        (8 * K, RUN + HEADER_SIZE + 8 * K),
    )


def test_a_discard_of_everything_stays_one_move() -> None:
    image = 16 << 40
    assert plan([record(1, DATA, M, 4 * K), record(2, DISCARD, 0, image)], 4 * M) == [Move(DISCARD, 0, image)]
    moves = plan([record(1, DISCARD, 0, image), record(2, DATA, M, 4 * K)], 4 * M)
    assert [(move.kind, move.offset) for move in moves] == [(DISCARD, 0), (DATA, M), (DISCARD, M + 4 * K)]


def test_discards_and_zeroes_stay_apart() -> None:
    records = [record(1, DISCARD, 0, M), record(2, ZERO, M, M), record(3, ZERO, 2 * M, M)]
    assert plan(records, M) == [Move(DISCARD, 0, M), Move(ZERO, M, 2 * M)]


def test_nothing_is_no_move() -> None:
    assert plan([], M) == []


@pytest.mark.parametrize("blocks", [1, 16384, 1 << 28])
def test_a_long_plan_lets_others_run(blocks: int) -> None:
    rng = random.Random(blocks)
    records = [record(number, DATA, rng.randrange(blocks) * 4096, 4096) for number in range(10 * SLICE)]
    steps = list(plan_slices(records, M))
    assert steps.count(None) >= 2 * 10
    assert [move for move in steps if move is not None] == plan(records, M)


def test_records_that_end_at_once_let_others_run_too() -> None:
    older = [record(number, DATA, 10 * SLICE - number, number + 2) for number in range(10 * SLICE)]
    records = [*older, record(10 * SLICE, DATA, 0, 10 * SLICE + 1)]
    steps = list(plan_slices(records, 1 << 40, 1))
    assert steps.count(None) >= 2 * 10
    (move,) = [move for move in steps if move is not None]
    assert move.pieces[0] == (10 * SLICE + 1, 10 * SLICE * RUN + HEADER_SIZE)
    assert len(move.pieces) == 2
