"""Where a log ends: the scan that follows it from the tail.

Owns which record may follow which, and what ends a log or proves it corrupt. Pure: it must not know media, indexes, or
what is done with the records.

No pointer to the head is kept. Beginning at the superblock's tail, a record is taken when its checksums hold, its LSN
is the next, it is of an incarnation that can be there, its generation is not below the one before, and it ends within
the ring. The first that does not fit is a *break*, and nothing behind it is taken. It is the log's end, unless
something proves that the record missing there was durable: then it is corruption, and nothing is recovered.

Four rules make that sound.

1. **Record n is acknowledged only when all before it are as durable as it.** What a crash leaves of the records that
   were not durable yet is any subset, each of them whole, torn or absent. Those before the first missing one are taken,
   acknowledged or not; those behind it were not acknowledged, and are not taken.
2. **A failed append leaves no hole.** Its place becomes a VOID of the same LSN and size, durable before anything behind
   it is acknowledged, or the log ends there for good. A crash before the VOID is durable leaves the failed record,
   whole (it is taken; nobody was told that it is not there), or a break, with nothing acknowledged behind it.
3. **Every recovery raises the incarnation.** It makes durable what it took, then a superblock with the next incarnation
   whose durable LSN is that of the last record taken, and appends only then. So a record up to the superblock's durable
   LSN is of an incarnation not below its predecessor's, and one beyond it is of the superblock's incarnation, no
   other. With 10 torn and 11 whole but not acknowledged, and 9 the last that is taken, a crash

   - before the new superblock is durable leaves 9, a break, 11: the next recovery finds the same;
   - between it and the new 10 the same, though now even an old 10 would not be taken;
   - while the new 10 is stored: the new 10, a torn one, or an old header before new data, which together may well make
     the old 10 whole, where the new one repeats the old one's write. That one is of the old incarnation: a break;
   - after the new 10: it, and behind it the old 11, which has the next LSN but the old incarnation: a break.

   Incarnations that only never fall would not do: in the third case old 10 and old 11 follow 9 without a fall.
4. **Superblocks and records carry a lower bound of what is durable**, known when they were written. A break at or below
   the superblock's is corruption. So it is when a valid record of this pool lies behind the break and carries a bound
   at or above the missing LSN, or an incarnation above the superblock's (a stale one is in use): what such a record
   says stays true for ever, wherever it lies. It is looked for in what follows the break, as far as the largest record
   may reach, and on from every valid record found there. A mere crash leaves no such witness: all records behind a
   record that was not durable were written when it was not.

The tail moves by a superblock that is durable before its space is used again, so the records between the newest
durable tail and the head are never overwritten; older ones in the ring have lower LSNs and end a scan. LSNs are never
used twice but for rule 3's, and the checksums are salted with the pool's uuid: neither a copy of the log kept inside
the log's own data, nor another pool's records, can continue it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from fusecache.api import Buffer
from fusecache.api.errors import CorruptState
from fusecache_rwl.format import (
    ALIGNMENT,
    HEADER_SIZE,
    MAX_DATA,
    Record,
    RecordType,
    data_good,
    decode,
    record_size,
)
from fusecache_rwl.superblock import Superblock

_WINDOW: Final = 2 << 20
"""Bytes read at once."""
_REACH: Final = record_size(MAX_DATA)
"""How far behind a break the next record may begin, in bytes."""
_FILLERS: Final = (RecordType.PAD, RecordType.VOID)
_DATA: Final = RecordType.DATA
_SYNC: Final = RecordType.SYNC


class Scanned(NamedTuple):
    """A record of the log, its checksums verified.

    Attributes:
        position: the log position of its header.
        size: the bytes of the ring that it takes.
    """

    record: Record
    position: int
    size: int


@dataclass(frozen=True, slots=True)
class Head:
    """Where the log ends.

    Attributes:
        position: the log position of the record to come.
        lsn: of the record to come; all before it were found.
        generation: of the last record but PAD and VOID; the superblock's written-back one where that is higher.
    """

    position: int
    lsn: int
    generation: int


def scan(superblock: Superblock, ring_size: int, read: Callable[[int, int], Buffer]) -> Iterator[Scanned | Head]:
    """Yield the log's records in the order of their LSNs, and last its head. Nothing is written.

    To append at the head takes two steps more, in this order, each durable: all that was yielded, then a superblock
    with the next incarnation and, as its durable LSN, the head's less 1.

    Args:
        ring_size: in bytes; a multiple of 4096.
        read: called with a log position and a length in bytes, at most 2 MiB, that never cross the ring's end; returns
            exactly so many bytes, valid until it is called again. What it raises is passed on.

    Raises:
        CorruptState: the log breaks where it was durable; the message names the LSN that is missing.
    """
    ring = _Ring(superblock, ring_size, read)
    position, lsn = superblock.tail_position, superblock.tail_lsn
    incarnation, generation, lowest = 1, superblock.written_back, 1
    size = 0
    while True:
        record = ring.header(position)
        if lsn > superblock.durable_lsn:
            incarnation = superblock.incarnation
        if (
            record is None
            or record.lsn != lsn
            or not incarnation <= record.incarnation <= superblock.incarnation
            or not ring.holds(record, position, size := record_size(record.data_length))
        ):
            break
        incarnation = record.incarnation
        # A PAD or VOID changes nothing, so it belongs to no generation.
        if record.type not in _FILLERS:
            if record.generation < lowest:
                break
            lowest = record.generation + (record.type is _SYNC)
            generation = max(generation, record.generation)
        yield Scanned(record, position, size)
        position += size
        lsn += 1
    ring.check_end(position, lsn)
    yield Head(position, lsn, generation)


class _Ring:
    """Reads a ring a window at a time, from the tail once around."""

    def __init__(self, superblock: Superblock, ring_size: int, read: Callable[[int, int], Buffer]) -> None:
        self._superblock = superblock
        self._uuid = superblock.uuid
        self._ring_size = ring_size
        self._end = superblock.tail_position + ring_size
        self._read = read
        self._start = 0
        self._window = memoryview(b"")

    def header(self, position: int) -> Record | None:
        """Return the valid record at a position; None where there is none, or the ring is through."""
        return decode(self._uuid, self._view(position, HEADER_SIZE)) if position < self._end else None

    def holds(self, record: Record, position: int, size: int) -> bool:
        """Tell whether the ring has all of a record, which takes *size* bytes, and its data are right."""
        if position + size > self._end or position % self._ring_size + size > self._ring_size:
            return False
        if record.type is not _DATA:
            return True
        return data_good(record, self._view(position + HEADER_SIZE, record.data_length))

    def check_end(self, position: int, lsn: int) -> None:
        """Raise CorruptState where the record missing at a break is known to have been durable."""
        known = max(self._superblock.durable_lsn, self._superblock.tail_lsn - 1)
        where = f"the log breaks at LSN {lsn}, position {position}"
        if lsn <= known:
            raise CorruptState(f"{where}; it was durable up to LSN {known}")
        limit = position + _REACH
        while position <= limit:
            record = self.header(position)
            if record is None:
                position += ALIGNMENT
                continue
            if record.durable_lsn >= lsn:
                raise CorruptState(f"{where}; record {record.lsn} says that LSN {record.durable_lsn} was durable")
            if record.incarnation > self._superblock.incarnation:
                text = f"the superblock is of incarnation {self._superblock.incarnation}"
                raise CorruptState(f"{where}; {text}, record {record.lsn} of {record.incarnation}")
            if record.lsn > lsn:
                position += record_size(record.data_length)
                limit = position + _REACH
            else:
                position += ALIGNMENT

    def _view(self, position: int, length: int) -> memoryview:
        at = position - self._start
        if at < 0 or at + length > len(self._window):
            room = self._ring_size - position % self._ring_size
            self._window = memoryview(self._read(position, min(_WINDOW, room)))
            self._start, at = position, 0
        return self._window[at : at + length]
