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

**A store or a sync that fails**, of a record or of a superblock, leaves it undefined what the medium has, and after a
failed sync even what the page cache has: the log is *failed*. It appends no more and is neither read nor written back;
the next open recovers what the medium really has, checksum by checksum.

**Retiring** first makes the superblock durable that names the new tail, and only then lets go of the space: until
then the old superblock leads recovery to records that are all still there.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final
from uuid import uuid4

import trio

from fusecache.api import Buffer, FusecacheError
from fusecache_rwl.format import HEADER_SIZE, Encoder, RecordType, record_size
from fusecache_rwl.index import Index
from fusecache_rwl.ledger import Ledger
from fusecache_rwl.medium import Medium
from fusecache_rwl.space import Space
from fusecache_rwl.superblock import Superblock, encode, place

_DATA: Final = RecordType.DATA


class LogFailed(FusecacheError):
    """The pool's medium failed; nothing is appended until the layer is opened again (EIO)."""


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
        superblock: the one that is durable.
        lsn: of the next record.
        failure: why the log appends no more; None while it does.
        changed: called when the log has failed, or when a read that ended may have made room.
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
        self.failure: BaseException | None = None
        self.changed: Callable[[], None] = lambda: None
        self._durable_lsn = lsn - 1
        self._persists = medium.persists
        self._encoder = Encoder(superblock.uuid)
        self._incarnation = superblock.incarnation
        self._header = self._encoder.header
        self._append = medium.append
        self._writing = trio.Lock()

    # ---- appending ----

    def append(self, kind: RecordType, offset: int, length: int, data: Buffer | None, now: float) -> bool:
        """Append what changes the image; False where there is no space, and nothing happened.

        Args:
            kind: DATA, DISCARD or ZERO.
            offset, length: of the image.
            data: *length* bytes, for DATA.
            now: the time, for the age of dirty data.

        Raises:
            LogFailed: the medium failed, now or before. Nothing of the request is in the index.
        """
        if self.failure is not None:
            raise self.refusal()
        size = HEADER_SIZE if data is None else record_size(length)
        space = self.space
        reserved = space.reserve(size)
        if reserved is None:
            return False
        padding, position = reserved
        ledger, index = self.ledger, self.index
        # Clean data that had to give way must be found no more.
        index.tail = space.clean_tail
        try:
            if padding:
                self._pad(position - padding, ledger.open_generation, padding)
            lsn, durable = self.lsn, self._durable_lsn
            header = self._header(lsn, self._incarnation, ledger.open_generation, kind, offset, length, data, durable)
            self._append(position, header, data)
            self.lsn = lsn + 1
            if self._persists:
                self._durable_lsn = lsn
            if kind is _DATA:
                index.insert(offset, length, position + HEADER_SIZE)
            else:
                index.insert_zero(offset, length, position)
            ledger.add(kind, offset, length, position, size, lsn, now)
        except Exception as error:
            # Whatever it was: the space is taken, and nothing behind a hole would be recovered.
            raise self._fail(error) from error
        return True

    def seal(self) -> None:
        """End the open generation. It needs no record: the next one's generation tells."""
        self.ledger.seal(self.space.head, self.lsn)

    def sync(self, done: Callable[[BaseException | None], None]) -> bool:
        """Make all that was appended durable. True where it is already; otherwise ``done`` is told, later.

        A sync point ends the generation, so that what comes after is never written back before what came before.

        Raises:
            LogFailed: the medium has failed.
        """
        if self.failure is not None:
            raise self.refusal()
        generation = self.ledger.open_generation
        self.seal()
        if self.ledger.open_generation != generation:
            self._sync_point(generation)
        return self._synced(self.lsn - 1, done)

    def commit(self, done: Callable[[BaseException | None], None]) -> bool:
        """As :meth:`sync`, but within the open generation."""
        return self._synced(self.lsn - 1, done)

    async def make_durable(self, lsn: int) -> None:
        """Return when the record *lsn*, and all before it, are durable.

        Raises:
            LogFailed: the medium failed.
        """
        if self.failure is not None:
            raise self.refusal()
        if self._durable_lsn < lsn:
            await told(self.commit)

    def _synced(self, lsn: int, done: Callable[[BaseException | None], None]) -> bool:
        log = self._encoder

        def synced(error: BaseException | None) -> None:
            if error is not None:
                done(self._fail(error))
                return
            # The LSNs of a log that has begun anew meanwhile are others.
            if log is self._encoder:
                self._durable_lsn = max(self._durable_lsn, lsn)
            done(None)

        if not self.medium.sync(synced):
            return False
        self._durable_lsn = max(self._durable_lsn, lsn)
        return True

    def _sync_point(self, generation: int) -> None:
        # Only a lower bound for recovery: where there is no space for it, the log does without.
        reserved = self.space.reserve(HEADER_SIZE)
        if reserved is None:
            return
        padding, position = reserved
        self.index.tail = self.space.clean_tail
        durable = self._durable_lsn
        try:
            if padding:
                self._pad(position - padding, generation, padding)
            header = self._header(self.lsn, self._incarnation, generation, RecordType.SYNC, 0, 0, None, durable)
            self._append(position, header, None)
        except Exception as error:
            raise self._fail(error) from error
        self.lsn += 1

    def _pad(self, position: int, generation: int, padding: int) -> None:
        """Fill what is left before the ring's end."""
        header = self._encoder.pad(self.lsn, self._incarnation, generation, padding - HEADER_SIZE)
        self._append(position, header, None)
        self.lsn += 1

    def _fail(self, error: BaseException) -> LogFailed:
        if self.failure is None:
            self.failure = error
            self.changed()
        return self.refusal()

    def refusal(self) -> LogFailed:
        """Return what is raised since :attr:`failure`."""
        return LogFailed(f"the pool's medium failed, nothing is appended any more: {self.failure}")

    def drop_clean(self) -> None:
        """Give up what is written back, and serves reads only."""
        self.space.drop_clean()
        self.index.tail = self.space.clean_tail

    # ---- the superblock ----

    async def retire(self, tail: Tail) -> None:
        """Make the new tail durable, then let go of the space before it; clean data stay until it is needed.

        A cancellation waits for the medium.

        Raises:
            LogFailed: the superblock could not be written; the tail is where it was, and the log has failed.
        """
        await self._replace(
            replace(
                self.superblock,
                sequence=self.superblock.sequence + 1,
                tail_position=tail.position,
                tail_lsn=tail.lsn,
                written_back=tail.written_back,
                # What is before the tail is looked for no more.
                durable_lsn=max(self._durable_lsn, tail.lsn - 1),
            )
        )
        self.space.retire(tail.position)

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
            uuid=uuid4().bytes,
            tail_position=0,
            tail_lsn=1,
            written_back=self.ledger.open_generation - 1,
            durable_lsn=0,
        )
        await self._replace(anew)
        # In both places: were the new one ever lost, the old one would bring the old records back.
        await self._replace(replace(anew, sequence=anew.sequence + 1))
        self.lsn = 1
        self._durable_lsn = 0
        self._encoder = Encoder(self.superblock.uuid)
        self._header = self._encoder.header
        self.ledger.clear()
        self.index.clear()
        self.index.tail = 0
        self.space.reset(0, 0)

    async def _replace(self, superblock: Superblock) -> None:
        with trio.CancelScope(shield=True):
            async with self._writing:
                try:
                    await write_superblock(self.medium, superblock)
                except LogFailed as error:
                    raise self._fail(error.__cause__ or error) from error
                self.superblock = superblock


async def write_superblock(medium: Medium, superblock: Superblock) -> None:
    """Write a superblock at its place and return when it is durable. Not to be cancelled.

    Raises:
        LogFailed: the medium failed.
    """

    def write(done: Callable[[BaseException | None], None]) -> bool:
        medium.write_superblock(encode(superblock), place(superblock.sequence), done)
        return False

    try:
        await told(write)
    except OSError as error:
        raise LogFailed(f"the pool's superblock could not be written: {error}") from error


async def told(start: Callable[[Callable[[BaseException | None], None]], bool]) -> None:
    """Call *start* and return when it says True, or else when what it was given is called; a cancellation waits.

    Raises:
        BaseException: what that is called with.
    """
    ended = trio.Event()
    failure: list[BaseException] = []

    def done(error: BaseException | None) -> None:
        if error is not None:
            failure.append(error)
        ended.set()

    if start(done):
        return
    with trio.CancelScope(shield=True):
        await ended.wait()
    if failure:
        raise failure[0]
