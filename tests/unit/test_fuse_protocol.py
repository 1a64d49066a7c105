"""The wire format is that of the kernel's ``include/uapi/linux/fuse.h``, byte for byte."""

import struct
import sys

import pytest

from fusecache.fuse import protocol
from fusecache.fuse.protocol import (
    Opcode,
    adjust_init,
    adjust_open,
    bound_listing,
    error_reply,
    forgotten,
    invalidation,
    listed,
    offers_coherent_direct_io,
    opened_handle,
)


def u(size: int, *values: int) -> bytes:
    """Integers of *size* bytes each, as the kernel lays them out."""
    return b"".join(value.to_bytes(size, sys.byteorder, signed=value < 0) for value in values)


HEADER = u(4, 96, 16) + u(8, 0x1122, 0x3344) + u(4, 1000, 100, 77) + u(2, 0, 0)


@pytest.mark.parametrize(
    ("layout", "found", "values"),
    [
        # struct fuse_in_header, fuse_out_header
        (protocol.IN_HEADER, HEADER, (96, 16, 0x1122, 0x3344, 1000, 100, 77, 0, 0)),
        (protocol.OUT_HEADER, u(4, 16, -5) + u(8, 7), (16, -5, 7)),
        # struct fuse_fsync_in, fuse_fallocate_in, fuse_lseek_in, fuse_interrupt_in, fuse_release_in
        (protocol.FSYNC_IN, u(8, 9) + u(4, 1, 0), (9, 1)),
        (protocol.FALLOCATE_IN, u(8, 9, 4096, 512) + u(4, 3, 0), (9, 4096, 512, 3)),
        (protocol.LSEEK_IN, u(8, 9, 4096) + u(4, 4, 0), (9, 4096, 4)),
        (protocol.INTERRUPT_IN, u(8, 0x1122), (0x1122,)),
        (protocol.RELEASE_IN, u(8, 9) + u(4, 2, 1) + u(8, 5), (9, 2, 1, 5)),
        # struct fuse_forget_one; struct fuse_read_in up to its size, of a READDIRPLUS
        (protocol.FORGET_ONE, u(8, 0x3344, 5), (0x3344, 5)),
        (protocol.LISTING_IN, u(8, 9, 4096) + u(4, 512), (9, 4096, 512)),
        # replies: struct fuse_write_out, fuse_lseek_out; struct fuse_open_out alone
        (protocol.WRITE_OUT, u(4, 24, 0) + u(8, 7) + u(4, 4096, 0), (24, 0, 7, 4096)),
        (protocol.LSEEK_OUT, u(4, 24, 0) + u(8, 7, 4096), (24, 0, 7, 4096)),
        (protocol.OPEN_OUT, u(8, 9) + u(4, 3, 0), (9, 3)),
        # struct fuse_init_in, fuse_init_out
        (protocol.INIT_IN, u(4, 7, 38, 131072, 3, 16) + bytes(44), (7, 38, 131072, 3, 16)),
        (
            protocol.INIT_OUT,
            u(4, 7, 38, 131072, 3) + u(2, 12, 9) + u(4, 1 << 20, 1) + u(2, 256, 0) + u(4, 16, 1) + bytes(24),
            (7, 38, 131072, 3, 12, 9, 1 << 20, 1, 256, 0, 16, 1),
        ),
        # a notification: struct fuse_out_header with a code, struct fuse_notify_inval_inode_out
        (protocol.INVAL_INODE_OUT, u(4, 40, 2) + u(8, 0, 5, 0, 0), (40, 2, 0, 5, 0, 0)),
    ],
    ids=lambda value: value.format if isinstance(value, struct.Struct) else "",
)
def test_structures_are_the_kernels(layout: struct.Struct, found: bytes, values: tuple[int, ...]) -> None:
    assert layout.unpack(found) == values
    assert layout.pack(*values) == found


@pytest.mark.parametrize(
    "body",
    [
        # struct fuse_read_in and fuse_write_in begin alike, and are of one length.
        u(8, 9, 4096) + u(4, 512, 0) + u(8, 0) + u(4, 0, 0),
        u(8, 9, 4096) + u(4, 512, 1) + u(8, 5) + u(4, 2, 0),
    ],
    ids=["fuse_read_in", "fuse_write_in"],
)
def test_a_request_that_moves_bytes_is_decoded_in_one_go(body: bytes) -> None:
    assert len(HEADER + body) == protocol.HEADER_SIZE
    assert protocol.REQUEST.unpack_from(HEADER + body) == (16, 0x1122, 9, 4096, 512)


def test_opcodes_are_the_kernels() -> None:
    assert {opcode.name: opcode.value for opcode in Opcode} == {
        "LOOKUP": 1,
        "FORGET": 2,
        "SETATTR": 4,
        "SYMLINK": 6,
        "MKNOD": 8,
        "MKDIR": 9,
        "UNLINK": 10,
        "RMDIR": 11,
        "RENAME": 12,
        "LINK": 13,
        "OPEN": 14,
        "READ": 15,
        "WRITE": 16,
        "RELEASE": 18,
        "FSYNC": 20,
        "FLUSH": 25,
        "INIT": 26,
        "OPENDIR": 27,
        "CREATE": 35,
        "INTERRUPT": 36,
        "DESTROY": 38,
        "BATCH_FORGET": 42,
        "FALLOCATE": 43,
        "READDIRPLUS": 44,
        "RENAME2": 45,
        "LSEEK": 46,
    }


def test_an_error_is_a_header_alone() -> None:
    assert error_reply(7, 5) == u(4, 16, -5) + u(8, 7)
    assert error_reply(7, 0) == u(4, 16, 0) + u(8, 7)


def test_an_invalidation_drops_the_whole_file() -> None:
    assert invalidation(1 << 62) == u(4, 40, 2) + u(8, 0, 1 << 62, 0, 0)


OPEN_REPLY = u(4, 32, 0) + u(8, 7)
ENTRY = bytes(range(128))


@pytest.mark.parametrize(("flags", "allowed"), [(1, 0x41), (3, 0x43), (2, 2), (0, 0)])
@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.CREATE])
def test_direct_openers_and_no_others_may_write_in_parallel(opcode: Opcode, flags: int, allowed: int) -> None:
    front = OPEN_REPLY + (ENTRY if opcode is Opcode.CREATE else b"")
    at = protocol.OPEN_REPLY_AT[opcode]
    reply = front + u(8, 9) + u(4, flags, 0)
    assert opened_handle(reply, at) == 9
    assert adjust_open(reply, at, parallel=True) == front + u(8, 9) + u(4, allowed, 0)
    assert adjust_open(reply, at, parallel=False) == front + u(8, 9) + u(4, flags & ~1, 0)


def test_a_forget_names_one_node_and_a_batch_several() -> None:
    assert forgotten(Opcode.FORGET, HEADER + u(8, 5)) == [(0x3344, 5)]
    batch = HEADER + u(4, 2, 0) + u(8, 0x10, 1) + u(8, 0x20, 1 << 40)
    assert forgotten(Opcode.BATCH_FORGET, batch) == [(0x10, 1), (0x20, 1 << 40)]
    assert forgotten(Opcode.BATCH_FORGET, HEADER + u(4, 0, 0)) == []


@pytest.mark.parametrize(("asked", "allowed"), [(1 << 20, 131072), (131072, 131072), (4096, 4096)])
def test_a_listing_is_bounded_and_nothing_else_of_it_changes(asked: int, allowed: int) -> None:
    head = bytearray(HEADER + u(8, 9, 77) + u(4, asked, 3) + u(8, 5) + u(4, 2, 0))
    bound_listing(memoryview(head), 131072)
    assert head == HEADER + u(8, 9, 77) + u(4, allowed, 3) + u(8, 5) + u(4, 2, 0)


@pytest.mark.parametrize("names", [[], [b"x"], [b"12345678", b"n" * 255, b"abc"]])
def test_a_listing_gives_each_of_its_nodes_out_once(names: list[bytes]) -> None:
    # struct fuse_direntplus: an entry_out, then ino, off, namelen, type and the name, padded to 8 bytes
    reply = u(4, 0, 0) + u(8, 7)
    for at, name in enumerate(names):
        reply += u(8, 0x50 + at) + bytes(120) + u(8, 1, 2) + u(4, len(name), 8) + name + bytes(-len(name) % 8)
    assert listed(reply) == [(0x50 + at, 1) for at in range(len(names))]


POSIX_LOCKS, ATOMIC_O_TRUNC, BIG_WRITES, FLOCK_LOCKS = 1 << 1, 1 << 3, 1 << 5, 1 << 10
AUTO_INVAL_DATA, DO_READDIRPLUS, READDIRPLUS_AUTO, ASYNC_DIO = 1 << 12, 1 << 13, 1 << 14, 1 << 15
WRITEBACK_CACHE, PARALLEL_DIROPS, MAX_PAGES, INIT_EXT = 1 << 16, 1 << 18, 1 << 22, 1 << 30
DIRECT_IO_ALLOW_MMAP = 1 << 36 - 32

EVERYTHING_OLD = (1 << 30) - 1


def init_request(flags: int, flags2: int = 0, *, length: int = 104) -> bytes:
    body = u(4, 7, 45, 131072, flags, flags2) + bytes(44)
    return (u(4, length, 26) + u(8, 2, 0) + u(4, 0, 0, 0) + u(2, 0, 0) + body)[:length]


def init_reply(flags: int, flags2: int = 0) -> bytes:
    body = u(4, 7, 38, 65536, flags) + u(2, 0, 0) + u(4, 131072, 1) + u(2, 32, 0) + u(4, flags2, 0) + bytes(24)
    return u(4, 80, 0) + u(8, 2) + body


def test_a_new_kernel_is_asked_for_what_pyfuse3_cannot_say() -> None:
    request = init_request(EVERYTHING_OLD | INIT_EXT, 0xFFFFFFFF)
    reply = init_reply(
        ATOMIC_O_TRUNC | BIG_WRITES | POSIX_LOCKS | FLOCK_LOCKS | AUTO_INVAL_DATA | WRITEBACK_CACHE | READDIRPLUS_AUTO
    )
    flags = ATOMIC_O_TRUNC | BIG_WRITES | ASYNC_DIO | PARALLEL_DIROPS | DO_READDIRPLUS | MAX_PAGES | INIT_EXT
    assert adjust_init(request, reply, max_write=1 << 20, background=1024) == (
        u(4, 80, 0)
        + u(8, 2)
        + u(4, 7, 38, 65536, flags)
        + u(2, 1024, 768)
        + u(4, 1 << 20, 1)
        + u(2, 256, 0)
        + u(4, DIRECT_IO_ALLOW_MMAP, 0)
        + bytes(24)
    )


@pytest.mark.parametrize(
    ("request_", "expected", "expected2"),
    [
        # Before 7.36: a short INIT, no second word of flags.
        (init_request(EVERYTHING_OLD, length=56), ASYNC_DIO | PARALLEL_DIROPS | DO_READDIRPLUS | MAX_PAGES, 0),
        # What stands where the second word would be counts only where the kernel says that it is one.
        (init_request(EVERYTHING_OLD, 0xFFFFFFFF), ASYNC_DIO | PARALLEL_DIROPS | DO_READDIRPLUS | MAX_PAGES, 0),
        (init_request(ASYNC_DIO, length=56), ASYNC_DIO, 0),
        (init_request(0, length=56), 0, 0),
        (init_request(INIT_EXT | MAX_PAGES, 1), MAX_PAGES, 0),
        (init_request(INIT_EXT, DIRECT_IO_ALLOW_MMAP), INIT_EXT, DIRECT_IO_ALLOW_MMAP),
    ],
    ids=["7.31", "no second word", "one flag", "no flags", "another flag", "a second word"],
)
def test_a_kernel_is_asked_only_for_what_it_offers(request_: bytes, expected: int, expected2: int) -> None:
    adjusted = adjust_init(request_, init_reply(0), max_write=1 << 20, background=1024)
    fields = protocol.INIT_OUT.unpack_from(adjusted, 16)
    assert (fields[3], fields[10]) == (expected, expected2)
    assert fields[:3] == (7, 38, 65536)


@pytest.mark.parametrize(
    ("request_", "offered"),
    [
        (init_request(INIT_EXT, DIRECT_IO_ALLOW_MMAP), True),
        (init_request(EVERYTHING_OLD, DIRECT_IO_ALLOW_MMAP), False),
        (init_request(INIT_EXT, 0xFFFFFFFF ^ DIRECT_IO_ALLOW_MMAP), False),
        (init_request(EVERYTHING_OLD | INIT_EXT, length=56), False),
    ],
)
def test_a_kernel_says_whether_direct_openers_leave_the_pages_of_others_true(request_: bytes, offered: bool) -> None:
    assert offers_coherent_direct_io(request_) == offered


@pytest.mark.parametrize(
    "reply",
    [u(4, 16, -71) + u(8, 2), u(4, 40, 0) + u(8, 2) + bytes(24)],
    ids=["an error", "a short body"],
)
def test_a_reply_to_init_that_says_too_little_is_refused(reply: bytes) -> None:
    with pytest.raises(ValueError, match="needed: 0 and a 64-byte body"):
        adjust_init(init_request(0), reply, max_write=1 << 20, background=1024)
