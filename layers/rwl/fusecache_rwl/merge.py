"""From the records of a generation to the requests that write it back.

Owns how overwrites cancel and neighbours join. It must not know where records come from, who carries the moves out, or
in what order. Pure.

The moves of one plan are disjoint, so they may be carried out in any order and at once; all of them done is the same
as all records done one after the other. What a crash leaves below is some subset of them, in part or whole: the
generation stays dirty and is planned anew from the same records, with the same moves.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush, merge
from itertools import chain, islice
from typing import Final, NamedTuple, TypeAlias

from fusecache_rwl.format import HEADER_SIZE, RecordType
from fusecache_rwl.ledger import DirtyRecord

_DATA: Final = RecordType.DATA

SLICE: Final = 4096
"""Records handled between two chances for others to run: about 4 ms."""

_END: Final = 1 << 63
_NUMBER_BITS: Final = 32
_NUMBER_MASK: Final = (1 << _NUMBER_BITS) - 1
_KINDS: Final = {int(kind): kind for kind in (RecordType.DATA, RecordType.DISCARD, RecordType.ZERO)}

Segment: TypeAlias = tuple[int, int, int]
"""``[start, end)`` of the image, and the number of the newest record there."""


class Move(NamedTuple):
    """One request to the level below.

    Attributes:
        kind: DATA, DISCARD or ZERO.
        offset, length: of the image.
        pieces: where the data lies, in order: length, and log position of the first byte. They make up *length*. Empty
            for DISCARD and ZERO, which may be as long as the image.
    """

    kind: RecordType
    offset: int
    length: int
    pieces: tuple[tuple[int, int], ...] = ()


def plan(records: Iterable[DirtyRecord], preferred: int, block: int = 512) -> list[Move]:
    """Return the moves of *records*, in order of image offset. About 2 µs for a record: see :func:`plan_slices`.

    Args:
        records: of one generation, or of a group's generations one after the other, in the order of the log.
        preferred: bytes up to which neighbours join, a power of two. No move with data crosses a multiple of it.
        block: the least value *preferred* counts for; offsets of records are multiples of it.
    """
    return [move for move in plan_slices(records, preferred, block) if move is not None]


def plan_slices(records: Iterable[DirtyRecord], preferred: int, block: int = 512) -> Iterator[Move | None]:
    """Yield what :func:`plan` returns, and None whenever :data:`SLICE` records were handled: others may run then.

    *records* must not change meanwhile: those of sealed generations do not.
    """
    records = iter(records)
    kinds = bytearray()
    ends = array("Q")
    # Log position of the data less the image offset: one addition gives the log position of any byte.
    shifts = array("q")
    # One number for offset and order sorts faster than a pair.
    runs: list[list[int]] = []
    while batch := list(islice(records, SLICE)):
        run = []
        for number, (kind, offset, length, position) in enumerate(batch, len(kinds)):
            kinds.append(kind)
            ends.append(offset + length)
            shifts.append(position + HEADER_SIZE - offset)
            run.append(offset << _NUMBER_BITS | number)
        run.sort()
        runs.append(run)
        yield None
    # Merged while they are used: one sort of everything would hold up the loop.
    yield from _joined(_newest(merge(*runs), ends), kinds, shifts, max(preferred, block))


def _newest(starts: Iterable[int], ends: Sequence[int]) -> Iterator[Segment | None]:
    """Yield disjoint segments in order of offset, each with its newest record; a record may be cut without need."""
    # A heap, newest first, of (number negated, end): records that began and may still be seen. Those that ended stay
    # in it until they come up.
    begun: list[tuple[int, int]] = []
    at = handled = 0
    for key in chain(starts, (_END << _NUMBER_BITS,)):
        start = key >> _NUMBER_BITS
        while begun and at < start:
            newest, end = begun[0]
            if end > start:
                yield at, start, -newest
                break
            if end > at:
                yield at, end, -newest
                at = end
            heappop(begun)
            handled += 1
            if handled >= SLICE:
                handled = 0
                yield None
        if start == _END:
            return
        at = start
        number = key & _NUMBER_MASK
        end = ends[number]
        while begun and begun[0][0] > -number and begun[0][1] <= end:
            heappop(begun)
        if not begun or begun[0][0] > -number or begun[0][1] < end:
            heappush(begun, (-number, end))
        handled += 1
        if handled >= SLICE:
            handled = 0
            yield None


def _joined(
    segments: Iterable[Segment | None], kinds: bytearray, shifts: Sequence[int], window: int
) -> Iterator[Move | None]:
    """Yield the moves of *segments*."""
    kind, offset, at = 0, 0, -1
    pieces: list[tuple[int, int]] = []
    for segment in segments:
        if segment is None:
            yield None
            continue
        start, end, number = segment
        same = start == at and kinds[number] == kind
        if kinds[number] != _DATA:
            if not same:
                if at > offset:
                    yield Move(_KINDS[kind], offset, at - offset, tuple(pieces))
                kind, offset, pieces = kinds[number], start, []
            at = end
            continue
        shift = shifts[number]
        while start < end:
            stop = min(end, start - start % window + window)
            if not same or start % window == 0:
                if at > offset:
                    yield Move(_KINDS[kind], offset, at - offset, tuple(pieces))
                kind, offset, pieces, same = _DATA, start, [], True
            elif pieces and sum(pieces[-1]) == start + shift:
                # The same record goes on.
                start -= pieces.pop()[0]
            pieces.append((stop - start, start + shift))
            start = at = stop
    if at > offset:
        yield Move(_KINDS[kind], offset, at - offset, tuple(pieces))
