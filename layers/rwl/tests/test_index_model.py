"""The index against a plain model with one entry per sector, driven by Hypothesis."""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fusecache_rwl.index
from fusecache_rwl import index_runs
from fusecache_rwl.index import GAP, MIXED, ZERO, Index

LEAF = 4 << 20
SIZES = st.one_of(
    st.integers(LEAF, 3 * LEAF),
    st.integers(0, LEAF),
    st.sampled_from([1, 511, 512, 513, 4096, 5 * 512, LEAF - 1, LEAF, LEAF + 1, 2 * LEAF + 700, 3 * LEAF]),
)
ORIGIN = -(1 << 70)
"""The position of what was never written: below every tail."""


class Machine(RuleBasedStateMachine):
    """``sectors`` holds (is data, position) of each; records lie one after the other in the log, as in real life."""

    @initialize(size=SIZES)
    def begin(self, size: int) -> None:
        self.size = size
        self.index = Index(size)
        self.sectors: list[tuple[bool, int]] = [(False, ORIGIN)] * (size + 511 >> 9)
        self.head = 0
        self.records = [0]

    def append(self, length: int) -> int:
        """Position of a new record's header."""
        position = self.head
        self.head += 64 + (length + 63 & ~63)
        self.records.append(self.head)
        return position

    def insert(self, offset: int, length: int) -> None:
        position = self.append(length) + 64
        self.index.insert(offset, length, position)
        first, last = offset >> 9, offset + length + 511 >> 9
        self.sectors[first:last] = [(True, position + (k << 9)) for k in range(last - first)]

    def range_of(self, data: Any, unit: int = 512) -> tuple[int, int] | None:
        """A range of whole units, or one that ends at the image's end."""
        if not self.size:
            return None
        units = (self.size + unit - 1) // unit
        first = data.draw(st.integers(0, units - 1))
        count = data.draw(st.one_of(st.integers(1, min(300, units - first)), st.integers(1, units - first)))
        return first * unit, min(self.size - first * unit, count * unit)

    @rule(data=st.data(), unit=st.sampled_from([512, 4096]))
    def write(self, data: Any, unit: int) -> None:
        if found := self.range_of(data, unit):
            self.insert(*found)

    @rule(
        seed=st.integers(0, 1 << 32),
        count=st.sampled_from([10, 40, 160, 640]),
        first=st.sampled_from([0, 0.25, 0.5]),
        unit=st.sampled_from([9, 12, 12, 12]),
    )
    def scatter(self, seed: int, count: int, first: float, unit: int) -> None:
        """Many small writes into a stretch of a leaf's size."""
        start = int(self.size * first) >> unit
        stop = min(self.size, (start << unit) + LEAF) >> unit
        random = Random(seed)
        for _ in range(count if start < stop else 0):
            self.insert(random.randrange(start, stop) << unit, 1 << unit)

    @rule(data=st.data())
    def zero(self, data: Any) -> None:
        if found := self.range_of(data):
            self.zeroes(*found)

    @precondition(lambda self: len(self.records) > 1000)
    @rule()
    def zero_everything(self) -> None:
        if self.size:
            self.zeroes(0, self.size)

    def zeroes(self, offset: int, length: int) -> None:
        position = self.append(0)
        self.index.insert_zero(offset, length, position)
        first, last = offset >> 9, offset + length + 511 >> 9
        self.sectors[first:last] = [(False, position)] * (last - first)

    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        if found := self.range_of(data):
            self.forget(*found)

    def forget(self, offset: int, length: int) -> None:
        self.index.remove(offset, length)
        first, last = offset >> 9, offset + length + 511 >> 9
        self.sectors[first:last] = [(False, ORIGIN)] * (last - first)

    @precondition(lambda self: len(self.records) > 1000)
    @rule()
    def clear(self) -> None:
        self.index.clear()
        self.sectors = [(False, ORIGIN)] * len(self.sectors)

    @rule(part=st.floats(0, 1))
    def retire(self, part: float) -> None:
        """The tail goes on to some record's beginning."""
        left = [position for position in self.records if position >= self.index.tail]
        self.index.tail = left[int((len(left) - 1) * part)]

    @precondition(lambda self: len(self.records) > 300)
    @rule(size=SIZES)
    def resize(self, size: int) -> None:
        if size > self.size and self.size % 512 and self.place(self.size >> 9) >= 0:
            try:
                self.index.resize(size)
            except ValueError:
                return
            raise AssertionError("grew over what follows data in the log")
        self.index.resize(size)
        self.size = size
        count = size + 511 >> 9
        self.sectors = self.sectors[:count] + [(False, ORIGIN)] * (count - len(self.sectors))

    def place(self, sector: int) -> int:
        is_data, position = self.sectors[sector]
        if position < self.index.tail:
            return GAP
        return position if is_data else ZERO

    def expected(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        runs: list[list[int]] = []
        for sector in range(offset >> 9, offset + length + 511 >> 9):
            at, place = sector << 9, self.place(sector)
            if runs and place == (runs[-1][2] if place < 0 or runs[-1][2] < 0 else runs[-1][2] + at - runs[-1][0]):
                runs[-1][1] = at + 512 - runs[-1][0]
            else:
                runs.append([at, 512, place])
        if runs:
            runs[-1][1] = offset + length - runs[-1][0]
        return [(start, count, place) for start, count, place in runs]

    @rule(data=st.data(), unit=st.sampled_from([512, 4096]))
    def look(self, data: Any, unit: int) -> None:
        if found := self.range_of(data, unit):
            expected = self.expected(*found)
            assert self.index.lookup(*found) == expected
            assert self.index.find(*found) == (expected[0][2] if len(expected) == 1 else MIXED)

    @invariant()
    def everything_is_where_it_should_be(self) -> None:
        if self.size:
            assert self.index.lookup(0, self.size) == self.expected(0, self.size)
            slots = {at >> 12 for at, _, _ in self.expected(0, self.size)}
            for offset in (slot << 12 for slot in list(slots)[:50]):
                length = min(4096, self.size - offset)
                expected = self.expected(offset, length)
                assert self.index.find(offset, length) == (expected[0][2] if len(expected) == 1 else MIXED)


class Thresholds:
    """When chunks are cut and leaves change their form; ``low``: every few steps."""

    usual = index_runs.LIMIT, fusecache_rwl.index.DENSE, fusecache_rwl.index.SPARSE
    low = 24, 10, 5

    @staticmethod
    def set(limit: int, dense: int, sparse: int) -> None:
        vars(index_runs)["LIMIT"] = limit
        vars(fusecache_rwl.index).update(DENSE=dense, SPARSE=sparse)


class LowThresholds(Machine):
    def __init__(self) -> None:
        super().__init__()
        Thresholds.set(*Thresholds.low)

    def teardown(self) -> None:
        Thresholds.set(*Thresholds.usual)


TestIndexAgainstAModel = Machine.TestCase
TestIndexAgainstAModel.settings = settings(deadline=None, max_examples=40, stateful_step_count=25)
TestIndexOfLowThresholdsAgainstAModel = LowThresholds.TestCase
TestIndexOfLowThresholdsAgainstAModel.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)


@pytest.fixture(params=[Thresholds.usual, Thresholds.low], ids=["usual", "low"])
def thresholds(request: pytest.FixtureRequest) -> Iterator[None]:
    Thresholds.set(*request.param)
    yield
    Thresholds.set(*Thresholds.usual)


@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.usefixtures("thresholds")
def test_a_long_walk_of_mostly_small_writes_ends_where_the_model_does(seed: int) -> None:
    random = Random(seed)
    walk = Machine()
    walk.begin(random.choice([2 * LEAF + 700, 3 * LEAF, LEAF + 4096 - 512]))
    for step in range(6000):
        if step % 1000 == 0:
            hot = random.randrange(walk.size // 2)
        unit = random.choice([512, 4096, 4096, 4096, 4096, 4096])
        first = random.randrange(hot, min(hot + LEAF // 2, walk.size)) // unit * unit
        length = min(walk.size - first, random.choice([1, 1, 1, 1, 1, 1, 1, 1, 2, 60]) * unit)
        kind = random.random()
        if kind < 0.9:
            walk.insert(first, length)
        elif kind < 0.96:
            walk.zeroes(first, length)
        elif kind < 0.998:
            walk.forget(first, length)
        elif kind < 0.9995:
            walk.index.tail = max(walk.index.tail, random.choice(walk.records[-300:]))
        else:
            walk.zeroes(first, min(walk.size - first, random.randrange(1, walk.size // 512) * 512))
        if step % 150 == 0:
            walk.everything_is_where_it_should_be()
    walk.everything_is_where_it_should_be()
