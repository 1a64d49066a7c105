"""Which generations go below next, as one, and what is durably said of it before and after.

Owns the bounds of a group, and whether the level below is torn. It must not know how data are moved, nor when it is
time for it.

**A group at a time** (``order = "grouped"``). The oldest sealed generations go below as one, merged: only the newest
content of each range goes there, in any order. So in mid-group the level below is *torn*, which nothing but the rest of
the group mends. Of a process killed, or power lost, after each step:

====  ===========================================  =====================================================================
step                                               what is true
====  ===========================================  =====================================================================
1     a GROUP record names them; it is durable,    below is all before the group; recovery finds the group, and carries
      and a superblock says so                     it out. Lost before it is durable: there is no group. Damaged later:
                                                   the log is corrupt, rather than without that group
2     the dirty mark says torn; durable            the same; nobody discards the layer without taking a torn level below
3     some of the moves are written below          below is torn; the log has all of the group
4     all of them are, and flushed                 below is all up to the end of the group
5     the superblock names the next generation     the same; recovery begins behind the group, which is none any more
6     write-back comes to rest, and the mark says  the same; before, it said torn without need: the next open takes it
      torn no more; durable                        back
====  ===========================================  =====================================================================

A group is carried out as it was named: after an error, a stop or a crash exactly those generations go below, as one,
before anything else does, whatever the rate says, and none of a later one. The moves carry their newest content only,
so doing them again, or dying while they are done again, changes nothing. With rate 0 the group in flight is finished,
as the level below would stay torn for as long as the pause lasts.

Step 6 is left out while another group follows at once, as it takes milliseconds: the mark then says torn in between,
when nothing is. That errs to the safe side, and only where nobody can ask the layer itself: for a discard of an open
image :attr:`Groups.torn` counts, which is exact. A generation that goes alone, as the next one or because the log
has no space for a record, may do so under that mark too.

**A log that fails** moves its tail in memory only. What is below is then *ahead* of where a recovery begins, which
would put older generations over newer ones, one by one. So in strict order, where nothing else ever tears anything, the
mark says torn before a second generation goes below from a failed log; and a recovery that finds that word makes one
group of all that it finds. In grouped order that word may be one that was not yet taken back, and only a group that a
record names is carried out as one. Not covered: later generations that went below from a log which failed in mid-group
are put right when they go below again; until then the level is torn, and after the named group nothing says so.

Where the level below is a layer that writes back, those under it stay torn until it has written all of the group back,
after this layer has taken the word back. The core answers for that: see :meth:`fusecache.api.DirtyMark.mend`.
"""

from collections.abc import Sequence
from typing import Final

from fusecache.api import DirtyMark
from fusecache_rwl.ledger import Generation, Group
from fusecache_rwl.log import Log, Tail

_MOST_BYTES: Final = 64 << 20
_MOST_RECORDS: Final = 1 << 14
_PART: Final = 8
"""What a group has at the most: for the time that it takes and the memory of its plan, and a part of the ring, as who
waits for space waits for a whole group."""


class Groups:
    """The groups of one log.

    Args:
        grouped: name new ones; the group in flight, which a recovery has found, is carried out in any case.

    Attributes:
        begun: some of the group in flight may be below. So it stays until the group is retired: all of it may be
            there by then, and its generations one by one would put older data over newer.
    """

    def __init__(self, pool: Log, dirty: DirtyMark, *, grouped: bool) -> None:
        self._log = pool
        self._dirty = dirty
        self._grouped = grouped
        self._most_bytes = min(_MOST_BYTES, pool.medium.ring_size // _PART)
        # After a recovery: of a group that the mark knows nothing of nothing has gone below.
        self.begun = dirty.is_torn
        found = pool.ledger.sealed_until(pool.ledger.open_generation)
        if self.begun and found and not grouped and not self.in_flight:
            pool.ledger.group = Group(found[0].number, found[-1].number)

    @property
    def in_flight(self) -> bool:
        """A group was named, and is not yet written back."""
        return self._log.ledger.group is not None

    @property
    def torn(self) -> bool:
        """Some of the group in flight may be below; what retires it is not durable yet."""
        return self.begun and self.in_flight

    @property
    def is_stale(self) -> bool:
        """The mark says torn, and nothing would be after a crash."""
        return self._dirty.is_torn and not self.in_flight and not self.is_ahead

    @property
    def is_ahead(self) -> bool:
        """More is retired than a superblock says: the log has failed."""
        return self._log.space.tail != self._log.superblock.tail_position

    def next(self) -> Sequence[Generation]:
        """Return the sealed generations that go below next, as one; where they are several, they are the group in
        flight from now on. At least one is sealed.

        To be called with nothing awaited since the last ones were retired: so in a full log there is space for the
        record that names a group. Where there is none the oldest generation goes alone, and makes some.
        """
        ledger = self._log.ledger
        if self._grouped and not self.in_flight and self._log.failure is None:
            found = ledger.oldest_within(self._most_bytes, _MOST_RECORDS)
            if len(found) > 1 and self._log.name_group(Group(found[0].number, found[-1].number)):
                self.begun = False
        return ledger.oldest_within(0, 0) if ledger.group is None else ledger.sealed_until(ledger.group.last)

    async def announce(self, generations: Sequence[Generation]) -> bool:
        """Make durable what must be before the first byte of *generations* goes below.

        Returns:
            False where they must not go below as one, as the log has failed and may not have the record of the group,
            of which nothing has gone below: :meth:`next` chooses anew.

        Raises:
            FusecacheError, OSError: the log failed, or the mark cannot be changed.
        """
        if not self.in_flight:
            await self._log.make_durable(generations[-1].end_lsn - 1)
            if self.is_ahead and not self._grouped:
                await self._tear()
            return True
        await self._log.make_durable(self._log.lsn - 1)
        if not self.begun:
            if self._log.failure is not None:
                self._log.ledger.group = None
                return False
            # The tail that there is, once more, with what is durable by now: a log that lacks the record is corrupt.
            durable = self._log.superblock
            await self._log.retire(Tail(durable.tail_position, durable.tail_lsn, durable.written_back))
        await self._tear()
        return True

    async def _tear(self) -> None:
        if not self._dirty.is_set:
            # An invalidation meant to clear it, and failed.
            await self._dirty.set()
        await self._dirty.tear()

    async def rest(self) -> None:
        """Take back that the level below is torn, where the mark says so and it is not.

        Raises:
            FusecacheError, OSError: the mark cannot be changed.
        """
        if self.is_stale:
            await self._dirty.mend()
