"""Bytes with holes: the content of a volume in memory.

Owns the bytes and which of them take space. Pure; it must not know volumes, requests or trio.
"""

from collections.abc import Sequence

from fusecache.api.ranges import Extent, ExtentKind, Span, merge_extents, subtract


class SparseBytes:
    """A byte array that remembers, byte for byte, what was never written or was punched out.

    Ranges are not checked here; whoever owns the content does that.
    """

    def __init__(self, size: int) -> None:
        self._bytes = bytearray(size)
        self._holes = [Span(0, size)]

    @property
    def size(self) -> int:
        """The length."""
        return len(self._bytes)

    @property
    def allocated(self) -> int:
        """How many bytes take space."""
        return self.size - sum(hole.end - hole.start for hole in self._holes)

    def read(self, offset: int, length: int) -> bytes:
        """Return a copy of the range."""
        return bytes(self._bytes[offset : offset + length])

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Put *data* at *offset*; zeroes are data too."""
        span = Span(offset, offset + len(data))
        self._bytes[span.start : span.end] = data
        self._holes = _without(self._holes, span)

    def punch(self, offset: int, length: int) -> None:
        """Make a hole of the range."""
        span = Span(offset, offset + length)
        self._bytes[span.start : span.end] = bytes(length)
        self._holes = sorted([*_without(self._holes, span), span])

    def resize(self, size: int) -> None:
        """Cut, or add a hole at the end."""
        old = self.size
        # A new array: views of the old one may still be about, and they forbid resizing it in place.
        self._bytes = self._bytes[:size] + bytes(max(0, size - old))
        self._holes = _without(self._holes, Span(size, old)) if size < old else [*self._holes, Span(old, size)]

    def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Describe the range exactly, neighbours of one kind joined."""
        whole = Span(offset, offset + length)
        data = list(subtract(whole, self._holes))
        runs = [Extent(span.start, span.end - span.start, ExtentKind.DATA) for span in data]
        runs += [Extent(span.start, span.end - span.start, ExtentKind.HOLE) for span in subtract(whole, data)]
        return list(merge_extents(sorted(runs, key=lambda run: run.offset)))


def _without(holes: Sequence[Span], span: Span) -> list[Span]:
    return [piece for hole in holes for piece in subtract(hole, (span,))]
