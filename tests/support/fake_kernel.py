"""A channel between two ends that a test holds: the kernel's, and the one that pyfuse3 serves.

Owns how requests look and what a FUSE descriptor does that a socket does not: it ends with ENODEV, and refuses replies
nobody waits for with ENOENT. It must not know what is tested.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

import pytest
import trio

from fusecache.api import Completions
from fusecache.fuse import channel as channel_module
from fusecache.fuse import slots as slots_module
from fusecache.fuse.awake import Awake
from fusecache.fuse.channel import Channel
from fusecache.fuse.protocol import Opcode
from fusecache.fuse.slots import Slot
from fusecache.fuse.spin import Spin
from fusecache.images.node import OpenFile

MESSAGE_MAX = 1 << 21
NODEID = 0x77


def u(size: int, *values: int) -> bytes:
    """Integers of *size* bytes each, as the kernel lays them out."""
    return b"".join(value.to_bytes(size, sys.byteorder, signed=value < 0) for value in values)


class Reply(NamedTuple):
    """A reply as the kernel gets it; *error* is a positive errno."""

    unique: int
    error: int
    body: bytes


def parsed(message: bytes) -> Reply:
    """Take a reply apart; its length must be what its header says."""
    length, error, unique = struct.unpack_from("=IiQ", message)
    assert length == len(message), f"a reply of {len(message)} bytes says {length}"
    return Reply(unique, -error, message[16:])


class End:
    """A test's end of a socket pair."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.setblocking(False)

    async def receive(self) -> bytes:
        """Wait for a message."""
        await trio.lowlevel.wait_readable(self._end)
        return self._end.recv(MESSAGE_MAX)

    async def nothing(self) -> bool:
        """Let everything run that can; say whether no message came."""
        await trio.testing.wait_all_tasks_blocked()
        try:
            self._end.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        return False

    def send_raw(self, message: bytes) -> None:
        """Send a message; there must be room for it."""
        self._end.send(message)

    def close(self) -> None:
        """Hang up."""
        self._end.close()


class FakeKernel(End):
    """The kernel's end.

    Attributes:
        gone: replies to these requests are refused: nobody waits for them.
        refusals: raised by the next writes of data.
        takes_data: is given the ``unique`` of each reply with data, which then goes no further: large ones would not
            fit through a socket.
        read_errors: raised by the next reads of the channel.
    """

    def __init__(self, end: socket.socket, fd: int, patch: pytest.MonkeyPatch) -> None:
        super().__init__(end)
        self.gone: set[int] = set()
        self.refusals: list[OSError] = []
        self.takes_data: Callable[[int], None] | None = None
        self.sees_reply: Callable[[int], None] = lambda unique: None
        self.read_errors: list[OSError] = []
        self._unique = 0
        self._fd = fd
        for name in ("readv", "write", "writev"):
            patch.setattr(os, name, self._wrapped(getattr(self, f"_{name}"), getattr(os, name)))

    def _wrapped(self, ours: Callable[..., int], original: Callable[..., int]) -> Callable[..., int]:
        return lambda fd, data: ours(original, data) if fd == self._fd else original(fd, data)

    def _readv(self, readv: Callable[..., int], parts: Any) -> int:
        if self.read_errors:
            raise self.read_errors.pop(0)
        length = readv(self._fd, parts)
        if not length:
            raise OSError(errno.ENODEV, "the mount is gone")
        return length

    def _write(self, write: Callable[..., int], data: bytes) -> int:
        if parsed(data).unique in self.gone:
            raise FileNotFoundError(errno.ENOENT, "nobody waits for this reply")
        self.sees_reply(parsed(data).unique)
        return write(self._fd, data)

    def _writev(self, writev: Callable[..., int], parts: Any) -> int:
        if self.refusals:
            raise self.refusals.pop(0)
        unique = struct.unpack_from("=IiQ", parts[0])[2]
        if unique in self.gone:
            raise FileNotFoundError(errno.ENOENT, "nobody waits for this reply")
        if self.takes_data is not None:
            self.takes_data(unique)
            return sum(map(len, parts))
        return writev(self._fd, parts)

    def send(self, opcode: int, body: bytes = b"", *, nodeid: int = NODEID) -> int:
        """Send a request and return its ``unique``."""
        self._unique += 2
        self.send_raw(u(4, 40 + len(body), opcode) + u(8, self._unique, nodeid) + u(4, 0, 0, 0) + u(2, 0, 0) + body)
        return self._unique

    def read(self, handle: int, offset: int, length: int) -> int:
        return self.send(Opcode.READ, u(8, handle, offset) + u(4, length, 0) + u(8, 0) + u(4, 0, 0))

    def write(self, handle: int, offset: int, data: bytes) -> int:
        return self.send(Opcode.WRITE, u(8, handle, offset) + u(4, len(data), 0) + u(8, 0) + u(4, 0, 0) + data)

    def fsync(self, handle: int) -> int:
        return self.send(Opcode.FSYNC, u(8, handle) + u(4, 0, 0))

    def fallocate(self, handle: int, offset: int, length: int, mode: int) -> int:
        return self.send(Opcode.FALLOCATE, u(8, handle, offset, length) + u(4, mode, 0))

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        return self.send(Opcode.LSEEK, u(8, handle, offset) + u(4, whence, 0))

    def flush(self, handle: int) -> int:
        return self.send(Opcode.FLUSH, u(8, handle) + u(4, 0, 0) + u(8, 0))

    def release(self, handle: int) -> int:
        return self.send(Opcode.RELEASE, u(8, handle) + u(4, 0, 0) + u(8, 0))

    def forget(self, nodeid: int, lookups: int) -> int:
        return self.send(Opcode.FORGET, u(8, lookups), nodeid=nodeid)

    def batch_forget(self, *forgotten: tuple[int, int]) -> int:
        entries = b"".join(u(8, *entry) for entry in forgotten)
        return self.send(Opcode.BATCH_FORGET, u(4, len(forgotten), 0) + entries, nodeid=0)

    def interrupt(self, unique: int) -> int:
        return self.send(Opcode.INTERRUPT, u(8, unique))

    async def reply(self) -> Reply:
        """Wait for a reply."""
        return parsed(await self.receive())


class Names(End):
    """The end that pyfuse3 serves."""

    def answer(self, unique: int, body: bytes = b"", *, error: int = 0) -> bytes:
        """Answer a request; *error* is a positive errno."""
        message = u(4, 16 + len(body), -error) + u(8, unique) + body
        self.send_raw(message)
        return message


class TakenBack:
    """Notes which names the channel took back."""

    def __init__(self) -> None:
        self.forgotten: list[tuple[int, int]] = []
        self.listings: list[int] = []

    def forget_now(self, forgotten: Sequence[tuple[int, int]]) -> None:
        self.forgotten += forgotten

    def close_listing(self, handle: int) -> None:
        self.listings.append(handle)


class Served:
    """A channel and its two ends.

    Attributes:
        taken_back: what of the names was, unless a test gives the channel names of its own.
        full: what ``on_full`` was told.
        ended: the channel has ended by itself.
    """

    def __init__(self, kernel: FakeKernel, channel: Channel, completions: Completions, full: list[bool]) -> None:
        self.kernel = kernel
        self.names = Names(channel.pyfuse3_end)
        channel.names = self.taken_back = TakenBack()
        self.channel = channel
        self.completions = completions
        self.full = full
        self.ended = trio.Event()

    def open(self, file: OpenFile) -> int:
        """Give a file a handle."""
        return self.channel.handles.add(file, NODEID, 0)

    @property
    def in_use(self) -> int:
        """How many slots are taken."""
        return self.channel.memory.in_use

    def slot(self, unique: int) -> Slot:
        """Return the slot that holds a request, as its bytes say."""
        return next(slot for slot in self.channel.memory.slots if slot.head[8:16] == u(8, unique))

    def holds(self, unique: int) -> bool:
        """Say whether a slot holds the request."""
        return any(slot.head[8:16] == u(8, unique) for slot in self.channel.memory.slots)

    async def run(self) -> None:
        """Serve until the mount is gone."""
        await self.channel.run()
        self.ended.set()


@asynccontextmanager
async def serving(patch: pytest.MonkeyPatch, *, slots: int = 8, spin: float = 0.0) -> AsyncIterator[Served]:
    """Run a channel with few slots."""
    for module in (slots_module, channel_module):
        patch.setattr(module, "SLOTS", slots)
    ours, kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    completions = Completions()
    with ours, kernels, ExitStack() as cleanup:
        cleanup.callback(completions.close)
        async with trio.open_nursery() as nursery:
            full: list[bool] = []
            channel = Channel(
                ours.fileno(), completions, Spin(spin, cpus=2), Awake(allowed=False), nursery, full.append
            )
            served = Served(FakeKernel(kernels, ours.fileno(), patch), channel, completions, full)
            for close in (served.names.close, channel.close, partial(os.close, channel.memory.fd)):
                cleanup.callback(close)
            nursery.start_soon(served.run)
            try:
                yield served
            finally:
                nursery.cancel_scope.cancel()
