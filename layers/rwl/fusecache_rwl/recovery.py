"""Opening a pool's log: as a new one, or with what an earlier process left in it.

Owns what is done with a pool file before its layer serves. It must not know volumes or requests.

**A clean layer begins anew**, with a new uuid: none of the ring's old records is valid under it, so nothing that was
written back, and may have been changed below since by others, can come back. Killed before the new superblock is
durable, the old one is there, and the manifest still says that nothing is dirty.

**A dirty one is recovered.** Of a process killed, or power lost, after each step:

====  =============================================  =================================================================
step                                                 what the next recovery does
====  =============================================  =================================================================
1     the records are scanned (nothing is written)   the same
2     what is in the page cache only is synced       the same; now loss of power loses none of it
3     the superblock with the next incarnation, and  scans the same records, and takes none of an older incarnation
      the head as the lower bound, is durable        beyond them
====  =============================================  =================================================================

Recovering twice, or dying in between, changes nothing but the incarnation.

**A pool file that was put back is refused.** The mark names the log whose records are dirty, by its uuid, and by the
sequence of the superblock that was durable when the mark was set (:meth:`fusecache.api.DirtyMark.set`). A file with
another log is a copy from before the layer was last opened clean, or its data discarded; one with an older superblock
is from before the mark was last clear, as the one that retires the last record is durable then. The records in such a
copy are void, and in part older than what is below. To set the mark needs no write to the pool.

A discard while the layer is open begins a log anew, then clears the mark. Of a process killed after each step:

====  =============================================  =================================================================
step                                                 what the next opening finds
====  =============================================  =================================================================
1     the superblock of the new log is durable, in   the successor of the log that the mark names: empty, and the
      one place or in both                           records of the named one are void. The mark is durably set for
                                                     the new log before that takes a change
2     the mark is durably clear                      nothing: the layer begins anew
3     a change sets the mark again, for the new log  the new log, which no copy from before step 1 has
====  =============================================  =================================================================

A log that comes back after a failure (:mod:`fusecache_rwl.aside`) begins anew with the mark clear: steps 2 and 3.
What cannot be told from the file in use is a copy of it made since the superblock that the mark names.

A GROUP record whose generations are not all written back names the group in flight. There is one at the most, as the
next is appended only when a superblock has the last one's end; where damage leaves an older superblock in force there
may be several, all of them perhaps begun, and together they are the group.
"""

import logging
import time
import uuid as uuids
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Final

import trio

from fusecache.api import LayerContext
from fusecache.api.errors import CorruptState, Fenced
from fusecache_rwl.format import HEADER_SIZE, RecordType
from fusecache_rwl.index import Index
from fusecache_rwl.ledger import Group, Ledger, generation_size
from fusecache_rwl.log import Log
from fusecache_rwl.medium import Medium
from fusecache_rwl.scan import Head, Scanned, scan
from fusecache_rwl.space import Space
from fusecache_rwl.superblock import Superblock, is_named, name_of, newest
from fusecache_rwl.superblock_io import write_superblock
from fusecache_rwl.waits import Waits

log = logging.getLogger(__name__)

_DATA: Final = RecordType.DATA
_SLICE: Final = 2000
"""Records scanned on the thread between two turns of the loop."""
_TOLD: Final = 10
"""Per cent between two reports of progress."""


async def new_log(context: LayerContext, medium: Medium, size: int) -> Log:
    """Begin a log in a pool whatever it holds; *size* is the image's.

    Raises:
        LogFailed: the superblock could not be written.
    """
    superblock = Superblock(
        sequence=_last_sequence(medium) + 1,
        identity=context.identity.text,
        index=context.index,
        uuid=uuids.uuid4().bytes,
        size=medium.size,
        media=medium.media,
        epoch=context.epoch,
        incarnation=1,
        tail_position=0,
        tail_lsn=1,
        written_back=0,
        durable_lsn=0,
    )
    with trio.CancelScope(shield=True):
        await write_superblock(medium, superblock, Waits())
        # In both places: were the new one ever lost, the old one would bring the old records back.
        superblock = replace(superblock, sequence=superblock.sequence + 1)
        await write_superblock(medium, superblock, Waits())
    return Log(
        medium, superblock, Index(size), Ledger(most=generation_size(medium.ring_size)), Space(medium.ring_size), 1
    )


def _last_sequence(medium: Medium) -> int:
    try:
        return newest(*medium.read_superblocks()).sequence
    except CorruptState:
        return 0


async def recovered_log(context: LayerContext, medium: Medium, size: int) -> Log:
    """Recover the dirty log in a pool; reports progress as events. A cancellation leaves the pool as it was.

    Raises:
        CorruptState: there is no superblock, it is another image's or layer's, or the log breaks off too early.
        Fenced: the pool is of another epoch, or its log is not the one that the mark names.
        LogFailed: the medium failed.
    """
    superblock = newest(*medium.read_superblocks())
    _check(context, medium, superblock)
    recovery = _Recovery(context, medium, superblock, size)
    head = await recovery.scan()
    synced = trio.Event()
    failure: list[BaseException] = []

    def done(error: BaseException | None) -> None:
        if error is not None:
            failure.append(error)
        synced.set()

    with trio.CancelScope(shield=True):
        if not medium.sync(done):
            await synced.wait()
        if failure:
            raise CorruptState(f"the recovered log could not be made durable: {failure[0]}") from failure[0]
        superblock = replace(
            superblock,
            sequence=superblock.sequence + 1,
            incarnation=superblock.incarnation + 1,
            durable_lsn=head.lsn - 1,
        )
        await write_superblock(medium, superblock, Waits())
    return recovery.log(superblock, head)


async def name_log(context: LayerContext, recovered: Log) -> None:
    """Set the mark for the log that was recovered, where it names the one in whose place that was begun.

    To be called before a change is taken. A cancellation leaves the mark set for either.

    Raises:
        FusecacheError, OSError: see :meth:`fusecache.api.DirtyMark.set`.
    """
    named, uuid = context.dirty.files_id, recovered.superblock.uuid.hex()
    if named and not named.startswith(uuid):
        await context.dirty.set(name_of(recovered.superblock))


def _check(context: LayerContext, medium: Medium, superblock: Superblock) -> None:
    if superblock.identity != context.identity.text or superblock.index != context.index:
        raise CorruptState(
            f"the pool is of layer {superblock.index} of {superblock.identity}, "
            f"allowed: layer {context.index} of {context.identity}"
        )
    if superblock.epoch != context.epoch:
        raise Fenced(
            f"the pool is of epoch {superblock.epoch}, the image is at epoch {context.epoch}: "
            "it can only be inspected, with `fusecache inspect POOLFILE`, and discarded, with "
            f"`fusecache discard CONFIG IMAGE --layer {context.index} --dirty`"
        )
    _check_named(context, medium, superblock)
    if superblock.size != medium.size:
        raise CorruptState(f"the pool file has {medium.size} bytes, its superblock says {superblock.size}")


def _check_named(context: LayerContext, medium: Medium, superblock: Superblock) -> None:
    named = context.dirty.files_id
    # Whoever set a mark that names none does not tell files apart.
    if named and not is_named(named, *medium.read_superblocks()):
        torn = " --torn" if context.dirty.is_torn else ""
        raise Fenced(
            f"the pool is {name_of(superblock)}, the dirty data is in {named} or later: the pool file is a copy from "
            "before the layer was last clean, or its data discarded, and must not be written back: put the newer file "
            f"in its place, or give its data up with `fusecache discard CONFIG IMAGE --layer {context.index} "
            f"--dirty{torn}`"
        )


class _Recovery:
    def __init__(self, context: LayerContext, medium: Medium, superblock: Superblock, size: int) -> None:
        self._context = context
        self._medium = medium
        self._superblock = superblock
        self._index = Index(size)
        self._ledger = Ledger(superblock.written_back + 1, generation_size(medium.ring_size))
        self._scan: Iterator[Scanned | Head] = scan(superblock, medium.ring_size, medium.read_blocking)
        self._records = 0
        self._told = 0

    async def scan(self) -> Head:
        """Take the records in; return where the log ends."""
        started = time.monotonic()
        while True:
            found = await trio.to_thread.run_sync(lambda: list(islice(self._scan, _SLICE)))
            now = time.monotonic()
            for one in found:
                if isinstance(one, Head):
                    self._tell_end(started)
                    return one
                self._take(one, now)
            self._tell(found[-1].position)

    def _take(self, one: Scanned, now: float) -> None:
        record, position = one.record, one.position
        kind, offset, length = record.type, record.offset, record.length
        ledger = self._ledger
        while ledger.open_generation < record.generation:
            if not ledger.seal(position, record.lsn):
                ledger.skip_to(record.generation)
        self._records += 1
        if kind is _DATA:
            self._index.insert(offset, length, position + HEADER_SIZE)
        elif kind in (RecordType.DISCARD, RecordType.ZERO):
            self._index.insert_zero(offset, length, position)
        else:
            if kind is RecordType.GROUP and length > self._superblock.written_back:
                first = offset if ledger.group is None else ledger.group.first
                ledger.group = Group(first, length)
            return
        ledger.add(kind, offset, length, position, now)

    def log(self, superblock: Superblock, head: Head) -> Log:
        """Return the log that goes on at *head*."""
        space = Space(self._medium.ring_size)
        space.reset(head.position, superblock.tail_position)
        self._index.tail = superblock.tail_position
        group = self._ledger.group
        if group is not None and [one.number for one in self._ledger.sealed_until(group.last)][-1:] != [group.last]:
            raise CorruptState(f"the log has no generation {group.last}, the last of the group that a record names")
        if not self._ledger.seal(head.position, head.lsn):
            self._ledger.skip_to(max(head.generation + 1, superblock.written_back + 1))
        return Log(self._medium, superblock, self._index, self._ledger, space, head.lsn)

    def _tell(self, position: int) -> None:
        done = (position - self._superblock.tail_position) * 100 // self._medium.ring_size
        if done >= self._told + _TOLD:
            self._told = done
            self._context.emit("recovery", f"{self._context.image}: {self._records} records, {done}% of the pool")

    def _tell_end(self, started: float) -> None:
        took = time.monotonic() - started
        text = f"layer {self._context.index} recovered {self._records} records in {took:.1f} s"
        self._context.emit("recovered", f"{self._context.image}: {text}")
        log.info("%s: %s", self._context.image, text)
