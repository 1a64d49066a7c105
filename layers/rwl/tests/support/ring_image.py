"""A ring in memory, written record by record.

Owns where records go and what was appended. It must not know how a scan judges them.
"""

from dataclasses import dataclass, field

from fusecache.api import Buffer
from fusecache_rwl.format import HEADER_SIZE, RING_OFFSET, Encoder, Record, RecordType, decode, record_size
from fusecache_rwl.scan import Head, Scanned, scan
from fusecache_rwl.superblock import Superblock

UUID = bytes(range(16))


def superblock(ring_size: int, **changes: int | str | bytes) -> Superblock:
    """The superblock of a new pool with that ring, but for *changes*."""
    fields: dict[str, int | str | bytes] = {
        "sequence": 1,
        "identity": "rbd:f:1::10aa",
        "index": 0,
        "uuid": UUID,
        "size": RING_OFFSET + ring_size,
        "media": "ssd",
        "epoch": 1,
        "incarnation": 1,
        "tail_position": 0,
        "tail_lsn": 1,
        "written_back": 0,
        "durable_lsn": 0,
    }
    return Superblock(**(fields | changes))  # type: ignore[arg-type]


@dataclass
class RingImage:
    """Appends at *position*, as the next LSN, in the current incarnation and generation; all may be changed."""

    size: int = 1 << 16
    position: int = 0
    lsn: int = 1
    incarnation: int = 1
    generation: int = 1
    durable: int = 0
    uuid: bytes = UUID
    memory: bytearray = field(default_factory=bytearray)
    appended: list[tuple[int, Record, bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.memory = self.memory or bytearray(self.size)

    def append(self, kind: RecordType, offset: int = 0, length: int = 0, data: bytes | None = None) -> int:
        """Append a record and return its position."""
        header = Encoder(self.uuid).header(
            self.lsn, self.incarnation, self.generation, kind, offset, length, data, self.durable
        )
        record = decode(self.uuid, header)
        assert record is not None
        position = self.position
        self.store(position, header + (data or b""))
        self.appended.append((position, record, data or b""))
        self.position += record_size(record.data_length)
        self.lsn += 1
        return position

    def data(self, data: bytes, offset: int = 0) -> int:
        """Append a DATA record and return its position; a PAD goes before it where the ring ends."""
        room = self.size - self.position % self.size
        if record_size(len(data)) > room:
            self.append(RecordType.PAD, length=room - HEADER_SIZE)
        return self.append(RecordType.DATA, offset, len(data), data)

    def sync(self) -> int:
        """Append a SYNC record, begin the next generation, and return the record's position."""
        position = self.append(RecordType.SYNC)
        self.generation += 1
        return position

    def store(self, position: int, content: bytes) -> None:
        """Put bytes into the ring, which must not cross its end."""
        at = position % self.size
        assert at + len(content) <= self.size
        self.memory[at : at + len(content)] = content

    def read(self, position: int, length: int) -> Buffer:
        """What a medium does for a scan."""
        at = position % self.size
        assert 0 <= length <= self.size - at, "the ring's end was crossed"
        return bytes(self.memory[at : at + length])

    def scan(self, **changes: int | str | bytes) -> tuple[list[tuple[int, Record, bytes]], Head]:
        """Scan as with a new pool's superblock, but for *changes*; return what was appended that was found."""
        return self.scan_from(superblock(self.size, **changes))

    def scan_from(self, block: Superblock) -> tuple[list[tuple[int, Record, bytes]], Head]:
        """Scan, and return records with position and data, and the head."""
        found: list[tuple[int, Record, bytes]] = []
        head: Head | None = None
        for one in scan(block, self.size, self.read):
            assert head is None, "something comes after the head"
            if isinstance(one, Scanned):
                stored = one.record.data_length if one.record.type is RecordType.DATA else 0
                data = bytes(self.read(one.position + HEADER_SIZE, stored))
                found.append((one.position, one.record, data))
            else:
                head = one
        assert head is not None
        return found, head
