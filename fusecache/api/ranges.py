"""Arithmetic on half-open byte ranges, as pure functions.

Owns spans ``[start, end)``, extents and alignment. It must not know volumes, I/O or trio. All offsets and lengths are
in bytes and not negative.
"""

import enum
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class ExtentKind(enum.Enum):
    """What a reader finds in an extent."""

    DATA = "data"
    """Bytes that may be anything, zeroes included."""
    HOLE = "hole"
    """Reads as zeroes and takes no space."""


class Extent(NamedTuple):
    """A run of one kind: *length* bytes from *offset*."""

    offset: int
    length: int
    kind: ExtentKind

    @property
    def end(self) -> int:
        """The first byte after the run."""
        return self.offset + self.length


class Span(NamedTuple):
    """The half-open range ``[start, end)``; empty when ``start >= end``."""

    start: int
    end: int


def align_down(value: int, alignment: int) -> int:
    """Return the largest multiple of *alignment* that is not above *value*."""
    return value - value % alignment


def align_up(value: int, alignment: int) -> int:
    """Return the smallest multiple of *alignment* that is not below *value*."""
    return value + -value % alignment


def overlaps(a: Span, b: Span) -> bool:
    """Say whether *a* and *b* share a byte."""
    return a.start < b.end and b.start < a.end


def is_aligned(offset: int, length: int, alignment: int, size: int) -> bool:
    """Say whether a request keeps to *alignment*; one that ends at *size* counts as aligned at its end."""
    return offset % alignment == 0 and (length % alignment == 0 or offset + length == size)


def widen(offset: int, length: int, alignment: int, size: int) -> Span:
    """Return the smallest aligned span around a request, cut at *size*."""
    return Span(align_down(offset, alignment), min(align_up(offset + length, alignment), size))


def subtract(whole: Span, parts: Iterable[Span]) -> Iterator[Span]:
    """Yield, in order, what of *whole* no part covers.

    *parts* are sorted by start; they may touch or overlap each other and reach outside *whole*.
    """
    at = whole.start
    for part in parts:
        if part.start >= whole.end:
            break
        if part.start > at:
            yield Span(at, part.start)
        at = max(at, part.end)
    if at < whole.end:
        yield Span(at, whole.end)


def merge_extents(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Yield *extents* with neighbours of one kind joined; empty ones vanish. The input is in order and without gaps."""
    run: Extent | None = None
    for extent in extents:
        if not extent.length:
            continue
        if run is not None and run.kind is extent.kind:
            run = Extent(run.offset, run.length + extent.length, run.kind)
            continue
        if run is not None:
            yield run
        run = extent
    if run is not None:
        yield run
