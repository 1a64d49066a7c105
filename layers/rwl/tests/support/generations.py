"""Generations, and the order that what is below them is judged by.

Owns the image after each generation, and whether an image is a point of the order: sector by sector, all generations
up to one, and some sectors of the next. Pure; it must not know layers, nor how the generations get below.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from fusecache_rwl.format import RecordType
from layers.rwl.tests.support.bench import BLOCK, block
from layers.rwl.tests.support.timeline import SECTOR

_DATA: Final = RecordType.DATA


class Change(NamedTuple):
    """One request of a generation.

    Attributes:
        at, blocks: where it begins, and how long it is.
        number: content of the first block; the next one has the next.
        kind: DATA, DISCARD or ZERO.
    """

    at: int
    number: int = 0
    blocks: int = 1
    kind: RecordType = _DATA

    @property
    def data(self) -> bytes:
        """What the range reads as."""
        if self.kind is not _DATA:
            return bytes(self.blocks * BLOCK)
        return b"".join(block(self.number + index) for index in range(self.blocks))


def writes(blocks: Mapping[int, int]) -> Sequence[Change]:
    """Return a generation: block and content of each write."""
    return [Change(at, number) for at, number in blocks.items()]


def discard(at: int, blocks: int = 1) -> Change:
    """Return a discard of blocks."""
    return Change(at, 0, blocks, RecordType.DISCARD)


def zeroes(at: int, blocks: int = 1) -> Change:
    """Return zeroes over blocks."""
    return Change(at, 0, blocks, RecordType.ZERO)


@dataclass(frozen=True)
class Generations:
    """Generations that go below one after the other.

    Attributes:
        name: of a test's parameter.
        each: the changes of each.
        blocks: of the image, as far as it is looked at.
    """

    name: str
    each: Sequence[Sequence[Change]]
    blocks: int = 8

    @property
    def last(self) -> int:
        """How many there are."""
        return len(self.each)

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self.blocks * BLOCK

    @cached_property
    def states(self) -> Sequence[bytes]:
        """The image after each generation; first that before all."""
        found = [bytes(self.size)]
        for generation in self.each:
            image = bytearray(found[-1])
            for change in generation:
                image[change.at * BLOCK : (change.at + change.blocks) * BLOCK] = change.data
            found.append(bytes(image))
        return found

    def is_point(self, image: bytes, first: int, last: int | None = None) -> bool:
        """Say whether *image* is all generations up to g, and some of the next, for a g from *first* to *last*."""
        states = self.states
        return any(
            all(found in either for found, *either in zip(_sectors(image), _sectors(old), _sectors(new), strict=True))
            for g in range(first, min(self.last if last is None else last, self.last) + 1)
            for old, new in [(states[g], states[min(g + 1, self.last)])]
        )


def _sectors(image: bytes) -> Iterator[bytes]:
    return (image[at : at + SECTOR] for at in range(0, len(image), SECTOR))


OVERWRITES: Final = Generations(
    "each overwritten by the next",
    [writes(each) for each in ({0: 1, 2: 2}, {0: 3, 4: 4}, {2: 5, 4: 6, 6: 7}, {0: 8, 6: 9})],
)
"""None of its changes are neighbours, so each is a move of its own; no two generations can be kept together."""
ROWS: Final = Generations(
    "rows, then overwritten",
    [
        writes({0: 1}),
        writes({2: 2}),
        writes({4: 3}),
        # The first that is kept, the last, and what none of them has.
        writes({0: 4, 4: 5, 6: 6}),
        writes({2: 7}),
        writes({2: 8, 7: 9}),
        writes({1: 10}),
        writes({3: 11}),
        writes({1: 12, 5: 13}),
    ],
)
"""Rows of disjoint generations, of which the next one changes the oldest, the newest, or the one before it alone."""
PARTS: Final = Generations(
    "partly overwritten",
    [
        [Change(0, 1, blocks=3)],
        [Change(4, 4), Change(6, 5)],
        [Change(2, 6, blocks=2)],
        [Change(7, 8)],
        [Change(0, 9), Change(1, 10, blocks=2), Change(7, 12)],
        [Change(3, 13), Change(5, 14)],
        [Change(4, 15, blocks=2), Change(0, 17)],
    ],
)
"""Several blocks each, of which the next one changes some; neighbours and overwrites within a generation, too."""
CLEARED: Final = Generations(
    "discarded and zeroed",
    [
        writes({0: 1, 1: 2}),
        writes({2: 3}),
        [discard(4, 2)],
        [discard(0, 2), Change(6, 4)],
        writes({1: 5, 3: 6}),
        [zeroes(2, 4), Change(2, 7)],
        writes({7: 8}),
        [discard(6), zeroes(0)],
        writes({4: 9}),
        [discard(0, 8)],
        writes({0: 10}),
    ],
)
"""Discards and zeroes of what is kept, and kept ones that are written over."""
LARGE: Final = Generations(
    "large ones among small ones",
    [
        writes({0: 1}),
        writes({18: 2}),
        [Change(0, 100, blocks=17)],
        writes({3: 3}),
        writes({18: 4}),
        writes({3: 5, 0: 6}),
    ],
    blocks=20,
)
"""One has more than can be kept beside others, though what meets it comes next."""


def drawn(rng: random.Random, count: int = 10, blocks: int = 6) -> Generations:
    """Draw generations: mostly small ones, so that some can be kept together and others meet."""
    numbers = iter(range(1, 1 << 20))
    each = []
    for _ in range(count):
        changes = []
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            at = rng.randrange(blocks)
            length = min(rng.choice((1, 1, 2)), blocks - at)
            kind = rng.choice((_DATA, _DATA, _DATA, _DATA, RecordType.DISCARD, RecordType.ZERO))
            # The next block of this one has the next number.
            changes.append(Change(at, next(numbers) * 8, length, kind))
        each.append(changes)
    return Generations("drawn", each, blocks)
