"""What is dirty, generation by generation.

Owns the records that are not yet durably in the level below, in the order of the log. It must not know what they mean
for reads (that is the index), how they are written back, or whether they come from appends or from a recovery. Pure.

A *generation* is what was written between two flushes, or a part of that where it is much. One is open and takes
records; once it is sealed it can be written back. One without records is never sealed. A *group* is several sealed
generations that go below as one.

**What a crash leaves.** Nothing of this is durable. A recovery adds the same records again, from the superblock's
tail on, and finds the same generations: :meth:`Ledger.written_back` is called only when a superblock that says so is
durable. Of the group in flight the log has a record.
"""

from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Final, NamedTuple, TypeAlias

from fusecache_rwl.format import HEADER_SIZE, RecordType

_DATA: Final = int(RecordType.DATA)

_LEAST: Final = 1 << 20
_MOST: Final = 16 << 20
_PART: Final = 8

DirtyRecord: TypeAlias = tuple[int, int, int, int]
"""Type (:class:`RecordType`: DATA, DISCARD or ZERO), image offset, image length, log position of the header."""


def generation_size(ring: int) -> int:
    """Return the bytes that a generation should have at the most in a ring of that size.

    Small, as all of it is free at once and writers wait for that; but many times what is under way at once.
    """
    return min(max(_LEAST, ring // _PART), _MOST)


class Group(NamedTuple):
    """Generations that go below as one, by their numbers: *first*, *last*, and all between that there are."""

    first: int
    last: int


class Generation:
    """The records of one generation: 25 bytes of memory for each.

    Attributes:
        number: 1 is an image's first.
        oldest: time of the first record, as given to :attr:`Ledger.add`.
        end_position, end_lsn: of a sealed one, log position and LSN of the first record after it: where recovery begins
            once it is written back.
        dirty_bytes: its part of :attr:`Ledger.dirty_bytes`.
    """

    __slots__ = (
        "_lengths",
        "_offsets",
        "_positions",
        "_types",
        "dirty_bytes",
        "end_lsn",
        "end_position",
        "number",
        "oldest",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.oldest = 0.0
        self.end_position = self.end_lsn = self.dirty_bytes = 0
        self._types = bytearray()
        self._offsets = array("Q")
        self._lengths = array("Q")
        self._positions = array("Q")

    def __len__(self) -> int:
        return len(self._types)

    def add(self, type: int, offset: int, length: int, position: int, now: float) -> None:
        """Take a record in, as :attr:`Ledger.add` says."""
        if not self._types:
            self.oldest = now
        self._types.append(type)
        self._offsets.append(offset)
        self._lengths.append(length)
        self._positions.append(position)
        self.dirty_bytes += length if type == _DATA else HEADER_SIZE

    def record_at(self, position: int) -> tuple[int, int, int] | None:
        """Return image offset, image length and log position of the last record that begins at or before *position*."""
        number = bisect_right(self._positions, position) - 1
        if number < 0:
            return None
        return self._offsets[number], self._lengths[number], self._positions[number]

    @property
    def length(self) -> int:
        """Bytes of the image that the records change, one by one."""
        return sum(self._lengths)

    @property
    def records(self) -> Iterator[DirtyRecord]:
        """The records in the order of the log. None is added while they are read, unless the generation is open."""
        return zip(self._types, self._offsets, self._lengths, self._positions, strict=True)


class Ledger:
    """The open generation and the sealed ones.

    Args:
        first: number of the open generation: that after the last one written back.
        most: bytes of the log that a generation should have at the most.

    Attributes:
        full_at: log position from which on the open generation should be sealed: all that is in it is free only when
            all of it is below. Log positions begin at 0; where they do not, the first generation is a short one.
        open_generation: the number that records appended now carry.
        group: the group in flight: some of it may be below, and not all of it is. None where there is none.
        add: puts a record that holds dirty data into the open generation, ``add(type, offset, length, position, now)``:
            DATA, DISCARD or ZERO; *offset* and *length* of the image; log *position* of its header; the time *now*, for
            its age (after a recovery that of the recovery: the log has no times). On the hot path, so it is the
            generation's own.
    """

    def __init__(self, first: int = 1, most: int = 1 << 62) -> None:
        self._begin(first)
        self._most = self.full_at = most
        self.group: Group | None = None
        self._sealed: deque[Generation] = deque()
        self._sealed_bytes = 0
        self._sealed_records = 0

    def _begin(self, number: int) -> None:
        self._open = Generation(number)
        self.open_generation = number
        self.add = self._open.add

    def seal(self, position: int, lsn: int) -> bool:
        """Close the open generation and open the next.

        Args:
            position, lsn: log position and LSN of the first record that belongs to it no more.

        Returns:
            False when the open generation has no record; then it stays open.
        """
        generation = self._open
        if not len(generation):
            return False
        generation.end_position = position
        generation.end_lsn = lsn
        self._sealed.append(generation)
        self._sealed_bytes += generation.dirty_bytes
        self._sealed_records += len(generation)
        self._begin(generation.number + 1)
        self.full_at = position + self._most
        return True

    def skip_to(self, number: int) -> None:
        """Give the open generation, which has no record yet, a higher *number*: the log has none of those between.

        Raises:
            ValueError: it has records, or *number* was used; nothing has changed.
        """
        if len(self._open) or number < self.open_generation:
            raise ValueError(f"found {number} for generation {self.open_generation} of {len(self._open)} records")
        self._begin(number)

    def record_at(self, position: int) -> tuple[int, int, int] | None:
        """Return image offset, image length and log position of the header of the dirty record around a log position.

        None where no dirty record begins before it. The caller knows that a record is there.
        """
        sealed = self._sealed
        if sealed and position < sealed[0].end_position:
            return sealed[0].record_at(position)
        number = bisect_right(sealed, position, key=_end_position)
        return (sealed[number] if number < len(sealed) else self._open).record_at(position)

    def oldest_sealed(self, skip: int = 0) -> Generation | None:
        """Return the oldest sealed generation, but for the first *skip* of them; None where there is none."""
        return self._sealed[skip] if len(self._sealed) > skip else None

    def oldest_within(self, most_bytes: int, most_records: int) -> Sequence[Generation]:
        """Return the oldest sealed generations that have so many dirty bytes and records together at the most; the
        oldest of all whatever it has."""
        found: list[Generation] = []
        for generation in self._sealed:
            most_bytes -= generation.dirty_bytes
            most_records -= len(generation)
            if found and (most_bytes < 0 or most_records < 0):
                break
            found.append(generation)
        return found

    def sealed_until(self, last: int) -> Sequence[Generation]:
        """Return the sealed generations up to that number, the oldest first."""
        return list(takewhile(lambda generation: generation.number <= last, self._sealed))

    def written_back(self, generation: Generation) -> None:
        """Forget *generation*: its content is durable below, and a superblock that says so is durable too. With the
        last of the group in flight that group is forgotten.

        Raises:
            ValueError: it is not the oldest; nothing has changed.
        """
        if not self._sealed or self._sealed[0] is not generation:
            raise ValueError(f"found generation {generation.number}, allowed: the oldest that is sealed")
        self._sealed.popleft()
        self._sealed_bytes -= generation.dirty_bytes
        self._sealed_records -= len(generation)
        if self.group is not None and generation.number >= self.group.last:
            self.group = None

    def clear(self) -> None:
        """Forget everything. The number of the open generation stays, as none is used for two things."""
        self._sealed.clear()
        self.group = None
        self._sealed_bytes = self._sealed_records = 0
        self._begin(self.open_generation)
        self.full_at = self._most

    @property
    def open_records(self) -> int:
        """Records of the open generation."""
        return len(self._open)

    @property
    def records(self) -> int:
        """Records of all generations."""
        return self._sealed_records + len(self._open)

    @property
    def dirty_bytes(self) -> int:
        """Bytes that are not yet durable below; 0 exactly when nothing is dirty.

        Every record counts, those too that a later one has overwritten: then the number depends on the log alone, is
        the same after a recovery, and is what write-back frees. DATA counts its length in the image. DISCARD and ZERO
        count what they take in the log: a discarded image of 16 TiB holds nothing, but it is not clean.
        """
        return self._sealed_bytes + self._open.dirty_bytes

    @property
    def oldest_time(self) -> float | None:
        """Time of the oldest record; None when nothing is dirty."""
        oldest = self._sealed[0] if self._sealed else self._open
        return oldest.oldest if len(oldest) else None


def _end_position(generation: Generation) -> int:
    return generation.end_position
