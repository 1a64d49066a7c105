"""The space of the ring: where the next record goes, and what has to give way to it.

Owns the ring's head and its two tails as log positions, and the pins of reads. It must not know records, files or trio.
Pure; every method runs to its end on the loop's thread.

A log position only ever grows; its place in the ring is ``position % ring_size``. In order::

    clean_tail            tail                   head             clean_tail + ring_size
        |  written back,    |  dirty, or needed    |  free           |
        |  serves reads     |  by a recovery       |                 |

What lies below *clean_tail* is gone: its place may hold other bytes at any moment. The medium writes whole pages, so a
record takes everything up to the next multiple of 4096 after its end: nothing from *clean_tail* on lies there.

**What a crash leaves.** Nothing of this is durable, and nothing here orders anything. A recovery begins at the tail in
the newest superblock and finds the head by scanning, so :meth:`Space.retire` is called only when a superblock with that
tail is durable: before, the bytes between the old tail and the new one are still what a recovery reads.
"""

import sys
from typing import Final

PAGE: Final = 4096
"""Bytes that the medium writes at least, from a multiple of it."""

_NOTHING_PINNED: Final = sys.maxsize


class Space:
    """The ring's head and tails.

    Args:
        ring_size: bytes; a positive multiple of :data:`PAGE`.

    Attributes:
        head: log position of the next record, before any padding.
        tail: log position of the oldest byte that must stay.
        clean_tail: log position from which the ring still holds what was written there; may lie within a record. It
            changes with :meth:`reserve`, :meth:`drop_clean` and :meth:`reset`; what looks up positions compares with
            it.
    """

    __slots__ = ("_last_token", "_lowest_pin", "_pins", "_simple_end", "clean_tail", "head", "ring_size", "tail")

    def __init__(self, ring_size: int) -> None:
        if ring_size <= 0 or ring_size % PAGE:
            raise ValueError(f"found a ring of {ring_size} bytes, allowed: a positive multiple of {PAGE}")
        self.ring_size: Final = ring_size
        self.head = self.tail = self.clean_tail = 0
        self._pins: dict[int, int] = {}
        self._last_token = 0
        # Never above the lowest pin; below it until somebody has to know exactly.
        self._lowest_pin = _NOTHING_PINNED
        self._look_ahead()

    def reserve(self, size: int) -> tuple[int, int] | None:
        """Take the place of a record of *size* bytes (a multiple of 64), and move the head behind it.

        Returns:
            the bytes of padding in front of it, a multiple of 64, and the record's log position. The padding begins
            at the old head and ends at the ring's end: records never cross it. None where the record fits only if the
            tail moves or a pin goes; then nothing has changed. A record that is larger than the ring never fits.
        """
        head = self.head
        end = head + size
        if end <= self._simple_end:
            self.head = end
            return 0, head
        # The rest is for a record that meets the ring's end, clean data, or what has to stay.
        ring_size = self.ring_size
        room = ring_size - head % ring_size
        padding = 0 if size <= room else room
        end += padding
        lowest = (end + PAGE - 1 & -PAGE) - ring_size
        if lowest > self.clean_tail:
            if lowest > self.tail or (lowest > self._lowest_pin and lowest > self._find_lowest_pin()):
                return None
            self.clean_tail = lowest
        self.head = end
        self._look_ahead()
        return padding, end - size

    def pin(self, position: int) -> int:
        """Keep all from *position* on where it is, until :meth:`unpin` is called with the token returned.

        *position* is not below :attr:`clean_tail`; the caller has just looked it up.
        """
        if position < self._lowest_pin:  # noqa: PLR1730 - four times as fast as min()
            self._lowest_pin = position
        self._last_token = token = self._last_token + 1
        self._pins[token] = position
        return token

    def unpin(self, token: int) -> None:
        """Let go what :meth:`pin` keeps.

        Raises:
            KeyError: the token is not in use.
        """
        del self._pins[token]

    @property
    def pinned(self) -> bool:
        """Whether anything is."""
        return bool(self._pins)

    def retire(self, position: int) -> None:
        """Let what lies below *position* become clean: a superblock with that tail is durable.

        Raises:
            ValueError: *position* is below the tail or above the head; nothing has changed.
        """
        if not self.tail <= position <= self.head:
            raise ValueError(f"found a tail of {position}, allowed: {self.tail} to {self.head}")
        self.tail = position

    def drop_clean(self) -> None:
        """Give up all clean data but what is pinned."""
        self.clean_tail = max(self.clean_tail, min(self.tail, self._find_lowest_pin()))
        self._look_ahead()

    def reset(self, head: int, tail: int) -> None:
        """Go to a state found by a recovery, or to an empty one (*head* and *tail* equal). There is no clean data then.

        Raises:
            ValueError: something is pinned, or so much does not fit into the ring; nothing has changed.
        """
        if self._pins:
            raise ValueError(f"found {len(self._pins)} pins, allowed: none")
        if not 0 <= tail <= head or (head + PAGE - 1 & -PAGE) - tail > self.ring_size:
            raise ValueError(f"found {tail} to {head}, allowed: at most {self.ring_size} bytes, whole pages at the end")
        self.head, self.tail, self.clean_tail = head, tail, tail
        self._look_ahead()

    @property
    def used(self) -> int:
        """Bytes of the ring that hold something: dirty, or clean and still served."""
        return self.head - self.clean_tail

    @property
    def dirty_used(self) -> int:
        """Bytes of the ring that only :meth:`retire` can free; high and low water are measured by it."""
        return self.head - self.tail

    @property
    def free(self) -> int:
        """Bytes of records that fit before :meth:`retire` is needed, where none is padded and no pin is in the way."""
        return (self.tail + self.ring_size & -PAGE) - self.head

    def _find_lowest_pin(self) -> int:
        self._lowest_pin = lowest = min(self._pins.values(), default=_NOTHING_PINNED)
        return lowest

    def _look_ahead(self) -> None:
        """Find the end up to which records need neither padding nor clean data to give way."""
        ring_size = self.ring_size
        ring_end = self.head - self.head % ring_size + ring_size
        self._simple_end = min(ring_end, self.clean_tail + ring_size & -PAGE)
