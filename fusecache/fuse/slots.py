"""The memory file that requests are read into: header, handle table and request slots.

Owns the layout and the allocation of slots and handles. It must not know what requests mean.

The file is a sparse memfd. What lies in it outlives this process if somebody else keeps the descriptor: a successor
finds every request that was read and not answered, and what every handle meant. Layout, version 1, all integers in
native order:

==============  ===============================================================================================
offset          content
==============  ===============================================================================================
0               header: magic ``fusecach``, u32 version, u32 slots, u32 handles, u32 length of INIT, 36 bytes
                boot id, 4 zero bytes; then the INIT request as it came (at most 512 bytes)
4096            handle table: 65536 entries of 32 bytes: u32 generation, u32 open flags, u64 nodeid (0: free),
                u32 creator, 12 zero bytes. A file handle is ``generation << 32 | index``
4096 + 2 MiB    slots, each 4096 bytes + 1 MiB: u64 state, i64 result, zeroes up to 128, 80 bytes of request
                header; the payload begins at 4096
==============  ===============================================================================================

A slot is free where the request header's ``unique`` (its bytes 8 to 16) is zero. Otherwise it holds a request that was
read and perhaps not answered: READ, or, for a request that must not be repeated blindly, STARTED and then DONE with its
result. ``unique`` is zeroed after the reply, so an ordinary request costs one store.

A slot that is free in the file may be kept in this process: where a write was answered with an error while something
may still be using its payload. Nobody uses the slot then, and nobody repeats the write. Another one takes its place,
for which the file grows: first in length, then in the header's count of slots. So a process that dies in between
leaves a file that is longer than its header says, and nothing in the part beyond.
"""

import errno
import mmap
import os
import struct
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Final

from fusecache.api.volume import Done, ReadDone
from fusecache.backends import syscalls
from fusecache.fuse.protocol import HEADER_SIZE

MAGIC: Final = b"fusecach"
VERSION: Final = 1
SLOTS: Final = 1024
BACKGROUND: Final = SLOTS - 64
"""How many requests at most the kernel sends for nobody who waits: asynchronous ones, reading ahead, closing.

Some slots are left for those who wait: whatever asynchronous requests wait for, an interrupt is read.
"""
GROWTH: Final = 64
"""Slots that are added at a time: each time takes a descriptor."""
HANDLES: Final = 65536
MAX_WRITE: Final = 1 << 20
_PAGE: Final = 4096
_HEADER: Final = struct.Struct("=8sIIII36s4x")
_HANDLE: Final = struct.Struct("=IIQI12x")
_HANDLES_AT: Final = _PAGE
_SLOTS_AT: Final = _HANDLES_AT + HANDLES * _HANDLE.size
_STRIDE: Final = _PAGE + MAX_WRITE
_REQUEST_AT: Final = 128
_UNIQUE_AT: Final = _REQUEST_AT + 8
_COUNT_AT: Final = 12
_INIT_MAX: Final = 512
_KEPT_WARM: Final = 8


class SlotState(IntEnum):
    """What is known of a slot's request; kept for requests that must not be repeated blindly."""

    READ = 0
    STARTED = 1
    DONE = 2


class Slot:
    """One request's place, and what the request under way in it needs.

    Attributes:
        head: the first 80 bytes of the request.
        body: what follows, page aligned.
        parts: both, for ``readv``.
        done, read_done: called with the end of a pending request; set once by the data plane.
        unique, opcode, length: of the request under way.
        answered: the kernel has its reply already; what comes later is dropped.
        interruptible: an INTERRUPT is answered EINTR, at once or soon.
        kept: the request is answered and no longer pending, but its payload is in use until ``done`` is called again.
    """

    __slots__ = (
        "_words",
        "answered",
        "body",
        "done",
        "head",
        "index",
        "interruptible",
        "kept",
        "length",
        "opcode",
        "parts",
        "read_done",
        "unique",
        "used",
    )

    done: Done
    read_done: ReadDone

    def __init__(self, index: int, view: memoryview) -> None:
        self.index = index
        self.head = view[_REQUEST_AT : _REQUEST_AT + HEADER_SIZE]
        self.body = view[_PAGE:]
        self.parts = [self.head, self.body]
        self.unique = 0
        self.opcode = 0
        self.length = 0
        self.answered = False
        self.interruptible = False
        self.kept = False
        self.used = False
        self._words = view[: _UNIQUE_AT + 8].cast("Q")

    def clear(self) -> None:
        """Mark the slot free for whoever reads the memory file later."""
        self._words[_UNIQUE_AT >> 3] = 0

    def mark(self, state: SlotState, result: int = 0) -> None:
        """Record how far a request that must not be repeated blindly has come; *result* is 0 or a positive errno."""
        self._words[1] = result
        self._words[0] = state

    def __repr__(self) -> str:
        return f"<Slot {self.index}: request {self.unique}, opcode {self.opcode}>"


class SlotMemory:
    """The memory file.

    Attributes:
        fd: the memfd.
        slots: all of them: SLOTS, and in place of those that are kept as many as ever were at once, or some more.
        free: slots without a request and not kept, the most recently used last.
    """

    def __init__(self) -> None:
        self.fd = os.memfd_create("fusecache-slots", os.MFD_CLOEXEC)
        size = _SLOTS_AT + SLOTS * _STRIDE
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        self._view = memoryview(self._map)
        self.slots = [Slot(index, self._view[_at(index) : _at(index + 1)]) for index in range(SLOTS)]
        self.free = self.slots[::-1]
        self._spare: list[Slot] = []
        self._missing = 0
        self._free_handles = list(range(HANDLES - 1, -1, -1))
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
        _HEADER.pack_into(self._view, 0, MAGIC, VERSION, SLOTS, HANDLES, 0, boot_id)

    @property
    def in_use(self) -> int:
        """How many slots hold a request or are kept."""
        return len(self.slots) - len(self.free) - len(self._spare)

    def record_init(self, request: bytes) -> None:
        """Keep the INIT request, for a successor that must replay it."""
        if len(request) > _INIT_MAX:
            raise ValueError(f"INIT has {len(request)} bytes; at most {_INIT_MAX} can be kept")
        self._view[_HEADER.size : _HEADER.size + len(request)] = request
        struct.pack_into("=I", self._view, 20, len(request))

    def add_handle(self, nodeid: int, flags: int, *, creator: bool) -> int:
        """Give out a file handle.

        Raises:
            OSError: ENFILE when all are taken.
        """
        if not self._free_handles:
            raise OSError(errno.ENFILE, f"all {HANDLES} file handles of this mount are in use")
        index = self._free_handles.pop()
        at = _HANDLES_AT + index * _HANDLE.size
        previous: int = _HANDLE.unpack_from(self._view, at)[0]
        generation = (previous + 1) & 0xFFFFFFFF
        _HANDLE.pack_into(self._view, at, generation, flags & 0xFFFFFFFF, nodeid, creator)
        return generation << 32 | index

    def remove_handle(self, handle: int) -> None:
        """Take a file handle back."""
        index = handle & 0xFFFFFFFF
        at = _HANDLES_AT + index * _HANDLE.size
        _HANDLE.pack_into(self._view, at, handle >> 32, 0, 0, 0)
        self._free_handles.append(index)

    def replace(self) -> None:
        """Add a free slot in place of one that is kept, and of those for which none could be had.

        Raises:
            OSError: there is no memory for one more.
        """
        self._missing += 1
        if not self._spare:
            self._grow()
        while self._missing and self._spare:
            # The last to be taken: it has no memory yet.
            self.free.insert(0, self._spare.pop())
            self._missing -= 1

    def take_back(self, slot: Slot) -> None:
        """Put away a slot that was kept and is in use no more, until the next one is kept; or, where none could be had
        in place of one that was, let it serve again."""
        self._empty(slot)
        if self._missing:
            self._missing -= 1
            self.free.insert(0, slot)
        else:
            self._spare.append(slot)

    def _grow(self) -> None:
        begin = len(self.slots)
        os.ftruncate(self.fd, _at(begin + GROWTH))
        view = memoryview(mmap.mmap(self.fd, GROWTH * _STRIDE, mmap.MAP_SHARED, offset=_at(begin)))
        for number in range(GROWTH):
            slot = Slot(begin + number, view[number * _STRIDE : (number + 1) * _STRIDE])
            slot.done, slot.read_done = self._callbacks(slot)
            self.slots.append(slot)
            self._spare.append(slot)
        struct.pack_into("=I", self._view, _COUNT_AT, len(self.slots))

    def trim(self) -> None:
        """Give the payload pages of free slots back to the system, but for the few that are used all the time."""
        for slot in self.free[:-_KEPT_WARM]:
            if slot.used:
                self._empty(slot)

    def _empty(self, slot: Slot) -> None:
        slot.used = False
        # MADV_REMOVE would do the same, but not to memory that is kept resident.
        syscalls.fallocate(self.fd, syscalls.PUNCH_HOLE, _at(slot.index) + _PAGE, MAX_WRITE)

    def attach(self, callbacks: Callable[[Slot], tuple[Done, ReadDone]]) -> None:
        """Give every slot its callbacks, also those that will be added."""
        self._callbacks = callbacks
        for slot in self.slots:
            slot.done, slot.read_done = callbacks(slot)


def _at(index: int) -> int:
    return _SLOTS_AT + index * _STRIDE
