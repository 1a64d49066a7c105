"""The picture of dirty ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusecache_rwl.picture import picture


def test_cells_are_none_some_or_all_dirty() -> None:
    assert picture([(0, 200), (250, 10), (700, 100)], 800, width=4, rows=2) == ["##+.", "...#"]


def test_a_clean_image_has_nothing_in_it() -> None:
    assert picture([], 16 << 40) == ["." * 64] * 8


def test_a_wholly_dirty_image_is_full_however_its_size_divides() -> None:
    assert picture([(0, 333), (333, (1 << 40) - 331)], (1 << 40) + 1) == ["#" * 64] * 8


def test_one_dirty_byte_of_a_huge_image_is_seen() -> None:
    assert picture([((1 << 60) - 1, 1)], 1 << 60, width=3, rows=2) == ["...", "..+"]


def test_overlapping_extents_count_once() -> None:
    assert picture([(0, 60), (0, 60), (30, 20)], 100, width=1, rows=1) == ["+"]


def test_what_lies_beyond_the_image_is_not_drawn() -> None:
    assert picture([(90, 1000), (2000, 5)], 100, width=10, rows=1) == [".........#"]


def test_an_image_smaller_than_the_picture_has_a_cell_for_each_byte() -> None:
    assert picture([(1, 1), (4, 1)], 5, width=3, rows=8) == [".#.", ".#"]
    assert picture([], 0) == []


@pytest.mark.parametrize(("size", "width", "rows"), [(-1, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_impossible_measures_are_refused(size: int, width: int, rows: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        picture([], size, width, rows)


@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 40))),
    st.integers(1, 80),
    st.integers(1, 9),
    st.integers(1, 4),
)
def test_each_cell_tells_the_truth_about_its_bytes(
    extents: list[tuple[int, int]], size: int, width: int, rows: int
) -> None:
    dirty = [any(offset <= byte < offset + length for offset, length in extents) for byte in range(size)]
    count = min(size, width * rows)
    parts = [dirty[cell * size // count : (cell + 1) * size // count] for cell in range(count)]
    cells = "".join("#" if all(part) else "+" if any(part) else "." for part in parts)
    assert picture(extents, size, width, rows) == [cells[at : at + width] for at in range(0, count, width)]
