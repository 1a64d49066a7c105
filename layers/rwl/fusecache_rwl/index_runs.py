"""A map of sectors to values as sorted runs: the form that the index gives to whatever is not dense.

Owns the runs: each begins at a boundary and goes on to the next, the last one for ever. Boundaries stand in chunks of
at most about ``LIMIT``, so that a change moves little memory: 16 bytes each, two for a lone extent. One value over any
range, the whole image included, is one run, whatever was there before.

It must not know of dense leaves. It knows values only to drop those that the log's tail has passed.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from sys import getsizeof
from typing import Final

from fusecache_rwl.index_values import BIAS, GAP_VALUE, ZERO_BIT

LIMIT: Final = 512
"""Boundaries in a chunk that make it ``crowded``."""


MANY: Final = 16
"""Arrays; so many can be freed at once."""
_SAMPLE: Final = 15
"""One boundary in so many tells whether many are dead; odd, as every other one may be a gap."""


def _column(numbers: Iterable[int]) -> "array[int]":
    return array("Q", numbers)


class Runs:
    """Sectors from 0 upwards, each with a value; all of them ``GAP_VALUE`` at first. Needs a call of ``relieve`` and
    perhaps ``divide`` whenever ``crowded`` is not negative; until then it is right, but slower."""

    __slots__ = ("_cleaned", "_firsts", "_hand", "_remains", "_starts", "_values", "crowded")

    def __init__(self, remains: "list[array[int]]") -> None:
        """Where many arrays are needed no more, they go to *remains*: to free them all at once would take a while."""
        self._remains = remains
        self._firsts = [0]  # of each chunk, its first boundary
        self._starts = [_column((0,))]
        self._values = [_column((GAP_VALUE,))]
        self._hand = 0
        self._cleaned = [0]  # of each chunk, the tail when the dead were looked for last
        self.crowded = -1
        """A sector whose chunk has grown too long, or -1."""

    def set(self, start: int, end: int, value: int) -> None:
        """Give the sectors from ``start`` up to ``end``, at least one, the value."""
        firsts = self._firsts
        chunk = bisect_right(firsts, start) - 1
        if chunk + 1 < len(firsts) and firsts[chunk + 1] <= end:
            self._set_across(chunk, start, end, value)
            return
        starts = self._starts[chunk]
        values = self._values[chunk]
        i = bisect_left(starts, start)
        count = len(starts)
        if i == count or starts[i] > end:
            # Within one run, like most of what is sparse.
            before = values[i - 1]
            if before != value:
                starts.insert(i, end)
                starts.insert(i, start)
                values.insert(i, before)
                values.insert(i, value)
                if count > LIMIT:
                    self.crowded = start
            return
        if i + 1 < count and starts[i] == start and starts[i + 1] == end:
            values[i] = value
            return
        j = bisect_right(starts, end, i)
        after = values[j - 1]  # j > 0: the first boundary of a chunk is never behind `start`
        if i and values[i - 1] == value:
            if after == value:
                del starts[i:j], values[i:j]
            else:
                starts[i:j] = _column((end,))
                values[i:j] = _column((after,))
        elif after == value:
            starts[i:j] = _column((start,))
            values[i:j] = _column((value,))
        else:
            starts[i:j] = _column((start, end))
            values[i:j] = _column((value, after))
            if len(starts) > LIMIT:
                self.crowded = start

    def _set_across(self, chunk: int, start: int, end: int, value: int) -> None:
        last = bisect_right(self._firsts, end) - 1
        starts, values = self._starts[chunk], self._values[chunk]
        i = bisect_left(starts, start)
        starts[i:] = _column((start,))
        values[i:] = _column((value,))
        starts, values = self._starts[last], self._values[last]
        j = bisect_right(starts, end)
        starts[:j] = _column((end,))
        values[:j] = _column((values[j - 1],))
        self._firsts[last] = end
        if last - chunk > MANY:
            self._remains += self._starts[chunk + 1 : last]
            self._remains += self._values[chunk + 1 : last]
        for column in (self._firsts, self._starts, self._values, self._cleaned):
            del column[chunk + 1 : last]
        self._join(chunk)

    def over(self, start: int, end: int) -> int:
        """The value of the sectors from ``start`` up to ``end``, or -1 where they are not in one run."""
        firsts = self._firsts
        chunk = bisect_right(firsts, start) - 1
        starts = self._starts[chunk]
        i = bisect_right(starts, start)
        if i < len(starts):
            if starts[i] < end:
                return -1
        elif chunk + 1 < len(firsts) and firsts[chunk + 1] < end:
            return -1
        return self._values[chunk][i - 1]

    def pieces(self, start: int, end: int, out: list[tuple[int, int]]) -> None:
        """Append (first sector, value) for each run in the range; equal neighbours are possible."""
        firsts = self._firsts
        chunk = bisect_right(firsts, start) - 1
        starts, values = self._starts[chunk], self._values[chunk]
        i = bisect_right(starts, start)
        out.append((start, values[i - 1]))
        while True:
            j = bisect_left(starts, end, i)
            out.extend(zip(starts[i:j], values[i:j], strict=True))
            chunk += 1
            if chunk == len(firsts) or firsts[chunk] >= end:
                return
            starts, values, i = self._starts[chunk], self._values[chunk], 0

    def relieve(self, tail: int) -> list[int]:
        """Drop what ``tail`` has passed from the crowded chunk and from one other, each in its turn, so that the dead
        are never many more than the living. Return the sectors where the boundaries of the crowded chunk stand."""
        if self._hand >= len(self._firsts):
            self._hand = 0
        self._drop_dead(self._hand, tail)
        self._join(self._hand)
        self._hand += 1
        chunk = self._chunk_of_crowded()
        self._drop_dead(chunk, tail)
        return self._starts[chunk].tolist()

    def _chunk_of_crowded(self) -> int:
        return bisect_right(self._firsts, self.crowded) - 1

    def divide(self) -> None:
        """Cut the crowded chunk in two, unless there is room in it by now. Nothing is crowded afterwards."""
        chunk = self._chunk_of_crowded()
        starts, values = self._starts[chunk], self._values[chunk]
        if len(starts) > LIMIT * 3 // 4:
            half = len(starts) // 2
            self._firsts.insert(chunk + 1, starts[half])
            self._starts.insert(chunk + 1, starts[half:])
            self._values.insert(chunk + 1, values[half:])
            self._cleaned.insert(chunk + 1, self._cleaned[chunk])
            self._starts[chunk], self._values[chunk] = starts[:half], values[:half]  # new ones, without spare room
        self.crowded = -1

    def memory(self) -> int:
        """Bytes of RAM; takes a microsecond for every few thousand runs."""
        lists = (self._firsts, self._starts, self._values, self._cleaned)
        return (
            sum(map(getsizeof, lists))
            + sum(map(getsizeof, self._starts))
            + sum(map(getsizeof, self._values))
            + 64 * len(self._firsts)
        )

    def _drop_dead(self, chunk: int, tail: int) -> None:
        """Drop what ``tail`` has passed from a chunk, if it is more than a little."""
        if self._cleaned[chunk] == tail:
            return
        self._cleaned[chunk] = tail
        starts, values = self._starts[chunk], self._values[chunk]
        sample = values[::_SAMPLE]
        if len(starts) > LIMIT // 2:
            kept = _alive(starts[::_SAMPLE], sample, tail)
            if 4 * (kept.count(GAP_VALUE) - sample.count(GAP_VALUE)) <= len(sample) - sample.count(GAP_VALUE):
                return
        alive = _alive(starts, values, tail)
        if alive != values.tolist():
            needed = [i for i, value in enumerate(alive) if not i or value != alive[i - 1]]
            self._starts[chunk] = _column(starts[i] for i in needed)
            self._values[chunk] = _column(alive[i] for i in needed)

    def _join(self, chunk: int) -> None:
        """Put the next chunk into this one if both are short."""
        if chunk + 1 < len(self._firsts) and len(self._starts[chunk]) + len(self._starts[chunk + 1]) < LIMIT // 2:
            del self._firsts[chunk + 1]
            self._cleaned[chunk] = self._cleaned.pop(chunk + 1)
            self._starts[chunk] += self._starts.pop(chunk + 1)
            self._values[chunk] += self._values.pop(chunk + 1)


def _alive(starts: "array[int]", values: "array[int]", tail: int) -> list[int]:
    """The values, with a gap in place of each that ``tail`` has passed."""
    data, zero = tail + BIAS, tail + ZERO_BIT
    return [
        value if data <= value + (start << 9) < ZERO_BIT or value >= zero else GAP_VALUE
        for start, value in zip(starts, values, strict=True)
    ]
