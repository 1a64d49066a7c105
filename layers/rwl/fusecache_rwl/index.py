"""The index: for every range of the image, where in the log its newest bytes are, exact to a sector of 512 bytes.

Owns the mapping and the RAM it takes. It must not know of records, files or time, has no lock and never waits; whoever
uses it keeps what it names alive (a position is good for as long as it is not below ``tail``).

Two forms. A **leaf** of 4 MiB in which much is cached is dense: an array with one value for each 4 KiB slot, where an
insert or a hit is a few straight lines. All else is sorted runs (``index_runs``): what is sparse, what is large (a
discard of the whole image is one run, in no more time or RAM than any other), and the slots of dense leaves that are
split below 4 KiB. A leaf becomes dense, and sparse again, when its runs have grown too many or too few; that is looked
at in passing, for some microseconds every hundred inserts or so.

What the runs say of a slot that is dense and not split means nothing: a remainder, which goes as the tail passes it.

RAM per cached 4 KiB: 8 to 100 bytes in dense leaves, about 20 in the sparsest case. What the tail has passed is
forgotten in passing too, so it stays within a small multiple of what is alive. What a discard of much leaves behind is
given back some arrays at a time, with the changes that follow.
"""

from array import array
from collections.abc import Iterator
from sys import getsizeof
from typing import Final

from fusecache_rwl.index_runs import MANY, Runs
from fusecache_rwl.index_values import BIAS, GAP, GAP_VALUE, MAX_SIZE, MIXED, SPLIT, ZERO, ZERO_BIT, where

__all__ = ["GAP", "MIXED", "SLOT", "ZERO", "Index"]

SLOT: Final = 4096
"""Bytes in a slot of a dense leaf."""

LEAF_SLOTS: Final = 1024

DENSE: Final = 176
"""Boundaries between slots that make a leaf dense: 88 lone slots, where an array takes less than 100 bytes for each."""
SPARSE: Final = 64
"""Boundaries below which a dense leaf goes back to runs."""


class Index:
    """The newest data of an image of ``size`` bytes; empty at first.

    Offsets and lengths are bytes of the image, lengths at least 1, and ranges lie within the image: the caller has
    checked that. Both are multiples of 512, but for a range that ends at the image's end. Positions are log positions,
    less than 4 EiB. Later inserts hide earlier ones whatever their positions.
    """

    __slots__ = ("_dense", "_hand", "_remains", "_runs", "_size", "tail")

    def __init__(self, size: int) -> None:
        """Raise ValueError where size is negative or above 1 EiB."""
        self._size = _checked(size)
        self.tail = 0
        """Whatever has a position below it counts as a gap. Only grows, from the end of a record to that of another."""
        self._remains: list[array[int]] = []
        self.clear()

    def clear(self) -> None:
        """Make the whole image a gap."""
        self._dense: dict[int, array[int]] = {}
        self._hand: list[int] = []
        self._runs = Runs(self._remains)

    def insert(self, offset: int, length: int, position: int) -> None:
        """Image byte ``offset + k`` is at log position ``position + k`` from now on."""
        value = position - offset + BIAS
        if length != SLOT or offset & 4095:
            self._assign(offset, length, value)
            return
        leaf = self._dense.get(offset >> 22)
        if leaf is not None:
            leaf[offset >> 12 & 1023] = value
            return
        runs = self._runs
        runs.put(offset, value)
        if runs.crowded >= 0:
            self._tidy()
        elif self._remains:
            del self._remains[-MANY:]

    def insert_zero(self, offset: int, length: int, position: int) -> None:
        """The range reads as zeroes, as the record with its header at ``position`` says."""
        self._assign(offset, length, ZERO_BIT + position)

    def remove(self, offset: int, length: int) -> None:
        """Make the range a gap."""
        self._assign(offset, length, GAP_VALUE)

    def find(self, offset: int, length: int) -> int:
        """The log position of a range that lies in one run, or ``ZERO``, ``GAP`` or ``MIXED``."""
        if length == SLOT and not offset & 4095:
            leaf = self._dense.get(offset >> 22)
            if leaf is not None:
                value = leaf[offset >> 12 & 1023]
                if value != SPLIT:
                    if value >= ZERO_BIT:
                        return ZERO if value - ZERO_BIT >= self.tail else GAP
                    position = value - BIAS + offset
                    return position if position >= self.tail else GAP
            else:
                value = self._runs.at(offset)
                if value >= ZERO_BIT:
                    return ZERO if value - ZERO_BIT >= self.tail else GAP
                if value >= 0:
                    position = value - BIAS + offset
                    return position if position >= self.tail else GAP
        found = self._merged(offset, length)
        return found[0][1] if len(found) == 1 else MIXED

    def lookup(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """Cover the range exactly, in order, with (offset, length, where): a log position, ``ZERO`` or ``GAP``.

        Neighbours are merged: gaps with gaps, zeroes with zeroes, data with data that follows it in the log.
        """
        found = self._merged(offset, length)
        ends = [at for at, _ in found[1:]]
        ends.append(offset + length)
        return [(at, end - at, place) for (at, place), end in zip(found, ends, strict=True)]

    def resize(self, size: int) -> None:
        """Change the image's size: what a shrink cuts off is forgotten, what a growth adds is a gap.

        Raise ValueError, and change nothing, where size is negative or above 1 EiB, or where the image grows from
        within a sector that holds data: what follows that in the log isn't zeroes. It must have been written back and
        removed.
        """
        old, new = self._size, _checked(size)
        if new > old and old % 512 and self.find(old - old % 512, old % 512) >= 0:
            raise ValueError(
                f"the last sector of {old} bytes holds data: it must be written back before the image grows"
            )
        start, end = new + 511 >> 9, old + 511 >> 9
        if start < end:
            self._assign(start << 9, end - start << 9, GAP_VALUE)
        self._size = new

    def memory(self) -> int:
        """Bytes of RAM, all told. Takes some microseconds for every thousand cached ranges."""
        dense = sum(map(getsizeof, self._dense.values())) + 32 * len(self._dense)
        remains = sum(map(getsizeof, self._remains))
        return getsizeof(self._dense) + dense + getsizeof(self._hand) + self._runs.memory() + remains

    def _assign(self, offset: int, length: int, value: int) -> None:
        start, end = offset >> 9, offset + length + 511 >> 9
        if self._dense:
            start, end = self._assign_dense(start, end, value)
        if start < end:
            self._runs.set(start, end, value)
        if self._runs.crowded >= 0:
            self._tidy()
        elif self._remains:
            del self._remains[-MANY:]

    def _assign_dense(self, start: int, end: int, value: int) -> tuple[int, int]:
        """Do what falls into dense leaves; return what is left for the runs. Leaves that are wholly covered go."""
        first, last = start >> 13, end - 1 >> 13
        if start & 8191 or (first == last and end & 8191):
            stop = min(end, first + 1 << 13)
            if first in self._dense:
                self._fill(first, start, stop, value)
                start = stop
            first += 1
        if end & 8191 and first <= last:
            if last in self._dense:
                self._fill(last, last << 13, end, value)
                end = last << 13
            last -= 1
        if first <= 0 and last << 22 >= self._size - (1 << 22):
            self._remains += self._dense.values()
            self._dense.clear()
        elif first <= last:
            self._remains += [self._dense.pop(leaf) for leaf in self._dense_between(first, last)]
        return start, end

    def _dense_between(self, first: int, last: int) -> list[int]:
        dense = self._dense
        if last - first < len(dense):
            return [leaf for leaf in range(first, last + 1) if leaf in dense]
        return sorted(leaf for leaf in dense if first <= leaf <= last)

    def _fill(self, number: int, start: int, end: int, value: int) -> None:
        leaf = self._dense[number]
        first, last = start + 7 >> 3, end >> 3
        if first > last:  # within one slot
            self._fill_part(number, start, end, value)
            return
        if start & 7:
            self._fill_part(number, start, first << 3, value)
        if end & 7:
            self._fill_part(number, last << 3, end, value)
        if first < last:
            slot = first & 1023
            leaf[slot : slot + last - first] = array("Q", (value,)) * (last - first)

    def _fill_part(self, number: int, start: int, end: int, value: int) -> None:
        leaf, slot = self._dense[number], start >> 3 & 1023
        if leaf[slot] != SPLIT:
            self._runs.set(start & ~7, (start & ~7) + 8, leaf[slot])
            leaf[slot] = SPLIT
        self._runs.set(start, end, value)

    def _merged(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(offset, where) of each run in the range."""
        tail = self.tail
        found: list[tuple[int, int]] = []
        follows = MIXED  # what would go on with the run before
        for sector, value in self._pieces(offset >> 9, offset + length + 511 >> 9):
            at = sector << 9
            if value < ZERO_BIT:
                place = value - BIAS + at
                if place < tail:
                    place = GAP
            else:
                place = ZERO if value - ZERO_BIT >= tail else GAP
            if place >= 0:
                if value != follows:
                    found.append((at, place))
                    follows = value
            elif place != follows:
                found.append((at, place))
                follows = place
        return found

    def _pieces(self, start: int, end: int) -> list[tuple[int, int]]:
        """(first sector, value) for the whole range; equal neighbours are possible."""
        out: list[tuple[int, int]] = []
        for number in self._dense_between(start >> 13, end - 1 >> 13):
            if start < number << 13:
                self._runs.pieces(start, number << 13, out)
                start = number << 13
            stop = min(end, number + 1 << 13)
            self._dense_pieces(number, start, stop, out)
            start = stop
        if start < end:
            self._runs.pieces(start, end, out)
        return out

    def _dense_pieces(self, number: int, start: int, end: int, out: list[tuple[int, int]]) -> None:
        first = start >> 3
        slot = first & 1023
        last = -1
        for at, value in enumerate(self._dense[number][slot : slot + (end + 7 >> 3) - first], first):
            if value == SPLIT:
                self._runs.pieces(max(start, at << 3), min(end, at + 1 << 3), out)
            elif value != last:
                out.append((max(start, at << 3), value))
            last = value

    def _tidy(self) -> None:
        """Make room in the runs: drop the dead, make leaves dense that have many runs, sparse that have few."""
        del self._remains[-MANY:]
        crowded = _crowded(self._runs.relieve(self.tail)) - self._dense.keys()
        for leaf in crowded:
            self._make_dense(leaf)
        self._runs.divide()
        for _ in range(len(crowded) + 1):
            if not self._hand:
                self._hand = list(self._dense)
            if self._hand:
                self._look_at(self._hand.pop())

    def _make_dense(self, number: int) -> None:
        start, end = number << 13, number + 1 << 13
        pieces: list[tuple[int, int]] = []
        self._runs.pieces(start, end, pieces)
        leaf = array("Q", bytes(8 * LEAF_SLOTS))
        for sector, stop, value in _spans(pieces, end):
            slots = (stop >> 3) - (sector + 7 >> 3)
            if slots > 0:
                slot = sector + 7 >> 3 & 1023
                leaf[slot : slot + slots] = array("Q", (value,)) * slots
        split = sorted({sector >> 3 for sector, _ in pieces if sector & 7})
        for slot in split:
            leaf[slot & 1023] = SPLIT
            if start < slot << 3:
                self._runs.set(start, slot << 3, GAP_VALUE)
            start = slot + 1 << 3
        if start < end:
            self._runs.set(start, end, GAP_VALUE)
        self._dense[number] = leaf

    def _look_at(self, number: int) -> None:
        """Put a dense leaf back into runs if few are left alive."""
        if number not in self._dense or not self._few_alive(number):
            return
        end = number + 1 << 13
        pieces = self._pieces(number << 13, end)
        del self._dense[number]
        for start, stop, value in _spans(pieces, end):
            alive = where(value, start << 9, self.tail) != GAP
            self._runs.set(start, stop, value if alive else GAP_VALUE)

    def _few_alive(self, number: int) -> bool:
        """Whether a dense leaf has less than ``SPARSE`` runs, a split slot counted as one."""
        count, last = 0, GAP_VALUE
        for slot, value in enumerate(self._dense[number], number << 10):
            if value != last and (value == SPLIT or where(value, slot << 12, self.tail) != GAP):
                count += 1
                if count == SPARSE:
                    return False
            last = value
        return True


def _checked(size: int) -> int:
    if not 0 <= size <= MAX_SIZE:
        raise ValueError(f"an image of {size} bytes: allowed are 0 to {MAX_SIZE}")
    return size


def _spans(pieces: list[tuple[int, int]], end: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, value) of pieces of which the last ends at ``end``."""
    for i, (start, value) in enumerate(pieces, 1):
        yield start, pieces[i][0] if i < len(pieces) else end, value


def _crowded(keys: list[int]) -> set[int]:
    """The leaves that at least ``DENSE`` boundaries between slots divide, of the runs with these sorted keys."""
    half = DENSE // 4  # one key stands for two at the most, and so many in line hold a whole stretch from k to k + half
    seen = {keys[k] >> 14 for k in range(0, len(keys) - half + 1, half) if not (keys[k] ^ keys[k + half - 1]) >> 14}
    return {leaf for leaf in seen if sum(1 + (key & 1) for key in keys if key >> 14 == leaf and not key & 14) >= DENSE}
