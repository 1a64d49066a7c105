"""The bytes of a record.

Owns the encoding of a record's header, and what makes one valid. Pure: it must not know media, or what follows what.

A record is a header of 64 bytes, then its data, padded to a multiple of 64; the padding is not looked at. It never
crosses the ring's end. Format, version 2; all numbers are little-endian and without sign:

======  =====  ====================================================================================
offset  bytes  field
======  =====  ====================================================================================
0       4      magic, ``RWLr``
4       4      incarnation, from 1
8       8      LSN, from 1; consecutive, never that of a record that a recovery has taken
16      8      generation, from 1
24      8      image offset in bytes
32      8      length in bytes
40      8      durable LSN: a lower bound of what was durable when this was written; below its own LSN
48      4      data length in bytes: what is stored behind the header
52      4      CRC-32C of the data; 0 where there are none
56      4      type
60      4      CRC-32C of the 60 bytes before, begun with the CRC-32C of pool uuid and incarnation (bytes 4 to 7)
======  =====  ====================================================================================

CRC-32C is that of RFC 3720. The header's is salted, so that one that another pool left in the file is not valid; it
covers the CRC of the data, which needs no salt of its own.
"""

import struct
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

from crc32c import crc32c

from fusecache.api import Buffer

FORMAT_VERSION: Final = 2
"""Of superblocks and records together; stored in the superblock."""
HEADER_SIZE: Final = 64
"""Bytes of a header."""
ALIGNMENT: Final = 64
"""Every record begins at a multiple of this, in bytes."""
SUPERBLOCK_SIZE: Final = 4096
"""Bytes of one of the two superblocks."""
RING_OFFSET: Final = 2 * SUPERBLOCK_SIZE
"""Where the ring begins in the pool file, in bytes."""
MAX_DATA: Final = 1 << 20
"""The most data one record can have, in bytes."""

_MAGIC: Final = b"RWLr"
_BODY: Final = struct.Struct("<4sIQQQQQIII")
_HEADER: Final = struct.Struct("<4sIQQQQQIIII")
_BODY_SIZE: Final = _BODY.size
_CRC: Final = struct.Struct("<I")
_MAX_END: Final = 1 << 63


class RecordType(IntEnum):
    """What a record says, and what its fields mean.

    DATA: *length* bytes of the image at *offset* are the record's data; 1 to MAX_DATA.
    DISCARD, ZERO: *length* bytes of the image at *offset*, at least 1, are discarded, or zero; no data are stored.
    SYNC: the last record of its generation; *offset* and *length* are 0.
    PAD: fills *length* bytes behind the header, 0 to MAX_DATA, which mean nothing; *offset* is 0.
    VOID: as PAD; it takes place, size and LSN of a record whose append failed.
    GROUP: the generations from the number *offset* to the number *length*, which are all before its own, go below as
        one; no data are stored.
    """

    DATA = 1
    DISCARD = 2
    ZERO = 3
    SYNC = 4
    PAD = 5
    VOID = 6
    GROUP = 7


# To find a member through its class takes longer than what a scan does with it.
_DATA: Final = RecordType.DATA
_PAD: Final = RecordType.PAD
_VOID: Final = RecordType.VOID
_TYPES: Final = {kind.value: kind for kind in RecordType}


class Record(NamedTuple):
    """A header, decoded; the module's docstring and :class:`RecordType` say what the fields mean."""

    lsn: int
    incarnation: int
    generation: int
    type: RecordType
    offset: int
    length: int
    data_length: int
    durable_lsn: int
    data_crc: int


def record_size(data_length: int) -> int:
    """Return how many bytes of the ring a record with so many bytes of data takes."""
    return HEADER_SIZE + (data_length + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@lru_cache(maxsize=64)
def _salt(uuid: bytes, incarnation: int) -> int:
    return crc32c(uuid + _CRC.pack(incarnation))


class Encoder:
    """Makes the headers of one pool's records.

    Args:
        uuid: the pool's, 16 bytes.
    """

    __slots__ = ("_incarnation", "_salt", "_uuid")

    def __init__(self, uuid: bytes) -> None:
        self._uuid = uuid
        self._incarnation = 0
        self._salt = 0

    def header(
        self,
        lsn: int,
        incarnation: int,
        generation: int,
        type: RecordType,
        offset: int,
        length: int,
        data: Buffer | None,
        durable_lsn: int,
    ) -> bytes:
        """Return a record's 64 bytes of header.

        Args:
            data: *length* bytes for DATA, as single bytes; None for the other types.
            durable_lsn: everything up to this LSN is known to be durable; 0 where nothing is known.

        Raises:
            ValueError: *data* are not *length* bytes or more than MAX_DATA, or *durable_lsn* is not below *lsn*.
        """
        if incarnation != self._incarnation:
            self._salt = _salt(self._uuid, incarnation)
            self._incarnation = incarnation
        if data is not None:
            data_length = len(data)
            data_crc = crc32c(data)
            if data_length != length:
                raise ValueError(f"found {data_length} bytes of data for a length of {length}")
        else:
            data_length = length if type is _PAD or type is _VOID else 0
            data_crc = 0
        if data_length > MAX_DATA or durable_lsn >= lsn:
            raise ValueError(f"data length {data_length} of {MAX_DATA}, durable LSN {durable_lsn} at LSN {lsn}")
        body = _BODY.pack(
            _MAGIC, incarnation, lsn, generation, offset, length, durable_lsn, data_length, data_crc, type
        )
        return body + _CRC.pack(crc32c(body, self._salt))

    def pad(self, lsn: int, incarnation: int, generation: int, fills: int) -> bytes:
        """Return the header of a PAD record that fills *fills* bytes, 0 to MAX_DATA, behind itself."""
        return self.header(lsn, incarnation, generation, RecordType.PAD, 0, fills, None, 0)


def decode(uuid: bytes, header_bytes: Buffer) -> Record | None:
    """Return what 64 bytes say, or None where they are not a valid header of that pool.

    Args:
        uuid: the pool's, 16 bytes.
    """
    magic, incarnation, lsn, generation, offset, length, durable_lsn, data_length, data_crc, kind, crc = _HEADER.unpack(
        header_bytes
    )
    if magic != _MAGIC or crc32c(memoryview(header_bytes)[:_BODY_SIZE], _salt(uuid, incarnation)) != crc:
        return None
    known = _TYPES.get(kind)
    if known is None or durable_lsn >= lsn or incarnation == 0 or generation == 0:
        return None
    record = Record(lsn, incarnation, generation, known, offset, length, data_length, durable_lsn, data_crc)
    return record if _lengths_good(record) else None


def _lengths_good(record: Record) -> bool:
    kind, offset, length, data_length = record.type, record.offset, record.length, record.data_length
    if kind is _DATA:
        return length == data_length and 0 < length <= MAX_DATA and offset + length <= _MAX_END
    if kind is _PAD or kind is _VOID:
        return offset == 0 and length == data_length <= MAX_DATA
    if kind is RecordType.SYNC:
        return offset == length == data_length == 0
    if kind is RecordType.GROUP:
        return data_length == 0 and 0 < offset < length < record.generation
    return data_length == 0 and length > 0 and offset + length <= _MAX_END


def whole_data(uuid: bytes, stored: Buffer, offset: int, length: int) -> tuple[int, int] | None:
    """Return LSN and incarnation of a DATA record of the image's bytes from *offset*; None where *stored* is not one.

    Args:
        uuid: the pool's, 16 bytes.
        stored: the header and *length* bytes behind it, as single bytes.
    """
    magic, incarnation, lsn, _, at, size, _, data_length, data_crc, kind, crc = _HEADER.unpack_from(stored)
    if (magic, kind, at, size, data_length) != (_MAGIC, RecordType.DATA, offset, length, length):
        return None
    view = memoryview(stored)
    if crc32c(view[:_BODY_SIZE], _salt(uuid, incarnation)) != crc or crc32c(view[HEADER_SIZE:]) != data_crc:
        return None
    return lsn, incarnation


def data_good(record: Record, data: Buffer) -> bool:
    """Tell whether *data*, as read from behind the header, are the record's."""
    return len(data) == record.data_length and crc32c(data) == record.data_crc
