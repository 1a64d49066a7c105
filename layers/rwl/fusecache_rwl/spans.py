"""The bytes of the image that a few generations change.

Owns whether another one changes some of them, too. Pure.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

from fusecache_rwl.ledger import DirtyRecord


class Spans:
    """A set of bytes, as the longest runs of it; a few µs for each record."""

    def __init__(self) -> None:
        # Of run i: [starts[i], ends[i]). Runs neither overlap nor touch, so both are sorted.
        self._starts: list[int] = []
        self._ends: list[int] = []

    def meet(self, records: Iterable[DirtyRecord]) -> bool:
        """Say whether one of *records* changes a byte of these."""
        starts, ends = self._starts, self._ends
        for _, offset, length, _ in records:
            following = bisect_right(ends, offset)
            if following < len(starts) and starts[following] < offset + length:
                return True
        return False

    def add(self, records: Iterable[DirtyRecord]) -> None:
        """Add what *records* change."""
        starts, ends = self._starts, self._ends
        for _, offset, length, _ in records:
            end = offset + length
            first, behind = bisect_left(ends, offset), bisect_right(starts, end)
            # Runs that it overlaps or touches become one with it.
            starts[first:behind] = [min(starts[first], offset) if first < behind else offset]
            ends[first:behind] = [max(ends[behind - 1], end) if first < behind else end]
