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

**A log that fails** finishes the group in flight, takes no further record, and moves its tail in memory only. From then
on what is below is *ahead* of where a recovery begins, which would put older generations over newer ones. So before the
next one goes below the mark says torn *beyond*: that more may be there than the group that a record names. A recovery
that finds that word makes one group of all that it finds, the named one included. What is to be completed is told by
word and records alone, whatever order is configured. Of a process killed, or power lost, after each step, in either
order:

====  ===========================================  =====================================================================
step                                               what is true
====  ===========================================  =====================================================================
1     the log fails                                as ever: one generation is in part below, in strict order after some
                                                   that are kept (:mod:`fusecache_rwl.descent`); or the group in
                                                   flight, under the word torn
2     that is below, flushed, and retired in       below is all up to its end. Recovery does it again, which changes
      memory                                       nothing
3     the mark says torn beyond; durable           the same; recovery does again all that it finds, as one
4     later ones go below, one by one              below is a point of the order, until a recovery tears it. Nobody
                                                   discards the layer without taking a torn level
5     all are, and flushed                         the same
6     the mark is cleared; durable                 the level below, which has everything: the log is void. If the medium
                                                   comes back the log begins anew, and is ahead of nothing
====  ===========================================  =====================================================================

Where the mark cannot be changed, nothing goes below after step 2. A superblock that failed may be durable all the same:
then recovery begins later, and finds the less to be done again. What the medium has lost, so that recovery does not
find it, no flush has acknowledged: of that some is below in the end, and some is not (:mod:`fusecache_rwl.aside`).

====  ===========================================  =====================================================================
step  of that recovery                             what is true
====  ===========================================  =====================================================================
1     all that it found is the group in flight     as before it; of an image that is read-only it stays so
2     some of it is below                          below is torn, as the mark says. The next recovery does all of it
                                                   again, together with what was appended meanwhile
3     all of it is, and flushed; the superblock    below is all up to its end. The mark says torn without need, and the
      names the next generation                    next recovery makes one group of what it finds, without need
4     write-back comes to rest, and the mark says  below is a point of the order, and the next recovery is as ever
      torn no more; durable
====  ===========================================  =====================================================================

If that log fails too, its group is finished, and from then on it is ahead, under the word that stands: steps 4 to 6 of
the first table.

Dirty data that were to be dropped, and are not, as the mark of a failed log could not be cleared, go below under a mark
that is set again. It says dirty and torn by one write: after a crash in between nothing would be one group.

**A discard** goes by the durable word where the layer is not open: with its plugin or without, on this host or another.
Of an open one :attr:`Groups.torn` counts, which is False of a log that is ahead: that tears nothing while it lives.

Where the level below is a layer that writes back, those under it stay torn until it has written all of the group back,
after this layer has taken the word back. The core answers for that, whichever the word was: see
:meth:`fusecache.api.DirtyMark.mend`.
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
        # The group in flight is more than the records name.
        self._is_beyond = dirty.is_torn_beyond
        found = pool.ledger.sealed_until(pool.ledger.open_generation)
        if self._is_beyond and found:
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
                self.begun = self._is_beyond = False
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
            if self.is_ahead:
                await self._dirty.tear(beyond=True)
            return True
        await self._log.make_durable(self._log.lsn - 1)
        if not self.begun:
            if self._log.failure is not None:
                self._log.ledger.group = None
                return False
            # The tail that there is, once more, with what is durable by now: a log that lacks the record is corrupt.
            durable = self._log.superblock
            await self._log.retire(Tail(durable.tail_position, durable.tail_lsn, durable.written_back))
        await self._dirty.tear(beyond=self._is_beyond)
        return True

    async def rest(self) -> None:
        """Take back that the level below is torn, where the mark says so and it is not.

        Raises:
            FusecacheError, OSError: the mark cannot be changed.
        """
        if self.is_stale:
            await self._dirty.mend()
