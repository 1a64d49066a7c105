"""What the cluster keeps about an image, as librbd's object class ``rbd`` writes it.

Owns the layout of the objects that name and describe images (``rbd_directory``, ``rbd_id.<name>``,
``rbd_header.<id>``): decoding of bytes, nothing else. It must not know where the bytes come from. The encoding is
Ceph's: integers are little-endian; a string is its length as 32 bits, and its bytes; a structure begins with its
version, the oldest version that can read it (8 bits each) and the length of what follows (32 bits).

Sources: ``src/include/encoding.h``, ``src/cls/rbd/cls_rbd.h`` (``cls_rbd_snap``) and ``cls_rbd.cc`` of Ceph.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from fusecache.api.errors import CorruptState

T = TypeVar("T")

RECORD_KEY: Final = "fusecache_record"
"""The metadata key of the record of the layers above an image."""

GUARD_KEY: Final = "conf_rbd_plugins"
"""The metadata key that keeps programs that do not know of the record from opening the image."""

METADATA: Final = "metadata_"
"""What the header's keys of metadata begin with."""

SNAPSHOT: Final = "snapshot_"
"""What the header's keys of snapshots begin with; 16 hexadecimal digits follow."""

HEADER_KEYS: Final = (
    "size",
    "features",
    "create_timestamp",
    "modify_timestamp",
    METADATA + RECORD_KEY,
    METADATA + GUARD_KEY,
)
"""The keys of a header that :func:`decode_header` looks at, but for the snapshots."""

_EXCLUSIVE_LOCK: Final = 1 << 2
_USER_SNAPSHOT: Final = 0
_NO_LOCK: Final = (
    "the image has no feature exclusive-lock, so it can only be read, and what was read is not kept; "
    "`rbd feature enable {name} exclusive-lock` changes that at the next open"
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of an image, made by a user.

    Attributes:
        id: the cluster's number.
        size: bytes the image had.
        mtime_ns: when it was made, nanoseconds since the epoch; 0 where unknown.
    """

    id: int
    name: str
    size: int
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """An image, as its header object describes it.

    Attributes:
        id: the image's id, which a rename keeps.
        name: under which it was looked up.
        size: bytes.
        features: RBD_FEATURE_* bits.
        snapshots: by name; those a user made.
        guard: the value of ``conf_rbd_plugins``, None where there is none.
        record: the record of the layers above, not decoded; None where there is none.
        mtime_ns: time of the last change, nanoseconds since the epoch; librbd brings it up to date once a minute.
        read_only_reason: empty, or why the image can only be read (no exclusive-lock feature), and what to enable.
    """

    id: str
    name: str
    size: int
    features: int
    snapshots: Mapping[str, Snapshot] = field(default_factory=dict)
    guard: str | None = None
    record: bytes | None = None
    mtime_ns: int = 0
    read_only_reason: str = ""

    @property
    def object_name(self) -> str:
        """The header object."""
        return header_object(self.id)


def id_object(name: str) -> str:
    """Return the object that holds the id of the image *name*."""
    return f"rbd_id.{name}"


def header_object(image_id: str) -> str:
    """Return the object that describes an image."""
    return f"rbd_header.{image_id}"


def decode_header(image_id: str, name: str, values: Mapping[str, bytes], snapshots: Iterable[bytes] = ()) -> Header:
    """Return the header whose object holds *values* under :data:`HEADER_KEYS`, and *snapshots*.

    Raises:
        CorruptState: that cannot be.
    """

    def value(key: str, decode: Callable[["_Reader"], T], default: T) -> T:
        return _decoded(f"{header_object(image_id)} {key}", values[key], decode) if key in values else default

    if "size" not in values or "features" not in values:
        raise CorruptState(f"{header_object(image_id)}, the header of image {name!r}, names no size or no features")
    features = value("features", _Reader.u64, 0)
    guard = values.get(METADATA + GUARD_KEY)
    found = (_decoded(f"a snapshot of {header_object(image_id)}", raw, _snapshot) for raw in snapshots)
    return Header(
        id=image_id,
        name=name,
        size=value("size", _Reader.u64, 0),
        features=features,
        snapshots={snapshot.name: snapshot for snapshot in found if snapshot is not None},
        guard=None if guard is None else guard.decode(errors="backslashreplace"),
        record=values.get(METADATA + RECORD_KEY),
        mtime_ns=value("modify_timestamp", _Reader.time, 0) or value("create_timestamp", _Reader.time, 0),
        read_only_reason="" if features & _EXCLUSIVE_LOCK else _NO_LOCK.format(name=name),
    )


def decode_string(what: str, raw: bytes) -> str:
    """Return the text of one encoded string, such as an id.

    Raises:
        CorruptState: *raw*, which is *what*, is none.
    """
    return _decoded(what, raw, _Reader.string).decode(errors="surrogateescape")


def encode_string(text: str) -> bytes:
    """Return *text* encoded as one string."""
    data = text.encode(errors="surrogateescape")
    return struct.pack("<I", len(data)) + data


def encode_listing(after: str, most: int) -> bytes:
    """Return the question of the method ``dir_list``: the names after *after*, at most *most* of them."""
    return encode_string(after) + struct.pack("<Q", most)


def decode_listing(raw: bytes) -> list[tuple[str, str]]:
    """Return names and ids out of the answer of the method ``dir_list``, in order; bytes that are not UTF-8 as
    surrogates.

    Raises:
        CorruptState: it is no such answer.
    """
    return _decoded("the list of images", raw, lambda reader: list(_entries(reader)))


def _entries(reader: "_Reader") -> Iterator[tuple[str, str]]:
    for _ in range(reader.u32()):
        name, image_id = reader.string(), reader.string()
        yield name.decode(errors="surrogateescape"), image_id.decode(errors="surrogateescape")


def _snapshot(reader: "_Reader") -> Snapshot | None:
    """Return a snapshot, or None where no user made it (groups, trash, mirroring)."""
    version, oldest, _ = reader.u8(), reader.u8(), reader.u32()
    number, name, size = reader.u64(), reader.string(), reader.u64()
    if oldest < 8:
        reader.u64()  # features
        reader.structure()  # parent
    reader.u8()  # protection
    if version >= 3:
        reader.u64()  # flags
    kind = _USER_SNAPSHOT
    if version >= 5:
        kind = _Reader(reader.structure()).u32()
    made = reader.time() if version >= 6 else 0
    if kind != _USER_SNAPSHOT:
        return None
    return Snapshot(number, name.decode(errors="surrogateescape"), size, made)


def _decoded(what: str, raw: bytes, decode: Callable[["_Reader"], T]) -> T:
    try:
        return decode(_Reader(raw))
    except struct.error:
        raise CorruptState(f"{what} does not parse: found {raw[:64].hex()}, {len(raw)} bytes") from None


class _Reader:
    """Takes Ceph's encodings off the front of bytes; ``struct.error`` where they end too early."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def u8(self) -> int:
        return self._integer("<B")

    def u32(self) -> int:
        return self._integer("<I")

    def u64(self) -> int:
        return self._integer("<Q")

    def _integer(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self._raw, self._at)
        self._at += struct.calcsize(form)
        return int(value)

    def string(self) -> bytes:
        return self._bytes(self.u32())

    def structure(self) -> bytes:
        """Return the content of a structure, whatever its version."""
        self._bytes(2)
        return self._bytes(self.u32())

    def time(self) -> int:
        """Return a time as nanoseconds since the epoch; written as seconds and nanoseconds, 32 bits each."""
        return self.u32() * 1_000_000_000 + self.u32()

    def _bytes(self, length: int) -> bytes:
        taken = self._raw[self._at : self._at + length]
        if len(taken) < length:
            raise struct.error
        self._at += length
        return taken
