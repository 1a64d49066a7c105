"""A map of sectors to values as sorted runs: the form that the index gives to whatever is not dense.

Owns the runs: each begins at a boundary and goes on to the next, the last one for ever. A *short* run is a slot of
eight sectors, and has a gap behind it up to the next boundary: a lone 4 KiB takes one boundary, not two. One value over
any range, the whole image included, is one run, whatever was there before.

Boundaries stand in chunks of at most about ``LIMIT``, so that a change moves little memory. Each takes 16 bytes: a
value, and a key, which is ``sector << 1``, plus 1 where the run is short. A chunk whose boundaries, but for its first,
are known to be short is *plain*: between two of them all is free but for slots.

It must not know of dense leaves. It knows values only to drop those that the log's tail has passed.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from sys import byteorder, getsizeof
from typing import Final

from fusecache_rwl.index_values import BIAS, GAP_VALUE, ZERO_BIT

LIMIT: Final = 512
"""Boundaries in a chunk that make it ``crowded``."""

MANY: Final = 16
"""Arrays; so many can be freed at once."""
_END: Final = 1 << 63
"""Above all keys."""
_LOW: Final = 0 if byteorder == "little" else 7
"""Where the lowest byte of a key is."""
_SHORT: Final = bytes(range(1, 256, 16))
"""The lowest bytes that keys of short runs have."""
_SAMPLE: Final = 15
"""One boundary in so many tells whether many are dead; odd, as every other one may be a gap."""


def _column(numbers: Iterable[int]) -> "array[int]":
    return array("Q", numbers)


class Runs:
    """Sectors from 0 upwards, each with a value; all of them ``GAP_VALUE`` at first. Needs a call of ``relieve`` and
    perhaps ``divide`` whenever ``crowded`` is not negative; until then it is right, but slower."""

    __slots__ = ("_cleaned", "_firsts", "_hand", "_keys", "_plain", "_remains", "_values", "crowded")

    def __init__(self, remains: "list[array[int]]") -> None:
        """Where many arrays are needed no more, they go to *remains*: to free them all at once would take a while."""
        self._remains = remains
        self._firsts = [0]  # of each chunk, where its first boundary stands: a sector << 1
        self._keys = [_column((0,))]
        self._values = [_column((GAP_VALUE,))]
        self._plain = [True]  # of each chunk; the one behind a plain chunk begins at a slot
        self._hand = 0
        self._cleaned = [0]  # of each chunk, the tail when the dead were looked for last
        self.crowded = -1
        """A sector whose chunk has grown too long, or -1."""

    def put(self, offset: int, value: int) -> None:
        """Give the slot at byte ``offset`` the value, which is not ``GAP_VALUE``; sooner than :meth:`set`."""
        firsts = self._firsts
        short = offset >> 8 | 1
        chunk = bisect_right(firsts, short) - 1
        keys = self._keys[chunk]
        values = self._values[chunk]
        i = bisect_right(keys, short)
        last = keys[i - 1]
        if last == short:
            values[i - 1] = value
            return
        if i > 1 and self._plain[chunk]:
            keys.insert(i, short)
            values.insert(i, value)
        else:
            room = (keys[i] if i < len(keys) else self._following(chunk, i)) - short
            before = GAP_VALUE if last & 1 else values[i - 1]
            if last == short - 1:
                if not 15 <= room <= 16:
                    self.set(short >> 1, (short >> 1) + 8, value)
                else:
                    values[i - 1] = value
                return
            if before == GAP_VALUE and room >= 15:
                keys.insert(i, short)
                values.insert(i, value)
            elif before != value and room > 16:
                # Within one run that is no gap: zeroes, most likely.
                self._plain[chunk] = False
                keys.insert(i, short + 15)
                keys.insert(i, short - 1)
                values.insert(i, before)
                values.insert(i, value)
            else:
                self.set(short >> 1, (short >> 1) + 8, value)
                return
        if len(keys) > LIMIT:
            self.crowded = short >> 1

    def _following(self, chunk: int, i: int) -> int:
        """The key of boundary ``i`` of a chunk, or where the next chunk begins."""
        keys, firsts = self._keys[chunk], self._firsts
        return keys[i] if i < len(keys) else firsts[chunk + 1] if chunk + 1 < len(firsts) else _END

    def at(self, offset: int) -> int:
        """The value of the slot at byte ``offset``, or -1 where it is not in one run."""
        firsts = self._firsts
        short = offset >> 8 | 1
        chunk = bisect_right(firsts, short) - 1
        keys = self._keys[chunk]
        i = bisect_right(keys, short)
        last = keys[i - 1]
        if last == short:
            return self._values[chunk][i - 1]
        if (keys[i] if i < len(keys) else self._following(chunk, i)) - short < 15:
            return -1
        if not last & 1:
            return self._values[chunk][i - 1]
        return GAP_VALUE if short - last >= 16 else -1

    def set(self, start: int, end: int, value: int) -> None:
        """Give the sectors from ``start`` up to ``end``, at least one, the value."""
        firsts = self._firsts
        low, high = start << 1, end << 1
        chunk = bisect_right(firsts, low) - 1
        if chunk + 1 < len(firsts) and firsts[chunk + 1] <= high:
            self._set_across(chunk, low, high, value)
            return
        keys = self._keys[chunk]
        values = self._values[chunk]
        i = bisect_left(keys, low)
        count = len(keys)
        if i == count or keys[i] > high + 1:
            before, last = values[i - 1], keys[i - 1]
            if last & 1:
                before = GAP_VALUE if low - last >= 15 else -1
            if before >= 0:
                # Within one run, like most of what is sparse.
                if before != value:
                    self._plain[chunk] = False
                    keys.insert(i, high)
                    keys.insert(i, low)
                    values.insert(i, before)
                    values.insert(i, value)
                    if count > LIMIT:
                        self.crowded = start
                return
        elif i + 1 < count and keys[i] == low and keys[i + 1] | 1 == high | 1:
            values[i] = value
            return
        self._splice(chunk, i, low, high, value)

    def _splice(self, chunk: int, i: int, low: int, high: int, value: int) -> None:
        """Put the run in place of all that it covers, in one chunk of which boundary ``i`` is the first from there."""
        keys, values = self._keys[chunk], self._values[chunk]
        j, new_keys, new_values = self._behind(chunk, high)
        if new_keys:
            if new_values[0] == value:
                del new_keys[0], new_values[0]
        elif keys[j] == high and values[j] == value:
            j += 1
        if self._cut(chunk, i, low) != value:
            if high - low == 16 and not low & 14 and new_values == [GAP_VALUE]:
                new_keys, new_values = [low | 1], [value]
            else:
                new_keys.insert(0, low)
                new_values.insert(0, value)
        self._plain[chunk] = False
        keys[i:j] = _column(new_keys)
        values[i:j] = _column(new_values)
        if len(keys) > LIMIT:
            self.crowded = low >> 1

    def _set_across(self, chunk: int, low: int, high: int, value: int) -> None:
        last = bisect_right(self._firsts, high) - 1
        j, new_keys, new_values = self._behind(last, high)
        keys, values = self._keys[chunk], self._values[chunk]
        i = bisect_left(keys, low)
        self._cut(chunk, i, low)
        keys[i:] = _column((low,))
        values[i:] = _column((value,))
        self._keys[last][:j] = _column(new_keys)
        self._values[last][:j] = _column(new_values)
        self._firsts[last] = high
        self._plain[chunk] = self._plain[last] = False
        if last - chunk > MANY:
            self._remains += self._keys[chunk + 1 : last]
            self._remains += self._values[chunk + 1 : last]
        for column in (self._firsts, self._keys, self._values, self._cleaned, self._plain):
            del column[chunk + 1 : last]
        self._join(chunk)

    def _cut(self, chunk: int, i: int, low: int) -> int:
        """End the run before boundary ``i`` at key ``low``; return its value there, -1 where the chunk begins there."""
        if not i:
            return -1
        keys = self._keys[chunk]
        last = keys[i - 1]
        if last & 1:
            if low - last >= 15:
                return GAP_VALUE
            keys[i - 1] = last - 1
        return self._values[chunk][i - 1]

    def _behind(self, chunk: int, high: int) -> tuple[int, list[int], list[int]]:
        """The first boundary from key ``high`` on, and what goes before it for the run that is there to begin there."""
        keys = self._keys[chunk]
        j = bisect_left(keys, high)
        following = self._following(chunk, j) & ~1
        if following == high:
            return j, [], []
        last, value = keys[j - 1], self._values[chunk][j - 1]
        if not last & 1:
            return j, [high], [value]
        stop = last + 15
        if stop <= high:
            return j, [high], [GAP_VALUE]
        if stop == following:
            return j, [high], [value]
        return j, [high, stop], [value, GAP_VALUE]

    def pieces(self, start: int, end: int, out: list[tuple[int, int]]) -> None:
        """Append (first sector, value) for each run in the range; equal neighbours are possible."""
        firsts, high = self._firsts, end << 1
        chunk = bisect_right(firsts, start << 1) - 1
        keys, values = self._keys[chunk], self._values[chunk]
        i = bisect_right(keys, start << 1 | 1)
        last, value = keys[i - 1], values[i - 1]
        stop = (last >> 1) + 8 if last & 1 else end  # where a gap begins, unless another run does
        if stop <= start:
            value, stop = GAP_VALUE, end
        out.append((start, value))
        while True:
            j = bisect_left(keys, high, i)
            for key, value in zip(keys[i:j], values[i:j], strict=True):
                sector = key >> 1
                if stop < sector:
                    out.append((stop, GAP_VALUE))
                out.append((sector, value))
                stop = sector + 8 if key & 1 else end
            chunk += 1
            if chunk == len(firsts) or firsts[chunk] >= high:
                break
            keys, values, i = self._keys[chunk], self._values[chunk], 0
        if stop < end:
            out.append((stop, GAP_VALUE))

    def relieve(self, tail: int) -> list[int]:
        """Drop what ``tail`` has passed from the crowded chunk and from one other, each in its turn, so that the dead
        are never many more than the living. Return the keys of the crowded chunk."""
        if self._hand >= len(self._firsts):
            self._hand = 0
        self._drop_dead(self._hand, tail)
        self._join(self._hand)
        self._hand += 1
        chunk = self._chunk_of_crowded()
        self._drop_dead(chunk, tail)
        return self._keys[chunk].tolist()

    def _chunk_of_crowded(self) -> int:
        return bisect_right(self._firsts, self.crowded << 1) - 1

    def divide(self) -> None:
        """Cut the crowded chunk in two, unless there is room in it by now. Nothing is crowded afterwards."""
        chunk = self._chunk_of_crowded()
        keys, values = self._keys[chunk], self._values[chunk]
        if len(keys) > LIMIT * 3 // 4:
            half = len(keys) // 2
            self._firsts.insert(chunk + 1, keys[half] & ~1)
            self._keys.insert(chunk + 1, keys[half:])
            self._values.insert(chunk + 1, values[half:])
            self._cleaned.insert(chunk + 1, self._cleaned[chunk])
            self._plain.insert(chunk + 1, self._plain[chunk])
            self._keys[chunk], self._values[chunk] = keys[:half], values[:half]  # new ones, without spare room
            if not self._plain[chunk]:
                self._judge(chunk + 1)
                self._judge(chunk)
        self.crowded = -1

    def memory(self) -> int:
        """Bytes of RAM; takes a microsecond for every few thousand runs."""
        lists = (self._firsts, self._keys, self._values, self._cleaned, self._plain)
        return (
            sum(map(getsizeof, lists))
            + sum(map(getsizeof, self._keys))
            + sum(map(getsizeof, self._values))
            + 64 * len(self._firsts)
        )

    def _drop_dead(self, chunk: int, tail: int) -> None:
        """Drop what ``tail`` has passed from a chunk, if it is more than a little."""
        if self._cleaned[chunk] == tail:
            return
        self._cleaned[chunk] = tail
        keys, values = self._keys[chunk], self._values[chunk]
        sample = values[::_SAMPLE]
        if len(keys) > LIMIT // 2:
            kept = _alive(keys[::_SAMPLE], sample, tail)
            if 4 * (kept.count(GAP_VALUE) - sample.count(GAP_VALUE)) <= len(sample) - sample.count(GAP_VALUE):
                return
        alive = _alive(keys, values, tail)
        if alive == values.tolist():
            return
        self._keys[chunk], self._values[chunk] = _compact(keys, alive)
        self._judge(chunk)

    def _judge(self, chunk: int) -> None:
        """Find out whether a chunk is plain."""
        keys = self._keys[chunk]
        others = keys.tobytes()[8 + _LOW :: 8].translate(None, _SHORT)
        self._plain[chunk] = not others and not self._following(chunk, len(keys)) & 14

    def _join(self, chunk: int) -> None:
        """Put the next chunk into this one if both are short."""
        if chunk + 1 < len(self._firsts) and len(self._keys[chunk]) + len(self._keys[chunk + 1]) < LIMIT // 2:
            # One that begins with a gap isn't plain any more.
            self._plain[chunk] &= self._plain.pop(chunk + 1) and bool(self._keys[chunk + 1][0] & 1)
            del self._firsts[chunk + 1]
            self._cleaned[chunk] = self._cleaned.pop(chunk + 1)
            self._keys[chunk] += self._keys.pop(chunk + 1)
            self._values[chunk] += self._values.pop(chunk + 1)


def _alive(keys: "array[int]", values: "array[int]", tail: int) -> list[int]:
    """The values, with a gap in place of each that ``tail`` has passed."""
    data, zero = tail + BIAS, tail + ZERO_BIT
    return [
        value if data <= value + (key >> 1 << 9) < ZERO_BIT or value >= zero else GAP_VALUE
        for key, value in zip(keys, values, strict=True)
    ]


def _compact(keys: "array[int]", values: list[int]) -> "tuple[array[int], array[int]]":
    """The fewest boundaries that say the same, but that the first one stays where it is."""
    fewer, theirs = _column(()), _column(())
    last, before = -1, -1
    for key, value in zip(keys, values, strict=True):
        if value == GAP_VALUE:
            start = key & ~1
            if before == GAP_VALUE:
                continue
            if start - last == 16 and not start & 14:
                # A slot that lay in zeroes, which are gone now, stands alone.
                fewer[-1] = last | 1
                before = GAP_VALUE
                continue
            fewer.append(start)
        elif key & 1 or value != before:
            fewer.append(key)
        else:
            continue
        theirs.append(value)
        last, before = fewer[-1], GAP_VALUE if key & 1 else value
    return fewer, theirs
