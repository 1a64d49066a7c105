"""What proves that bytes of the ring are those that were acknowledged.

Owns the check that dirty data pass whenever they leave the log for good, and whenever its medium has failed. It must
not know why they are read.

**When.** A recovery checks every record it takes. While the log works, reads of what is dirty or clean trust the
medium; nothing that was clean outlives the log that wrote it. Write-back always checks: what is once below is believed
for ever. From a log that has failed nothing is read unchecked: after a failed sync the page cache may hold what was
written, or what the device had before, page by page.

**What is checked.** A record is read whole, header and data. Both checksums must hold; it must be of the image's range
that the ledger has for this place; its LSN must be one that is dirty, and its incarnation one that such an LSN has. No
other record passes: at each place of the ring at most one was ever stored under such an LSN, since the place was not
used again before the LSNs stored there had been passed by the tail. An older incarnation stored there with the same
LSN was beyond the head that a recovery found, and beyond it only the present incarnation counts.

A check that fails is no proof that the data are gone: they are read again when they are asked for again.
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

from fusecache.api import Buffer, Done
from fusecache_rwl.failures import RecordDamaged
from fusecache_rwl.format import HEADER_SIZE, whole_data
from fusecache_rwl.log import Log

_Place: TypeAlias = tuple[int, int, int]
"""Image offset, image length, log position of the header."""


class Proven:
    """Reads dirty data of a log, checked. Loop's thread only.

    A record of which only parts are wanted is kept until parts of another one are: they come one after the other.
    """

    def __init__(self, pool: Log) -> None:
        self._log = pool
        self._kept_at = -1
        self._kept: Buffer = b""

    def read_now(self, position: int, length: int) -> Buffer | None:
        """Return dirty bytes at a log position, valid until the next call; None where that would wait for the device.

        Raises:
            RecordDamaged: they are not what was written.
            OSError: they cannot be had.
        """
        place = self._place(position)
        if place[2] == self._kept_at:
            return self._part(self._kept, place, position, length)
        stored = self._log.medium.read_now(place[2], HEADER_SIZE + place[1])
        return None if stored is None else self._checked(stored, place, position, length)

    def gather_now(self, pieces: Iterable[tuple[int, int]]) -> memoryview | None:
        """Return the dirty bytes of several pieces, each a length and a log position, in memory of their own; None
        where that would wait for the device.

        Raises:
            RecordDamaged, OSError: as :meth:`read_now`.
        """
        data = bytearray()
        for length, position in pieces:
            piece = self.read_now(position, length)
            if piece is None:
                return None
            data += piece
        return memoryview(data)

    async def read(self, position: int, length: int) -> Buffer:
        """As :meth:`read_now`, but waits. A cancellation waits, too. What is dirty keeps its place meanwhile."""
        place = self._place(position)
        stored = b""

        def start(done: Done) -> bool:
            def ended(error: BaseException | None, data: bytes) -> None:
                nonlocal stored
                stored = data
                done(error)

            self._log.medium.read(place[2], HEADER_SIZE + place[1], ended)
            return False

        await self._log.waits.told(start, firm=True)
        return self._checked(stored, place, position, length)

    def start(self, position: int, length: int, done: Callable[[BaseException | None, bytes], None]) -> None:
        """Begin to read; ``done`` is told as by :meth:`fusecache_rwl.medium_base.Medium.read`.

        Raises:
            RecordDamaged: see :meth:`read_now`.
        """
        place = self._place(position)

        def ended(error: BaseException | None, data: bytes) -> None:
            part = b""
            if error is None:
                try:
                    part = bytes(self._checked(data, place, position, length))
                except RecordDamaged as damaged:
                    error = damaged
            done(error, part)

        self._log.medium.read(place[2], HEADER_SIZE + place[1], ended)

    def _place(self, position: int) -> _Place:
        place = self._log.ledger.record_at(position)
        if place is None:
            raise RecordDamaged(f"nothing dirty is known at position {position}")
        return place

    def _checked(self, stored: Buffer, place: _Place, position: int, length: int) -> Buffer:
        offset, size, header = place
        found = whole_data(self._log.superblock.uuid, stored, offset, size)
        if found is None or not self._log.has_dirty(*found):
            raise RecordDamaged(
                f"the record at position {header}, of {size} bytes of the image at {offset}, is not what was written"
            )
        if length != size:
            self._kept_at, self._kept = header, bytes(stored)
            stored = self._kept
        return self._part(stored, place, position, length)

    @staticmethod
    def _part(stored: Buffer, place: _Place, position: int, length: int) -> Buffer:
        at = position - place[2]
        return memoryview(stored)[at : at + length]
