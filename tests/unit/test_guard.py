"""Holds that overlap follow each other in the order of their arrival, unless both are shared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusecache.images.guard import BEYOND, EVERYTHING, Hold, RangeGuard
from tests.support.images import is_idle

MIB = 1 << 20


class Recorded(Hold):
    """A hold that remembers that it was granted."""

    __slots__ = ("grants", "held")

    def __init__(self, start: int, end: int, *, exclusive: bool = True) -> None:
        super().__init__(start, end, exclusive=exclusive)
        self.held = False
        self.grants = 0

    def granted(self) -> None:
        self.held = True
        self.grants += 1


def take(guard: RangeGuard, start: int, end: int, *, exclusive: bool = True) -> Recorded:
    hold = Recorded(start, end, exclusive=exclusive)
    hold.held = guard.acquire(hold)
    return hold


def conflict(a: Hold, b: Hold) -> bool:
    return a.start < b.end and b.start < a.end and (a.exclusive or b.exclusive)


SMALL = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda at: (at[0] * 512, (at[0] + at[1]) * 512))
CROSSING = st.tuples(st.integers(1, 3), st.integers(1, 3000), st.integers(1, 3000)).map(
    lambda at: (at[0] * MIB - at[1], at[0] * MIB + at[2])
)
WIDE = st.tuples(st.integers(0, 3 * MIB), st.integers(2 * MIB, 4 * MIB)).map(lambda at: (at[0], at[0] + at[1]))
RANGES = st.one_of(SMALL, CROSSING, WIDE, st.just((0, EVERYTHING)), st.just((EVERYTHING - 1, EVERYTHING)))
STEPS = st.lists(
    st.one_of(st.tuples(RANGES, st.booleans()), st.integers(0, 30)),
    max_size=60,
)
"""A range to take and whether exclusively, or which of those not yet released to release, held or waiting."""


@given(steps=STEPS)
def test_what_overlaps_is_never_held_together_and_is_granted_in_order(
    steps: list[tuple[tuple[int, int], bool] | int],
) -> None:
    guard = RangeGuard()
    alive: list[Recorded] = []

    def check() -> None:
        assert guard.active == len(alive)
        for position, hold in enumerate(alive):
            # Held exactly where nothing earlier that is still there conflicts: first come, first served, and no delay.
            assert hold.held == (not any(conflict(hold, earlier) for earlier in alive[:position]))

    for step in steps:
        if not isinstance(step, int):
            (start, end), exclusive = step
            alive.append(take(guard, start, end, exclusive=exclusive))
        elif alive:
            guard.release(alive.pop(step % len(alive)))
        check()
    while alive:
        guard.release(next(hold for hold in alive if hold.held))
        alive = [hold for hold in alive if not hold.released]
        check()
    assert is_idle(guard)


@pytest.mark.parametrize(
    ("held", "asked", "free"),
    [
        ((0, 512), (512, 1024), True),
        ((0, 512), (511, 512), False),
        ((MIB - 1, MIB + 1), (MIB, MIB + 2), False),
        ((MIB - 1, MIB + 1), (MIB + 1, MIB + 2), True),
        ((0, 3 * MIB), (2 * MIB, 2 * MIB + 1), False),
        ((0, EVERYTHING), (EVERYTHING - 1, EVERYTHING), False),
        ((2 * MIB, 2 * MIB + 1), (0, EVERYTHING), False),
        ((0, 5 * MIB), (5 * MIB, 9 * MIB), True),
    ],
)
def test_holds_meet_where_they_share_a_byte(held: tuple[int, int], asked: tuple[int, int], free: bool) -> None:
    guard = RangeGuard()
    first = take(guard, *held)
    second = take(guard, *asked)
    assert (first.held, second.held) == (True, free)
    guard.release(first)
    assert (second.held, second.grants) == (True, 0 if free else 1)


def test_shared_holds_do_not_wait_for_each_other() -> None:
    guard = RangeGuard()
    holds = [take(guard, 0, 4096, exclusive=False) for _ in range(5)]
    writer = take(guard, 0, 1)
    assert [hold.held for hold in holds] == [True] * 5
    for hold in holds:
        assert not writer.held
        guard.release(hold)
    assert writer.held


def test_a_reader_does_not_overtake_a_writer_that_waits() -> None:
    guard = RangeGuard()
    reading = take(guard, 0, 10, exclusive=False)
    writing = take(guard, 5, 15)
    late = take(guard, 0, 10, exclusive=False)
    assert not late.held
    guard.release(reading)
    assert (writing.held, late.held) == (True, False)
    guard.release(writing)
    assert late.held


def test_a_waiting_hold_that_is_given_up_is_never_granted_and_blocks_nobody() -> None:
    guard = RangeGuard()
    first = take(guard, 0, 10)
    given_up = take(guard, 0, EVERYTHING)
    behind = take(guard, 20, 30)
    assert not behind.held
    guard.release(given_up)
    assert behind.held
    guard.release(first)
    assert given_up.grants == 0
    guard.release(behind)
    assert is_idle(guard)


def test_abandoning_releases_what_waits_grants_nothing_and_leaves_what_is_held() -> None:
    guard = RangeGuard()
    held = [take(guard, 0, 10), take(guard, 1 << 20, 1 << 30), take(guard, BEYOND, EVERYTHING, exclusive=False)]
    waiting = [take(guard, 5, 20), take(guard, 15, 30), take(guard, 0, EVERYTHING), take(guard, 1 << 25, 1 << 40)]
    abandoned = guard.abandon()
    assert sorted(map(id, abandoned)) == sorted(map(id, held + waiting))
    assert [hold.released for hold in held + waiting] == [False] * 3 + [True] * 4
    assert guard.active == 3
    for hold in held:
        guard.release(hold)
    assert sum(hold.grants for hold in waiting) == 0
    assert is_idle(guard)


class Fleeting(Hold):
    """Ends as soon as it is granted, like a request that is answered on the spot."""

    __slots__ = ("ended", "guard")

    def __init__(self, guard: RangeGuard, start: int, end: int, ended: list["Fleeting"]) -> None:
        super().__init__(start, end, exclusive=True)
        self.guard = guard
        self.ended = ended

    def granted(self) -> None:
        self.ended.append(self)
        self.guard.release(self)


def test_a_long_chain_of_requests_that_end_at_once_does_not_overflow_the_stack() -> None:
    guard = RangeGuard()
    first = take(guard, 0, EVERYTHING)
    ended: list[Fleeting] = []
    # Each overlaps its neighbours only: one grants the next.
    chain = [Fleeting(guard, at * 4096, (at + 1) * 4096 + 1, ended) for at in range(10_000)]
    assert [hold for hold in chain if guard.acquire(hold)] == []
    assert guard.active == 10_001
    guard.release(first)
    assert ended == chain
    assert is_idle(guard)


def test_a_barrier_lets_everything_behind_it_go_at_once() -> None:
    guard = RangeGuard()
    barrier = take(guard, 0, EVERYTHING)
    behind = [take(guard, at * 4096, (at + 1) * 4096) for at in range(10_000)]
    guard.release(barrier)
    assert all(hold.held for hold in behind)
    assert guard.active == 10_000


def test_a_hold_says_what_it_is() -> None:
    guard = RangeGuard()
    first, second = take(guard, 0, 10), take(guard, 5, 15, exclusive=False)
    assert repr(first) == "<Hold [0, 10) exclusive, held>"
    assert repr(second) == "<Hold [5, 15) shared, waits for 1>"
    guard.release(first)
    assert repr(first) == "<Hold [0, 10) exclusive, released>"
