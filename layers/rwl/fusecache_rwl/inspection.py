"""What a pool file holds, told for people.

Owns what is looked at, and what counts as damage. It must not know layers or media: it reads the file,
and nothing else.

Without *verify* the headers of the log are followed, each checked against its own checksum. With it the log is
scanned as a recovery scans it, data included, and what ends it is looked at: a recovery has to take a record that
does not hold for the log's end where nothing proves the contrary, an inspection names it. Either way it is the log from
its tail to its head: what was written back before serves reads of the process that wrote it, and nobody else.

A pool in use changes while it is read. What looks damaged then is looked at again, and counts only if it stays so.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fusecache.api.errors import CorruptState
from fusecache.api.inspection import Fact, Inspection
from fusecache_rwl.format import (
    ALIGNMENT,
    FORMAT_VERSION,
    HEADER_SIZE,
    MAX_DATA,
    RING_OFFSET,
    SUPERBLOCK_SIZE,
    Record,
    RecordType,
    data_good,
    decode,
    record_size,
)
from fusecache_rwl.index import GAP, Index
from fusecache_rwl.ledger import Group
from fusecache_rwl.picture import picture
from fusecache_rwl.scan import Scanned, scan
from fusecache_rwl.superblock import Superblock, newest, place
from fusecache_rwl.superblock import decode as decode_superblock

_CHANGES: Final = (RecordType.DATA, RecordType.DISCARD, RecordType.ZERO)
_ATTEMPTS: Final = 5
_PAGE: Final = 4096
_SECTOR: Final = 512
_LARGEST: Final = 1 << 60


@dataclass(slots=True)
class _Found:
    """What one look at a pool found.

    Attributes:
        records: how many of each type.
        dirty: of the records that are not written back, where in the image they are; positions mean nothing.
        dirty_end: where the last of them ends, in bytes of the image.
        dirty_bytes: what they hold, counted as by :class:`fusecache_rwl.ledger.Ledger`.
        lsn, position: of the record to come.
        generation: the highest seen.
        group: the group in flight.
        problems: what is damaged.
    """

    superblock: Superblock
    lsn: int
    position: int
    generation: int
    group: Group | None = None
    records: Counter[RecordType] = field(default_factory=Counter)
    dirty: Index = field(default_factory=lambda: Index(_LARGEST))
    dirty_end: int = 0
    dirty_bytes: int = 0
    problems: list[str] = field(default_factory=list)

    def take(self, record: Record) -> None:
        """Account for the next record of the log."""
        self.records[record.type] += 1
        self.lsn = record.lsn + 1
        size = record_size(record.data_length)
        self.position += size
        if record.type is RecordType.GROUP and record.length > self.superblock.written_back:
            self.group = Group(record.offset if self.group is None else self.group.first, record.length)
        if record.type not in _CHANGES:
            return
        self.generation = max(self.generation, record.generation)
        if record.generation > self.superblock.written_back:
            self.dirty_bytes += record.length if record.type is RecordType.DATA else size
            end = record.offset + record.length
            self.dirty_end = max(self.dirty_end, end)
            # To the end of the sector: an image of an odd size may have grown since. With the offset as its position
            # a range is one with its neighbours.
            self.dirty.insert(record.offset, -(-record.length // _SECTOR) * _SECTOR, record.offset)


def inspect_pool(path: Path, *, verify: bool) -> Inspection:
    """Describe the pool file at *path*; blocks. The file is opened for reading only, and not locked.

    Args:
        verify: check both superblocks, and header and data of each record from the log's tail to its head.

    Raises:
        CorruptState: it has no superblock, or one of a version that is not known here.
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pool = _Pool(fd)
        users = _users(fd)
        found = pool.look(verify=verify)
        for _ in range(_ATTEMPTS if users else 0):
            if not found.problems:
                break
            again = pool.look(verify=verify)
            again.problems = [problem for problem in again.problems if problem in found.problems]
            found = again
        return _described(path, pool, found, users, verify=verify)
    finally:
        os.close(fd)


class _Pool:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size
        self.ring_size = max(0, self.size - RING_OFFSET) // _PAGE * _PAGE

    def look(self, *, verify: bool) -> _Found:
        """Read the pool once."""
        blocks = [os.pread(self._fd, SUPERBLOCK_SIZE, at) for at in (0, SUPERBLOCK_SIZE)]
        superblock = newest(*blocks)
        start = superblock.tail_lsn, superblock.tail_position, superblock.written_back
        found = _Found(superblock, *start)
        if superblock.size != self.size:
            found.problems.append(f"superblock {superblock.sequence}: the pool has {superblock.size} bytes, "
                                  f"the file {self.size}")  # fmt: skip
            return found
        if verify:
            found.problems += _superblock_problems(blocks, superblock)
            self._scan(found)
            found.problems += self._damage_at(found)
        else:
            self._follow(found)
        return found

    def read(self, position: int, length: int) -> bytes:
        """Return the bytes at a log position."""
        return os.pread(self._fd, length, RING_OFFSET + position % self.ring_size)

    def _follow(self, found: _Found) -> None:
        end = found.position + self.ring_size
        while found.position < end:
            record = self._header(found.superblock, found.position)
            if record is None or record.lsn != found.lsn or record.incarnation > found.superblock.incarnation:
                return
            found.take(record)

    def _scan(self, found: _Found) -> None:
        try:
            for one in scan(found.superblock, self.ring_size, self.read):
                if isinstance(one, Scanned):
                    found.take(one.record)
        except CorruptState as error:
            found.problems.append(str(error))

    def _damage_at(self, found: _Found) -> Iterator[str]:
        """Tell what is wrong with the record that should be where the log ends, if one is there."""
        where = f"record {found.lsn} at position {found.position}"
        record = self._header(found.superblock, found.position)
        if record is not None and record.lsn == found.lsn:
            data = self.read(found.position + HEADER_SIZE, record.data_length)
            if record.type is RecordType.DATA and not data_good(record, data):
                yield f"{where}: its data have a wrong checksum"
        elif (later := self._later(found)) is not None:
            yield f"{where}: its header has a wrong checksum, and record {later.lsn} of the same incarnation follows"

    def _later(self, found: _Found) -> Record | None:
        """Return the next record behind the end that was written after what should be there."""
        reach = min(record_size(MAX_DATA), self.ring_size)
        for position in range(found.position + ALIGNMENT, found.position + reach + 1, ALIGNMENT):
            record = self._header(found.superblock, position)
            if record and record.lsn > found.lsn and record.incarnation == found.superblock.incarnation:
                return record
        return None

    def _header(self, superblock: Superblock, position: int) -> Record | None:
        return decode(superblock.uuid, self.read(position, HEADER_SIZE))


def _superblock_problems(blocks: list[bytes], counts: Superblock) -> Iterator[str]:
    for at, block in zip((0, SUPERBLOCK_SIZE), blocks, strict=True):
        # One place is written with the second superblock only.
        if not any(block) and counts.sequence == 1:
            continue
        try:
            sequence = decode_superblock(block).sequence
        except CorruptState as error:
            yield f"superblock at {at}: {error}"
        else:
            if place(sequence) != at:
                yield f"superblock at {at}: found sequence {sequence}, whose place is {place(sequence)}"


def _checked(found: _Found, *, verify: bool) -> str:
    """Return what was checked: what is written back is not, as a recovery never reads it."""
    which = f"{found.records.total()} records, from the tail to the head"
    return f"both superblocks, header and data of {which}" if verify else f"one superblock, the headers of {which}"


def _described(path: Path, pool: _Pool, found: _Found, users: list[int], *, verify: bool) -> Inspection:
    superblock = found.superblock
    used = found.position - superblock.tail_position
    facts: dict[str, Fact] = {
        "state": "dirty" if found.dirty_end else "clean",
        "dirty_bytes": found.dirty_bytes,
        "checked": _checked(found, verify=verify),
        "in_use_by": ", ".join(f"process {pid}" for pid in users) or None,
        "superblock": {
            "format_version": FORMAT_VERSION,
            "sequence": superblock.sequence,
            "identity": superblock.identity,
            "layer_index": superblock.index,
            "uuid": superblock.uuid.hex(),
            "media": superblock.media,
            "size_bytes": superblock.size,
            "epoch": superblock.epoch,
            "incarnation": superblock.incarnation,
            "written_back_generation": superblock.written_back,
            "durable_lsn": superblock.durable_lsn,
        },
        "log": {
            "ring_bytes": pool.ring_size,
            "used_bytes": used,
            "occupancy": f"{used / pool.ring_size:.1%}" if pool.ring_size else "-",
            "tail_position": superblock.tail_position,
            "tail_lsn": superblock.tail_lsn,
            "head_position": found.position,
            "head_lsn": found.lsn,
            "generation": found.generation,
            "group_in_flight": f"generations {found.group.first} to {found.group.last}" if found.group else None,
        },
        "records": {kind.name.lower(): found.records[kind] for kind in RecordType},
    }
    title = f"{path}: rwl pool, layer {superblock.index} of {superblock.identity}"
    return Inspection(title, facts, _picture(found), found.problems)


def _picture(found: _Found) -> Sequence[str]:
    """Draw the image up to the end of what is dirty: its size is not in the pool."""
    end = found.dirty_end
    if not end:
        return ()
    extents = (
        (offset, length)
        for offset, length, where in found.dirty.lookup(0, -(-end // _SECTOR) * _SECTOR)
        if where != GAP
    )
    return [f"dirty (#), partly (+) or not (.), from byte 0 to {end}:", *picture(extents, end)]


def _users(fd: int) -> list[int]:
    """Return the processes that hold the file's lock (proc(5), ``/proc/locks``)."""
    found = os.fstat(fd)
    name = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    lines = re.findall(r"FLOCK +\S+ +\S+ +(-?\d+) (\S+)", Path("/proc/locks").read_text())
    return [int(pid) for pid, file in lines if file == name]
