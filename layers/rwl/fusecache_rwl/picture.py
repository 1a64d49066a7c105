"""A picture of which parts of an image are dirty, in characters.

Owns the cells and their signs. Pure: it must not know logs, pools or what made the ranges dirty.
"""

from collections.abc import Iterable, Iterator
from typing import Final

NONE: Final = "."
SOME: Final = "+"
ALL: Final = "#"


def picture(extents: Iterable[tuple[int, int]], size: int, width: int = 64, rows: int = 8) -> list[str]:
    """Draw an image as at most *rows* lines of *width* cells, the last line perhaps shorter.

    Cells follow each other through the image and are of one size, to a byte; there are no more of them than bytes. A
    cell is ``.`` where none of its bytes is dirty, ``#`` where all are, ``+`` otherwise.

    Args:
        extents: offset and length, in bytes, of what is dirty; in any order. They may overlap, and reach beyond the
            image: what lies there is not drawn.
        size: of the image, in bytes.

    Raises:
        ValueError: *size* is below 0, *width* or *rows* below 1.
    """
    if size < 0 or width < 1 or rows < 1:
        raise ValueError(f"found size {size}, width {width}, rows {rows}; allowed: at least 0, 1 and 1")
    count = min(size, width * rows)
    dirty = [0] * count
    for start, end in _merged(extents, size):
        cell = _cell_of(start, size, count)
        while cell < count and (begin := cell * size // count) < end:
            dirty[cell] += min(end, (cell + 1) * size // count) - max(start, begin)
            cell += 1
    bounds = [cell * size // count for cell in range(count + 1)] if count else []
    signs = "".join(_sign(dirty[cell], bounds[cell + 1] - bounds[cell]) for cell in range(count))
    return [signs[at : at + width] for at in range(0, count, width)]


def _merged(extents: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """Yield beginnings and ends within the image, in order, none touching the next."""
    within = sorted((offset, min(size, offset + length)) for offset, length in extents if length and offset < size)
    if not within:
        return
    start, end = within[0]
    for next_start, next_end in within[1:]:
        if next_start > end:
            yield start, end
            start = next_start
        end = max(end, next_end)
    yield start, end


def _cell_of(byte: int, size: int, count: int) -> int:
    """Return the cell that a byte lies in."""
    return ((byte + 1) * count - 1) // size


def _sign(dirty: int, whole: int) -> str:
    return NONE if not dirty else ALL if dirty == whole else SOME
