"""The ring's space is never given away twice, and never kept back without need."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fusecache_rwl.space import PAGE, Space

CELL = 64
RING = 16 * PAGE
CELLS = RING // CELL


class Ring(RuleBasedStateMachine):
    """Beside a Space, a ring of which every cell knows which log position was written there last.

    As the medium does, whatever is left of a record's last page is wiped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.space = Space(RING)
        self.cells: list[int | None] = [None] * CELLS
        self.ends = [0]
        self.pins: dict[int, int] = {}

    def lowest_live(self) -> int:
        return min(self.space.tail, *self.pins.values(), self.space.tail)

    def overwritten(self, end: int) -> list[int]:
        """Return what is written over when the head goes to *end*."""
        cells = range(self.space.head // CELL, -(-end // PAGE) * PAGE // CELL)
        found = [self.cells[cell % CELLS] for cell in cells[:CELLS]]
        return [position for position in found if position is not None] + [1 << 62] * (len(cells) > CELLS)

    @rule(cells=st.integers(1, 60) | st.integers(1, CELLS + 1) | st.sampled_from([1, 63, 64, 65, CELLS]))
    def reserve(self, cells: int) -> None:
        space, head, clean = self.space, self.space.head, self.space.clean_tail
        size = cells * CELL
        room = RING - head % RING
        padding = room if size > room else 0
        end = head + padding + size
        given_up = [position for position in self.overwritten(end) if position >= clean]
        reserved = space.reserve(size)
        if reserved is None:
            assert any(position >= self.lowest_live() for position in given_up), "there was space"
            assert (space.head, space.clean_tail) == (head, clean)
            return
        assert reserved == (padding, end - size)
        assert reserved[1] % RING + size <= RING, "the record crosses the ring's end"
        assert space.head == end
        assert not [position for position in given_up if position >= self.lowest_live()], "live data were overwritten"
        assert space.clean_tail == max([clean, *(position + CELL for position in given_up)]), "clean data given up"
        for cell in range(head // CELL, -(-end // PAGE) * PAGE // CELL):
            self.cells[cell % CELLS] = cell * CELL if cell * CELL < end else None
        self.ends.append(end)

    @rule(pick=st.randoms(use_true_random=False))
    def retire(self, pick) -> None:  # type: ignore[no-untyped-def]
        self.space.retire(pick.choice([end for end in self.ends if end >= self.space.tail]))

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        low, high = self.space.clean_tail, self.space.head
        position = data.draw(st.integers(low // CELL, high // CELL)) * CELL
        self.pins[self.space.pin(max(position, low))] = max(position, low)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.pins)))
        del self.pins[token]
        self.space.unpin(token)

    @rule()
    def drop_clean(self) -> None:
        self.space.drop_clean()
        assert self.space.clean_tail == self.lowest_live()

    @precondition(lambda self: not self.pins)
    @rule()
    def recover(self) -> None:
        head, tail = self.space.head, self.space.tail
        self.space.reset(head, tail)
        assert (self.space.head, self.space.tail, self.space.clean_tail) == (head, tail, tail)

    @invariant()
    def everything_live_is_still_there(self) -> None:
        space = self.space
        assert space.clean_tail <= space.tail <= space.head
        for position in range(-(-space.clean_tail // CELL) * CELL, space.head, CELL):
            assert self.cells[position // CELL % CELLS] == position
        assert all(position >= space.clean_tail for position in self.pins.values())

    @invariant()
    def bytes_are_accounted_for(self) -> None:
        space = self.space
        live = sum(position is not None and position >= space.clean_tail for position in self.cells) * CELL
        assert space.used == space.head - space.clean_tail == live
        assert space.dirty_used == space.head - space.tail <= space.used <= RING
        assert 0 <= space.free <= RING - space.dirty_used


TestRing = Ring.TestCase
TestRing.settings = settings(deadline=None, max_examples=200, stateful_step_count=60)


def test_a_full_ring_takes_nothing_until_its_tail_moves() -> None:
    space = Space(RING)
    assert space.reserve(RING) == (0, 0)
    assert (space.free, space.dirty_used) == (0, RING)
    assert space.reserve(CELL) is None
    space.retire(CELL)
    assert space.free == 0
    assert space.reserve(CELL) is None, "the record's last page would wipe dirty data"
    space.retire(PAGE)
    assert space.free == PAGE
    assert space.reserve(CELL) == (0, RING)
    assert space.clean_tail == PAGE


def test_a_record_that_meets_the_end_is_padded_to_it() -> None:
    space = Space(RING)
    space.reserve(RING - 2 * CELL)
    space.retire(space.head)
    assert space.reserve(3 * CELL) == (2 * CELL, RING)
    assert space.head == RING + 3 * CELL


def test_a_record_that_fits_exactly_is_not_padded() -> None:
    space = Space(RING)
    space.reserve(RING - 2 * CELL)
    assert space.reserve(2 * CELL) == (0, RING - 2 * CELL)
    space.retire(RING)
    assert space.reserve(CELL) == (0, RING)


def test_a_record_that_fits_exactly_once_clean_data_give_way_is_not_padded() -> None:
    space = Space(RING)
    space.reserve(RING)
    space.retire(RING)
    space.reserve(RING // 2)
    assert space.reserve(RING // 2) == (0, RING + RING // 2)
    assert (space.head, space.clean_tail) == (2 * RING, RING)


def test_clean_data_stay_until_their_space_is_needed() -> None:
    space = Space(RING)
    space.reserve(RING)
    space.retire(RING)
    assert (space.clean_tail, space.used, space.dirty_used, space.free) == (0, RING, 0, RING)
    space.reserve(PAGE + CELL)
    assert (space.clean_tail, space.used) == (2 * PAGE, RING - PAGE + CELL)


def test_a_read_holds_back_what_would_overwrite_it() -> None:
    space = Space(RING)
    space.reserve(RING)
    first = space.pin(PAGE)
    second = space.pin(PAGE)
    space.retire(RING)
    assert space.reserve(PAGE) == (0, RING)
    assert space.reserve(CELL) is None
    space.unpin(first)
    assert space.reserve(CELL) is None
    space.drop_clean()
    assert space.clean_tail == PAGE
    space.unpin(second)
    assert space.reserve(CELL) == (0, RING + PAGE)
    with pytest.raises(KeyError):
        space.unpin(second)


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    space = Space(RING)
    space.reserve(PAGE)
    state = (space.head, space.tail, space.clean_tail)
    for head, tail in ((PAGE, 2 * PAGE), (CELL, -CELL), (RING + CELL, 0), (RING + CELL, CELL)):
        with pytest.raises(ValueError, match="allowed: at most"):
            space.reset(head, tail)
    token = space.pin(0)
    with pytest.raises(ValueError, match="found 1 pins"):
        space.reset(0, 0)
    space.unpin(token)
    for tail in (-CELL, PAGE + CELL):
        with pytest.raises(ValueError, match="allowed: 0 to 4096"):
            space.retire(tail)
    assert (space.head, space.tail, space.clean_tail) == state


def test_a_recovered_ring_goes_on_where_it_was() -> None:
    space = Space(RING)
    space.reset(5 * RING + CELL, 4 * RING + PAGE)
    assert (space.used, space.dirty_used) == (RING + CELL - PAGE, RING + CELL - PAGE)
    assert space.reserve(PAGE - CELL) == (0, 5 * RING + CELL)
    assert space.reserve(CELL) is None


@pytest.mark.parametrize("size", [0, -PAGE, 100, PAGE + CELL])
def test_a_ring_of_broken_pages_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="a positive multiple of 4096"):
        Space(size)
