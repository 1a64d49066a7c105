"""The log: appends records to the pool's ring, and moves its tail once they are written back.

Owns the order of everything that reaches the medium. It must not know volumes, requests or when to write back.

**Appending** is synchronous: reserve, encode, store, then enter what was stored into the index and the ledger, in one
go on the loop's thread. A process killed at any step leaves:

====  ==============================================  ==================================================================
step                                                  what recovery finds
====  ==============================================  ==================================================================
1     the ring's space is reserved (in memory only)   the log as before
2     a PAD record closes the ring's end              the log as before, and that pad
3     the record is stored, whole or in part          whole: the record, which was not acknowledged, and may be there;
                                                      in part: its checksum is wrong, so the log ends before it
4     index and ledger know it (in memory only)       the record
5     it is acknowledged                              the record
====  ==============================================  ==================================================================

Loss of power may undo any stores after the last completed sync, and tear them; as recovery takes consecutive records
only, it finds a prefix of what was appended, and at least all that was synced.

**What is known to be durable** every record says, for recovery to prove what was damaged. A sync point says nothing
else, and is appended at the end of a generation where more is known than when the last record was made. On an SSD that
is not so after a write and its flush: the next record says it, and until then a sync point would tell nothing.

**A store or a sync that fails**, of a record or of a superblock, leaves it undefined what the medium has, and after a
failed sync even what the page cache has: the log is *failed*. It stores nothing more; of what it has only what is
dirty counts, and each record only when its checksums prove it (:mod:`fusecache_rwl.proof`). Whoever waits for a sync
then waits until all is durable below instead. What becomes of a failed log stands in :mod:`fusecache_rwl.aside`.

**Retiring** first makes the superblock durable that names the new tail, and only then lets go of the space: until
then the old superblock leads recovery to records that are all still there.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import trio

from fusecache.api import Buffer, FusecacheError
from fusecache_rwl.failures import LogFailed
from fusecache_rwl.format import HEADER_SIZE, Encoder, RecordType
from fusecache_rwl.index import Index
from fusecache_rwl.ledger import Group, Ledger
from fusecache_rwl.medium import Medium
from fusecache_rwl.space import Space
from fusecache_rwl.superblock import Superblock, successor
from fusecache_rwl.superblock_io import write_superblock
from fusecache_rwl.waits import Stranded, Waits

log = logging.getLogger(__name__)

_DATA: Final = RecordType.DATA
_SYNC: Final = RecordType.SYNC


@dataclass(frozen=True, slots=True)
class Tail:
    """Where recovery begins.

    Attributes:
        position, lsn: of the first record that is not yet written back, or of the next one to come.
        written_back: the last generation that is durable below.
    """

    position: int
    lsn: int
    written_back: int


class Log:
    """One pool's log. Loop's thread only.

    Attributes:
        medium, index, ledger, space: what the log keeps in step.
        waits: those for the medium.
        superblock: the one that is durable.
        lsn: of the next record.
        failure: why the log appends no more; None while it does.
        failures: how often it has failed.
        stranded: who waits for a sync that this log will never do.
        deserted: nobody saves what a failed log has any more: nobody is stranded, all are refused.
        changed: called when the log has failed, when somebody is stranded, or when a read that ended may have made
            room.
    """

    def __init__(
        self, medium: Medium, superblock: Superblock, index: Index, ledger: Ledger, space: Space, lsn: int
    ) -> None:
        self.medium = medium
        self.superblock = superblock
        self.index = index
        self.ledger = ledger
        self.space = space
        self.lsn = lsn
        self.waits = Waits()
        self.failure: BaseException | None = None
        self.failures = 0
        self.stranded = Stranded()
        self.deserted = False
        self.changed: Callable[[], None] = lambda: None
        # Up to which all is durable; which the last record names as that; of the last record that changes the image.
        self.durable_lsn = self._told_lsn = self._changed_lsn = lsn - 1
        self._recovered = lsn - 1
        self._persists = medium.persists
        self._encoder = Encoder(superblock.uuid)
        self._incarnation = superblock.incarnation
        self._header = self._encoder.header
        self._append = medium.append
        self._writing = trio.Lock()

    # ---- appending ----

    def append(self, kind: RecordType, offset: int, length: int, data: Buffer | None, now: float) -> bool:
        """Append what changes the image; False where there is no space, or the log has failed, now or before.

        Then nothing of the request is in the index.

        Args:
            kind: DATA, DISCARD or ZERO.
            offset, length: of the image.
            data: *length* bytes, for DATA.
            now: the time, for the age of dirty data.
        """
        if self.failure is not None:
            return False
        # What record_size() says, without the call.
        size = HEADER_SIZE if data is None else HEADER_SIZE + (length + 63 & -64)
        space = self.space
        reserved = space.reserve(size)
        if reserved is None:
            return False
        padding, position = reserved
        ledger, index = self.ledger, self.index
        # Clean data that had to give way must be found no more.
        index.tail = space.clean_tail
        try:
            generation = ledger.open_generation
            if padding:
                self._pad(position - padding, generation, padding)
            lsn, durable = self.lsn, self.durable_lsn
            header = self._header(lsn, self._incarnation, generation, kind, offset, length, data, durable)
            self._append(position, header, data)
            self.lsn = lsn + 1
            self._changed_lsn = lsn
            self._told_lsn = durable
            if self._persists:
                self.durable_lsn = lsn
            if kind is _DATA:
                index.insert(offset, length, position + HEADER_SIZE)
            else:
                index.insert_zero(offset, length, position)
            ledger.add(kind, offset, length, position, now)
            if space.head >= ledger.full_at:
                self.seal()
        except Exception as error:
            # Whatever it was: the space is taken, and nothing behind a hole would be recovered.
            self.fail(error)
            return False
        return True

    def seal(self) -> None:
        """End the open generation. It needs no record: the next one's generation tells."""
        self.ledger.seal(self.space.head, self.lsn)

    def sync(self, done: Callable[[BaseException | None], None]) -> bool:
        """Make all that was appended durable. True where it is already; otherwise ``done`` is told, later.

        It ends the generation, so that what comes after is never written back before what came before. A sync point is
        appended where it says more than the last record does of what is durable; nobody waits for it.
        Where the log has failed, or fails, ``done`` is told when all that is dirty is durable below, or cannot be made.

        Raises:
            LogFailed: the log has failed, and is deserted.
        """
        if self.failure is not None:
            return self._strand(done)
        ledger, durable = self.ledger, self.durable_lsn
        generation = ledger.open_generation
        if ledger.seal(self.space.head, self.lsn) and durable > self._told_lsn:
            # Only a lower bound for recovery: where there is no space for it, the log does without.
            self._append_bare(_SYNC, generation)
            if self.failure is not None:
                return self._strand(done)
        return durable >= self._changed_lsn or self._synced(self.lsn - 1, done)

    def commit(self, done: Callable[[BaseException | None], None]) -> bool:
        """As :meth:`sync`, but within the open generation."""
        if self.failure is not None:
            return self._strand(done)
        return self.durable_lsn >= self._changed_lsn or self._synced(self.lsn - 1, done)

    async def make_durable(self, lsn: int) -> None:
        """Return when the record *lsn*, and all before it, are durable; at once where the log had failed before.

        Raises:
            LogFailed: the medium failed.
        """
        if self.failure is None and self.durable_lsn < lsn:
            await self.waits.told(lambda done: self._synced(self.lsn - 1, done, strands=False))

    def _strand(self, done: Callable[[BaseException | None], None]) -> bool:
        if self.deserted:
            raise self.refusal()
        self.stranded.add(done)
        self.changed()
        return False

    def _synced(self, lsn: int, done: Callable[[BaseException | None], None], *, strands: bool = True) -> bool:
        encoder = self._encoder

        def synced(error: BaseException | None) -> None:
            if error is not None:
                refusal = self.fail(error)
                if strands and not self.deserted:
                    self._strand(done)
                else:
                    done(refusal)
                return
            # The LSNs of a log that has begun anew meanwhile are others.
            if encoder is self._encoder:
                self.durable_lsn = max(self.durable_lsn, lsn)
            done(None)

        if not self.medium.sync(synced):
            return False
        self.durable_lsn = max(self.durable_lsn, lsn)
        return True

    def name_group(self, group: Group) -> bool:
        """Append that sealed generations go below as one; False where there is no space, and nothing happened.

        It is durable when all that was appended is. Until they are retired they are the ledger's group in flight. A log
        that has failed, now or before, takes none.
        """
        if self.failure is not None:
            return False
        if not self._append_bare(RecordType.GROUP, self.ledger.open_generation, *group):
            return False
        self.ledger.group = group
        return True

    def _append_bare(self, kind: RecordType, generation: int, offset: int = 0, length: int = 0) -> bool:
        """Append what changes nothing of the image; False where there is no space, and nothing happened."""
        reserved = self.space.reserve(HEADER_SIZE)
        if reserved is None:
            return False
        padding, position = reserved
        self.index.tail = self.space.clean_tail
        durable = self.durable_lsn
        try:
            if padding:
                self._pad(position - padding, generation, padding)
            header = self._header(self.lsn, self._incarnation, generation, kind, offset, length, None, durable)
            self._append(position, header, None)
        except Exception as error:
            self.fail(error)
            return False
        self._told_lsn = durable
        if self._persists:
            self.durable_lsn = self.lsn
        self.lsn += 1
        return True

    def _pad(self, position: int, generation: int, padding: int) -> None:
        """Fill what is left before the ring's end."""
        header = self._encoder.pad(self.lsn, self._incarnation, generation, padding - HEADER_SIZE)
        self._append(position, header, None)
        self.lsn += 1

    def fail(self, error: BaseException) -> LogFailed:
        """Store nothing more; return the error for whoever asked for something. Once failed, it stays so."""
        if self.failure is None:
            expected = isinstance(error, OSError | FusecacheError)
            log.warning("the log takes nothing more: %s", error, exc_info=None if expected else error)
            self.failure = error
            self.failures += 1
            self.seal()
            # Clean data can be had below, and cannot be proven here.
            self.index.tail = self.space.tail
            self.waits.fail()
            self.changed()
        return self.refusal()

    def refusal(self) -> LogFailed:
        """Return what is raised since :attr:`failure`."""
        return LogFailed(f"the pool's medium failed: {self.failure}")

    def has_dirty(self, lsn: int, incarnation: int) -> bool:
        """Say whether a record of that LSN and incarnation, found in the ring, can be one of those that are dirty."""
        if not self.superblock.tail_lsn <= lsn < self.lsn:
            return False
        return incarnation == self._incarnation or (incarnation < self._incarnation and lsn <= self._recovered)

    def drop_clean(self) -> None:
        """Give up what is written back, and serves reads only."""
        self.space.drop_clean()
        self.index.tail = max(self.index.tail, self.space.clean_tail)

    # ---- the superblock ----

    async def retire(self, tail: Tail) -> None:
        """Make the new tail durable, then let go of the space before it; clean data stay until it is needed.

        A cancellation waits for the medium. In a log that had failed before, the tail moves in memory only, and a
        crash has the same moved below again.

        Raises:
            LogFailed: the superblock could not be written; the tail is where it was, and the log has failed.
        """
        if self.failure is None:
            await self._replace(self._superblock_at(tail))
        else:
            await trio.lowlevel.checkpoint()
        self.space.retire(tail.position)
        if self.failure is not None:
            # What has just become clean cannot be proven any more.
            self.index.tail = tail.position

    def _superblock_at(self, tail: Tail) -> Superblock:
        return replace(
            self.superblock,
            sequence=self.superblock.sequence + 1,
            tail_position=tail.position,
            tail_lsn=tail.lsn,
            written_back=tail.written_back,
            # What is before the tail is looked for no more.
            durable_lsn=max(self.durable_lsn, tail.lsn - 1),
        )

    async def begin_anew(self) -> None:
        """Forget everything, dirty or not: durably, by a superblock under which no old record is valid.

        A crash before it is durable leaves the log as it was. A cancellation waits for the medium. Nothing else may
        use the log meanwhile.

        Raises:
            LogFailed: a superblock could not be written, and the log has failed; the next open finds all or nothing.
        """
        anew = replace(
            self.superblock,
            sequence=self.superblock.sequence + 1,
            uuid=successor(self.superblock.uuid),
            tail_position=0,
            tail_lsn=1,
            written_back=self.ledger.open_generation - 1,
            durable_lsn=0,
        )
        await self._replace(anew)
        # In both places: were the new one ever lost, the old one would bring the old records back.
        await self._replace(replace(anew, sequence=anew.sequence + 1))
        self.lsn = 1
        self.durable_lsn = self._told_lsn = self._changed_lsn = self._recovered = 0
        self._encoder = Encoder(self.superblock.uuid)
        self._header = self._encoder.header
        self.ledger.clear()
        self.index.clear()
        self.index.tail = 0
        self.space.reset(0, 0)

    def forget(self) -> None:
        """Forget everything, in memory only: the log has failed, and the mark says that nothing of it counts.

        A log that has come back since has begun anew, and keeps what it has taken from then on.
        """
        if self.failure is not None:
            self.ledger.clear()
            self.index.clear()

    async def recommence(self) -> bool:
        """Give the medium of a failed log another chance: :meth:`begin_anew`, but it stays failed until :meth:`resume`.

        Nothing is dirty, and the image is not marked as dirty. False where a read still uses the log.

        Raises:
            LogFailed: the medium still fails.
            OSError: it cannot be used at all.
        """
        if self.space.pinned:
            return False
        self.medium.renew()
        await self.begin_anew()
        return True

    def resume(self) -> None:
        """Take appends again, after :meth:`recommence`."""
        self.failure = None
        self.waits.failed = False

    async def _replace(self, superblock: Superblock) -> None:
        with trio.CancelScope(shield=True):
            async with self._writing:
                try:
                    await write_superblock(self.medium, superblock, self.waits)
                except LogFailed as error:
                    raise self.fail(error.__cause__ or error) from error
                self.superblock = superblock
