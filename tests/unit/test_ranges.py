"""Range arithmetic agrees with sets of bytes."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fusecache.api.ranges import (
    Extent,
    ExtentKind,
    Span,
    align_down,
    align_up,
    is_aligned,
    merge_extents,
    overlaps,
    subtract,
    widen,
)

END = 64
ALIGNMENTS = st.sampled_from([1, 2, 4, 8, 16])
SPANS = st.tuples(st.integers(0, END), st.integers(0, END)).map(lambda ends: Span(*ends))
"""Empty and reversed ones included."""


def bytes_of(span: Span) -> set[int]:
    """Return the offsets that *span* covers."""
    return set(range(span.start, span.end))


@given(value=st.integers(0, 1 << 70), bits=st.integers(0, 40))
def test_aligning_finds_the_nearest_multiples(value: int, bits: int) -> None:
    alignment = 1 << bits
    down, up = align_down(value, alignment), align_up(value, alignment)
    assert down <= value <= up
    assert down % alignment == up % alignment == 0
    assert value - down < alignment
    assert up - value < alignment


@given(a=SPANS, b=SPANS)
def test_spans_overlap_where_they_share_a_byte(a: Span, b: Span) -> None:
    if a.start < a.end and b.start < b.end:
        assert overlaps(a, b) == bool(bytes_of(a) & bytes_of(b))
    assert overlaps(a, b) == overlaps(b, a)


@given(size=st.integers(1, END), alignment=ALIGNMENTS, data=st.data())
def test_widening_gives_the_smallest_aligned_range_around_a_request(
    size: int, alignment: int, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - offset))
    span = widen(offset, length, alignment, size)
    units = {byte // alignment for byte in range(offset, offset + length)}
    assert bytes_of(span) == {byte for byte in range(size) if byte // alignment in units}
    assert is_aligned(span.start, span.end - span.start, alignment, size)
    assert is_aligned(offset, length, alignment, size) == (span == Span(offset, offset + length))


@given(whole=SPANS, parts=st.lists(SPANS, max_size=8))
def test_subtracting_leaves_what_no_part_covers(whole: Span, parts: list[Span]) -> None:
    parts = sorted(part for part in parts if part.start < part.end)
    left = list(subtract(whole, parts))
    assert all(span.start < span.end for span in left)
    assert all(a.end < b.start for a, b in pairwise(left))
    assert set().union(*map(bytes_of, left)) == bytes_of(whole).difference(*map(bytes_of, parts))


@given(start=st.integers(0, 9), runs=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(ExtentKind))))
def test_merging_extents_changes_no_byte_and_leaves_no_neighbours_alike(
    start: int, runs: list[tuple[int, ExtentKind]]
) -> None:
    extents, at = [], start
    for length, kind in runs:
        extents.append(Extent(at, length, kind))
        at += length
    merged = list(merge_extents(extents))
    assert [kind for extent in merged for kind in [extent.kind] * extent.length] == [
        kind for length, kind in runs for kind in [kind] * length
    ]
    assert all(a.end == b.offset and a.kind is not b.kind for a, b in pairwise(merged))
    assert all(extent.length for extent in merged)
    assert not merged or merged[0].offset == start
