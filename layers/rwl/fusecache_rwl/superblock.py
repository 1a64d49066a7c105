"""The pool's superblocks: what the pool is, and where its log begins.

Owns their encoding, and which of the two counts. Pure: it must not know media or records.

Superblocks are written in turns to two places. A write begins only when the one before is durable, so of the two places
at most one is ever torn, and the other then holds what was durable before: a torn write is a write that did not happen.

Format, version 2; all numbers are little-endian and without sign, what is not named is zero:

======  =====  ========================================================================
offset  bytes  field
======  =====  ========================================================================
0       8      magic, ``fuseRWLs``
8       4      format version
12      4      layer index
16      8      sequence: one more with every superblock written
24      16     pool uuid
40      8      size of the pool file in bytes
48      8      epoch
56      4      incarnation, from 1
60      4      length of the identity in bytes
64      8      tail position
72      8      LSN of the record at the tail
80      8      written-back generation; 0 where there is none
88      8      durable LSN; 0 where there is none
96      8      media, ASCII, filled up with zero bytes
104     …      image identity, UTF-8
4092    4      CRC-32C (RFC 3720) of the 4092 bytes before
======  =====  ========================================================================

Magic, format version and CRC keep their places in every version, so that an unknown version is told from a torn write.
"""

import struct
import uuid as uuids
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

from fusecache.api import Buffer
from fusecache.api.errors import CorruptState
from fusecache_rwl.format import ALIGNMENT, FORMAT_VERSION, SUPERBLOCK_SIZE

_MAGIC: Final = b"fuseRWLs"
_HEAD: Final = struct.Struct("<8sIIQ16sQQIIQQQQ8s")
_VERSION: Final = struct.Struct("<8sI")
_CRC: Final = struct.Struct("<I")
_BODY_SIZE: Final = SUPERBLOCK_SIZE - _CRC.size
_MAX_IDENTITY: Final = _BODY_SIZE - _HEAD.size


class _Unreadable(CorruptState):
    """A place without a whole superblock: never written, or torn."""


@dataclass(frozen=True, slots=True)
class Superblock:
    """One superblock.

    Attributes:
        sequence: one more with every superblock written; decides which of the two counts, and where the next goes.
        identity: the text of the image's identity.
        index: the layer index.
        uuid: the pool's, 16 bytes; salts the checksums of its records.
        size: of the pool file, in bytes.
        media: ``pmem`` or ``ssd``; at most 8 ASCII characters.
        epoch: the image's.
        incarnation: of the records now written; from 1, raised by every recovery.
        tail_position: where the log begins.
        tail_lsn: of the record there, or of the one to come; from 1.
        written_back: the last generation that is durable below; 0 where there is none.
        durable_lsn: every record up to this LSN is durable; 0 where nothing is known. Never less than in the
            superblock before with the same uuid. A superblock with a new incarnation has the LSN of the last record
            recovered here: what comes later must be of the new incarnation.
    """

    sequence: int
    identity: str
    index: int
    uuid: bytes
    size: int
    media: str
    epoch: int
    incarnation: int
    tail_position: int
    tail_lsn: int
    written_back: int
    durable_lsn: int


def place(sequence: int) -> int:
    """Return where in the pool file the superblock of that sequence goes: 0 or SUPERBLOCK_SIZE."""
    return sequence % 2 * SUPERBLOCK_SIZE


def successor(uuid: bytes) -> bytes:
    """Return the uuid of the log that is begun in the same pool in place of the log *uuid*, by the same opening.

    It follows from the other, so that while that is so recovery knows both by the word that names the first.
    """
    return uuids.uuid5(uuids.UUID(bytes=uuid), "begun anew").bytes


def encode(superblock: Superblock) -> bytes:
    """Return SUPERBLOCK_SIZE bytes.

    Raises:
        ValueError: identity, uuid or media does not fit.
    """
    identity, media = superblock.identity.encode(), superblock.media.encode("ascii")
    if len(identity) > _MAX_IDENTITY or len(superblock.uuid) != 16 or not 0 < len(media) <= 8:
        raise ValueError(f"a superblock does not hold {superblock}")
    head = _HEAD.pack(
        _MAGIC,
        FORMAT_VERSION,
        superblock.index,
        superblock.sequence,
        superblock.uuid,
        superblock.size,
        superblock.epoch,
        superblock.incarnation,
        len(identity),
        superblock.tail_position,
        superblock.tail_lsn,
        superblock.written_back,
        superblock.durable_lsn,
        media,
    )
    body = (head + identity).ljust(_BODY_SIZE, b"\0")
    return body + _CRC.pack(crc32c(body))


def decode(block: Buffer) -> Superblock:
    """Return what SUPERBLOCK_SIZE bytes say.

    Raises:
        CorruptState: they are no superblock, are torn, or are of a version that is not known here.
    """
    _check(block)
    (
        _, _, index, sequence, uuid, size, epoch, incarnation, identity_size,
        tail_position, tail_lsn, written_back, durable_lsn, media,
    ) = _HEAD.unpack_from(block)  # fmt: skip
    try:
        identity = bytes(block[_HEAD.size : _HEAD.size + identity_size]).decode()
        kind = media.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise CorruptState(f"the superblock does not parse: {error}") from None
    if tail_position % ALIGNMENT or not tail_lsn or not incarnation or identity_size > _MAX_IDENTITY:
        raise CorruptState(
            f"the superblock does not parse: tail position {tail_position}, tail LSN {tail_lsn}, "
            f"incarnation {incarnation}, identity of {identity_size} bytes"
        )
    return Superblock(
        sequence=sequence,
        identity=identity,
        index=index,
        uuid=uuid,
        size=size,
        media=kind,
        epoch=epoch,
        incarnation=incarnation,
        tail_position=tail_position,
        tail_lsn=tail_lsn,
        written_back=written_back,
        durable_lsn=durable_lsn,
    )


def _check(block: Buffer) -> None:
    if len(block) != SUPERBLOCK_SIZE:
        raise _Unreadable(f"a superblock has {SUPERBLOCK_SIZE} bytes, found {len(block)}")
    magic, version = _VERSION.unpack_from(block)
    if magic != _MAGIC:
        raise _Unreadable(f"no superblock: it begins with {_MAGIC!r}, found {magic!r}")
    (found,) = _CRC.unpack_from(block, _BODY_SIZE)
    computed = crc32c(memoryview(block)[:_BODY_SIZE])
    if found != computed:
        raise _Unreadable(f"the superblock has a wrong checksum: found {found:08x}, computed {computed:08x}")
    if version != FORMAT_VERSION:
        raise CorruptState(f"the pool's format is version {version}, this program knows version {FORMAT_VERSION}")


def newest(a: Buffer, b: Buffer) -> Superblock:
    """Return the superblock that counts, of what lies at the places 0 and SUPERBLOCK_SIZE. Either may be torn.

    Raises:
        CorruptState: neither is whole, or one is of a version that is not known here.
    """
    whole, faults = _whole(a, b)
    if not whole:
        raise CorruptState("the pool has no superblock; " + "; ".join(faults))
    return max(whole, key=lambda found: found.sequence)


def name_of(superblock: Superblock) -> str:
    """Return what tells a pool with this superblock, or a later one of the same log, from all copies made before."""
    return f"{superblock.uuid.hex()}.{superblock.sequence}"


def is_named(name: str, a: Buffer, b: Buffer) -> bool:
    """Say whether the superblocks of a pool are of the log of that name, or its successor, and not from before it.

    Args:
        name: see :func:`name_of`.
        a, b: as of :func:`newest`, which finds one.
    """
    uuid, sequence = name.split(".")
    found, named = newest(a, b), bytes.fromhex(uuid)
    # Where one place is damaged, the superblock before the one that was there counts.
    lost = 2 - len(_whole(a, b)[0])
    return found.uuid in (named, successor(named)) and found.sequence + lost >= int(sequence)


def _whole(a: Buffer, b: Buffer) -> tuple[list[Superblock], list[str]]:
    """Return the superblocks that are whole, and what is wrong with the others."""
    whole: list[Superblock] = []
    faults: list[str] = []
    for at, block in ((0, a), (SUPERBLOCK_SIZE, b)):
        try:
            found = decode(block)
        except _Unreadable as error:
            faults.append(f"at {at}: {error}")
            continue
        if place(found.sequence) == at:
            whole.append(found)
        else:
            faults.append(f"at {at}: a superblock of sequence {found.sequence}, whose place is {place(found.sequence)}")
    return whole, faults
