"""The FUSE wire format, as far as we read and write it ourselves.

Owns opcodes, flags, structures and their (de)coding, from the kernel's ``include/uapi/linux/fuse.h`` (protocol 7.45 and
older; everything used here is unchanged since 7.23, the INIT flags since the version named beside them). Pure.

Integers are in the machine's own byte order; the kernel and the daemon share it.
"""

import struct
from enum import IntEnum
from typing import Final


class Opcode(IntEnum):
    """Requests that the channel or the data plane looks at; all others are relayed unread."""

    LOOKUP = 1
    FORGET = 2
    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIRPLUS = 44
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45
    LSEEK = 46


IN_HEADER: Final = struct.Struct("=IIQQIIIHH")
"""length, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""
REQUEST: Final = struct.Struct("=4xIQ24xQQI")
"""opcode, unique, and the first fields of READ and WRITE: fh, offset, size. Others are read over the same bytes."""
FSYNC_IN: Final = struct.Struct("=QI4x")
"""fh, flags."""
FALLOCATE_IN: Final = struct.Struct("=QQQI4x")
"""fh, offset, length, mode."""
LSEEK_IN: Final = struct.Struct("=QQI4x")
"""fh, offset, whence."""
FORGET_ONE: Final = struct.Struct("=QQ")
"""nodeid, lookups: an entry of BATCH_FORGET. A FORGET has its nodeid in the header and only the second field."""
LISTING_IN: Final = struct.Struct("=QQI")
"""fh, offset, size: the first fields of READDIRPLUS."""
INTERRUPT_IN: Final = struct.Struct("=Q")
"""unique of the interrupted request."""
OUT_HEADER: Final = struct.Struct("=IiQ")
"""length, error (negative errno), unique."""
WRITE_OUT: Final = struct.Struct("=IiQI4x")
"""A whole reply to WRITE: header and size."""
LSEEK_OUT: Final = struct.Struct("=IiQQ")
"""A whole reply to LSEEK: header and offset."""
OPEN_OUT: Final = struct.Struct("=QI4x")
"""fh, open_flags."""
INIT_IN: Final = struct.Struct("=IIIII44x")
"""major, minor, max_readahead, flags, flags2."""
INIT_OUT: Final = struct.Struct("=IIIIHHIIHHII24x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages,
map_alignment, flags2, max_stack_depth."""
RELEASE_IN: Final = struct.Struct("=QIIQ")
"""fh, flags, release_flags, lock_owner."""
INVAL_INODE_OUT: Final = struct.Struct("=IiQQqq")
"""A whole notification: header (code in place of the error, unique 0), nodeid, offset, length."""

IN_HEADER_SIZE: Final = IN_HEADER.size
HEADER_SIZE: Final = 80
"""Bytes of a WRITE request before its payload: in_header and write_in. The first part of every readv."""
ENTRY_OUT_SIZE: Final = 128
"""struct fuse_entry_out, in front of OPEN_OUT in a reply to CREATE and of each entry of READDIRPLUS."""
_DIRENT_SIZE: Final = 24
"""struct fuse_dirent before its name."""
_NAME_LENGTH: Final = struct.Struct("=16xI")

REFUSED: Final[frozenset[int]] = frozenset({Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.RMDIR, Opcode.LINK})
"""Answered EPERM: there are only images."""
CHANGES_NAMES: Final[frozenset[int]] = frozenset(
    {
        Opcode.SETATTR,
        Opcode.UNLINK,
        Opcode.RENAME,
        Opcode.RENAME2,
        Opcode.CREATE,
    }
)
"""Relayed requests that must not be repeated blindly."""
OPEN_REPLY_AT: Final[dict[int, int]] = {Opcode.OPEN: OUT_HEADER.size, Opcode.CREATE: OUT_HEADER.size + ENTRY_OUT_SIZE}
"""Where OPEN_OUT stands in a reply."""

NOTIFY_INVAL_INODE: Final = 2

FOPEN_DIRECT_IO: Final = 1 << 0
FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_PARALLEL_DIRECT_WRITES: Final = 1 << 6

INIT_POSIX_LOCKS: Final = 1 << 1
INIT_FLOCK_LOCKS: Final = 1 << 10
INIT_AUTO_INVAL_DATA: Final = 1 << 12
INIT_DO_READDIRPLUS: Final = 1 << 13
INIT_READDIRPLUS_AUTO: Final = 1 << 14
INIT_ASYNC_DIO: Final = 1 << 15
INIT_WRITEBACK_CACHE: Final = 1 << 16
INIT_PARALLEL_DIROPS: Final = 1 << 18
INIT_MAX_PAGES: Final = 1 << 22
INIT_EXT: Final = 1 << 30
INIT_DIRECT_IO_ALLOW_MMAP: Final = 1 << 36

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10

SEEK_DATA: Final = 3
SEEK_HOLE: Final = 4

_WANTED: Final = (
    INIT_ASYNC_DIO | INIT_PARALLEL_DIROPS | INIT_DO_READDIRPLUS | INIT_MAX_PAGES | INIT_DIRECT_IO_ALLOW_MMAP
)
# pyfuse3 serves READDIRPLUS only, and with AUTO the kernel also sends READDIR.
_UNWANTED: Final = (
    INIT_READDIRPLUS_AUTO | INIT_POSIX_LOCKS | INIT_FLOCK_LOCKS | INIT_AUTO_INVAL_DATA | INIT_WRITEBACK_CACHE
)


def error_reply(unique: int, errno: int) -> bytes:
    """Return a reply without a body; *errno* is positive, or 0 for success."""
    return OUT_HEADER.pack(OUT_HEADER.size, -errno, unique)


def adjust_init(request: bytes, reply: bytes, *, max_write: int, background: int) -> bytes:
    """Return libfuse's *reply* to INIT with what it cannot be told to say.

    Only what the kernel offered is asked for. *background* bounds the requests that it sends for nobody who waits.
    """
    _, _, _, offered, offered2 = INIT_IN.unpack_from(
        request.ljust(IN_HEADER_SIZE + INIT_IN.size, b"\0"), IN_HEADER_SIZE
    )
    offered |= offered2 << 32 if offered & INIT_EXT else 0
    length, error, unique = OUT_HEADER.unpack_from(reply)
    if error or length < OUT_HEADER.size + INIT_OUT.size:
        raise ValueError(f"the reply to INIT has error {error} and {length} bytes; needed: 0 and a 64-byte body")
    major, minor, readahead, flags, _, _, _, gran, _, alignment, flags2, depth = INIT_OUT.unpack_from(reply, 16)
    flags |= flags2 << 32
    flags = (flags | _WANTED) & offered & ~_UNWANTED
    if flags >> 32:
        flags |= INIT_EXT
    body = INIT_OUT.pack(
        major,
        minor,
        readahead,
        flags & 0xFFFFFFFF,
        background,
        background * 3 // 4,
        max_write,
        gran,
        max_write // 4096,
        alignment,
        flags >> 32,
        depth,
    )
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body


def offers_coherent_direct_io(request: bytes) -> bool:
    """Say whether the kernel that sent this INIT keeps pages true that other openers have, beside direct ones."""
    _, _, _, flags, flags2 = INIT_IN.unpack_from(request.ljust(IN_HEADER_SIZE + INIT_IN.size, b"\0"), IN_HEADER_SIZE)
    return bool((flags2 << 32 if flags & INIT_EXT else 0) & INIT_DIRECT_IO_ALLOW_MMAP)


def opened_handle(reply: bytes, at: int) -> int:
    """Return the file handle of a successful reply to OPEN or CREATE."""
    handle: int = OPEN_OUT.unpack_from(reply, at)[0]
    return handle


def adjust_open(reply: bytes, at: int, *, parallel: bool) -> bytes:
    """Return a successful reply to OPEN or CREATE where a direct opener may write in parallel, or is none at all."""
    handle, flags = OPEN_OUT.unpack_from(reply, at)
    if flags & FOPEN_DIRECT_IO:
        flags = flags | FOPEN_PARALLEL_DIRECT_WRITES if parallel else flags & ~FOPEN_DIRECT_IO
    return reply[:at] + OPEN_OUT.pack(handle, flags) + reply[at + OPEN_OUT.size :]


def forgotten(opcode: int, message: bytes) -> list[tuple[int, int]]:
    """Return nodeids and lookups of a FORGET or BATCH_FORGET."""
    if opcode == Opcode.FORGET:
        return [(IN_HEADER.unpack_from(message)[3], struct.unpack_from("=Q", message, IN_HEADER_SIZE)[0])]
    (count,) = struct.unpack_from("=I", message, IN_HEADER_SIZE)
    return [FORGET_ONE.unpack_from(message, IN_HEADER_SIZE + 8 + 16 * index) for index in range(count)]


def listed(reply: bytes) -> list[tuple[int, int]]:
    """Return nodeids and lookups that a successful reply to READDIRPLUS gives out."""
    found, at = [], OUT_HEADER.size
    while at < len(reply):
        found.append((FORGET_ONE.unpack_from(reply, at)[0], 1))
        (length,) = _NAME_LENGTH.unpack_from(reply, at + ENTRY_OUT_SIZE)
        at += ENTRY_OUT_SIZE + _DIRENT_SIZE + (length + 7 & ~7)
    return found


def bound_listing(head: memoryview, size: int) -> None:
    """Have a READDIRPLUS ask for at most *size* bytes."""
    handle, offset, asked = LISTING_IN.unpack_from(head, IN_HEADER_SIZE)
    LISTING_IN.pack_into(head, IN_HEADER_SIZE, handle, offset, min(asked, size))


def invalidation(nodeid: int) -> bytes:
    """Return the notification that drops a file's pages and attributes."""
    return INVAL_INODE_OUT.pack(INVAL_INODE_OUT.size, NOTIFY_INVAL_INODE, 0, nodeid, 0, 0)
