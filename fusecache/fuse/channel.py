"""The channel: reads every request of the kernel, and sends it where it is answered.

Owns the FUSE descriptor, the request slots and the relay to pyfuse3. It must not know what a file is.

::

    /dev/fuse <-> channel --- READ WRITE FSYNC FALLOCATE LSEEK FLUSH RELEASE ---> data plane
                     |
                     +------- everything else, byte for byte --> socket pair <-> pyfuse3

A request is read straight into a slot of the slot memory. The data plane's are answered inside the loop or keep their
slot; relayed ones keep theirs until pyfuse3's reply has gone to the kernel. When all slots are taken the channel stops
reading; the kernel keeps what it has. It sends fewer in the background than there are slots, so asynchronous requests
alone, however many, never keep an interrupt from being read.
"""

import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from fusecache.api.completions import Completions
from fusecache.fuse.awake import Awake
from fusecache.fuse.dataplane import DataPlane
from fusecache.fuse.handles import Handles
from fusecache.fuse.protocol import (
    CHANGES_NAMES,
    FORGET_ONE,
    HEADER_SIZE,
    IN_HEADER_SIZE,
    INTERRUPT_IN,
    OPEN_REPLY_AT,
    OUT_HEADER,
    REFUSED,
    REQUEST,
    Opcode,
    adjust_init,
    adjust_open,
    bound_listing,
    forgotten,
    listed,
    offers_coherent_direct_io,
    opened_handle,
)
from fusecache.fuse.slots import BACKGROUND, MAX_WRITE, SLOTS, Slot, SlotMemory, SlotState
from fusecache.fuse.spin import Spin
from fusecache.fuse.waiting import Waiting

log = logging.getLogger(__name__)

_BATCH: Final = 64
"""Requests between two checkpoints, so that other tasks get their turn under load; large ones count more."""
_BATCH_BESIDE_NAMES: Final = 4
"""The same while pyfuse3 has something to do."""
_COUNTS_MORE_BITS: Final = 15
_RELAY_MESSAGE: Final = 128 << 10
"""The largest message to or from pyfuse3: a socket's buffer holds 208 KiB unless the system is told otherwise."""
_TRIM_AFTER: Final = 5.0
_RELAY_BUFFER: Final = 4 << 20


class Names(Protocol):
    """What pyfuse3's handlers have given out, and nobody heard of or needs any more."""

    def forget_now(self, forgotten: Sequence[tuple[int, int]]) -> None:
        """Take lookups back: nodeids and how many."""

    def close_listing(self, handle: int) -> None:
        """Drop the listing of a directory handle."""


class Channel:
    """Serves one mount.

    Attributes:
        serving: set when INIT has been answered.
        memory, handles: the slots, and the files that are open.
        pyfuse3_end: the socket that pyfuse3 is to serve.
        names: to be set before serving.

    Args:
        fd: the FUSE descriptor, non-blocking. The channel does not close it.
        on_full: called with True when all slots are taken, with False once there are enough for all that comes.
    """

    def __init__(
        self,
        fd: int,
        completions: Completions,
        spin: Spin,
        awake: Awake,
        nursery: trio.Nursery,
        on_full: Callable[[bool], None] = lambda full: None,
    ) -> None:
        self._fd = fd
        self._completions = completions
        self._on_full = on_full
        self._full = False
        self._pending: dict[int, Slot] = {}
        self._receiving = trio.CancelScope()
        self._slot_freed = trio.Event()
        self._answered = trio.Event()
        self._init_request: bytes | None = None
        self._unsent: deque[Slot] = deque()
        self._sendable = trio.Event()
        self.names: Names
        self.serving = trio.Event()
        self._relayed = 0
        self._coherent = True
        self.memory = SlotMemory()
        self.handles = Handles(self.memory)
        self._data = DataPlane(fd, self.handles, self._pending, self._release, self._keep, self._end_keeping, nursery)
        self.memory.attach(self._data.callbacks)
        self._relay, self.pyfuse3_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._relay, self.pyfuse3_end):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _RELAY_BUFFER)
        self._relay.setblocking(False)
        self._waiting = Waiting(fd, self._relay.fileno(), completions, spin)
        self._awake = awake

    async def stop(self) -> None:
        """Read no further requests, and return when those under way are answered."""
        self._receiving.cancel()
        while self._pending:
            self._answered = trio.Event()
            await self._answered.wait()

    def close(self) -> None:
        """Close what the channel made, and use the FUSE descriptor no more: its number may soon be another's."""
        self._relay.close()
        self._fd = -1
        self._data.detach()

    async def run(self) -> None:
        """Serve until the mount is gone; then return. After :meth:`stop`, answer what is under way until cancelled."""
        minding = self._completions.minding(self._fd, self._relay.fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._return_replies)
            nursery.start_soon(self._send_waiting)
            with self._receiving:
                try:
                    with minding, self._awake.working():
                        await self._receive()
                finally:
                    self._completions.stop_polling()
            if self._receiving.cancelled_caught:
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()

    async def _receive(self) -> None:
        fd, free, completions, waiting = self._fd, self.memory.free, self._completions, self._waiting
        pending = self._pending
        handlers, unpack, readv = self._data.handlers, REQUEST.unpack_from, os.readv
        budget = _BATCH
        while True:
            if budget <= 0 or not free:
                completions.stop_polling()
                if free:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._wait_for_slot()
                budget = _BATCH_BESIDE_NAMES if self._relayed else _BATCH
            completions.start_polling()
            budget -= 1
            slot = free.pop()
            try:
                length = readv(fd, slot.parts)
            except BlockingIOError:
                free.append(slot)
                completions.hand_over()
                if self._full:
                    self._set_full(False)
                lingered = waiting.linger(bool(self._pending))
                budget = budget - lingered if lingered else await self._slept()
                continue
            except OSError as error:
                free.append(slot)
                if error.errno == errno.ENODEV:
                    return
                if error.errno not in (errno.ENOENT, errno.EINTR):
                    raise
                continue
            opcode, unique, handle, offset, size = unpack(slot.head)
            budget -= size >> _COUNTS_MORE_BITS
            handler = handlers.get(opcode)
            try:
                kept = (
                    handler(slot, unique, handle, offset, size)
                    if handler
                    else self._control(slot, opcode, unique, length)
                )
            except Exception as error:
                self._data.fail(unique, error)
                kept = False
            if not kept:
                slot.clear()
                free.append(slot)
            elif len(pending) == 1 and not self._relayed:
                budget -= waiting.look_for_end()

    async def _slept(self) -> int:
        """Sleep until there is something to do; return how many requests may follow before the next checkpoint."""
        if not self._completions.stop_polling() and not await self._waiting.outlast(bool(self._relayed)):
            await self._park()
        return _BATCH

    async def _park(self) -> None:
        with self._awake.resting():
            with trio.move_on_after(_TRIM_AFTER):
                await trio.lowlevel.wait_readable(self._fd)
                return
            self.memory.trim()
            await trio.lowlevel.wait_readable(self._fd)

    async def _wait_for_slot(self) -> None:
        # Not told again for each slot that is free for a moment.
        if not self._full:
            log.warning("all %d request slots are taken; waiting for one", SLOTS)
            self._set_full(True)
        with self._awake.resting():
            while not self.memory.free:
                self._slot_freed = trio.Event()
                await self._slot_freed.wait()

    def _set_full(self, full: bool) -> None:
        self._full = full
        self._on_full(full)

    def _release(self, slot: Slot) -> None:
        slot.clear()
        free = self.memory.free
        if not self._pending:
            self._answered.set()
        if not free:
            self._slot_freed.set()
        free.append(slot)

    def _keep(self, slot: Slot) -> None:
        slot.clear()
        if not self._pending:
            self._answered.set()
        try:
            self.memory.replace()
        except OSError as error:
            log.warning("a request slot is kept, and there is no memory for another one: %s", error)
        else:
            self._slot_freed.set()

    def _end_keeping(self, slot: Slot) -> None:
        self.memory.take_back(slot)
        self._slot_freed.set()

    def _control(self, slot: Slot, opcode: int, unique: int, length: int) -> bool:
        """Handle a request that is not the data plane's; True when it keeps its slot."""
        if opcode == Opcode.INTERRUPT:
            (target,) = INTERRUPT_IN.unpack_from(slot.head, IN_HEADER_SIZE)
            interrupted = self._pending.get(target)
            if interrupted is not None:
                self._data.interrupt(interrupted)
            return False
        if opcode in REFUSED:
            raise PermissionError(errno.EPERM, "there are only images here")
        if opcode in (Opcode.FORGET, Opcode.BATCH_FORGET):
            # pyfuse3 keeps no count itself; and these come in numbers that would fill all slots.
            self.names.forget_now(forgotten(opcode, _message(slot, length)))
            return False
        slot.unique, slot.opcode, slot.length = unique, opcode, length
        slot.answered, slot.interruptible = False, True
        if opcode == Opcode.INIT:
            self._init_request = _message(slot, length)
            self._coherent = offers_coherent_direct_io(self._init_request)
            self.memory.record_init(self._init_request)
        elif opcode == Opcode.READDIRPLUS:
            bound_listing(slot.head, _RELAY_MESSAGE)
        if opcode in CHANGES_NAMES:
            slot.mark(SlotState.STARTED)
        try:
            sent = not self._unsent and self._send(slot)
        except OSError:
            slot.mark(SlotState.READ)
            raise
        self._pending[unique] = slot
        self._relayed += 1
        if not sent:
            self._unsent.append(slot)
            self._sendable.set()
        return True

    def _send(self, slot: Slot) -> bool:
        length = slot.length
        try:
            if length <= HEADER_SIZE:
                self._relay.send(slot.head[:length])
            else:
                self._relay.sendmsg((slot.head, slot.body[: length - HEADER_SIZE]))
        except BlockingIOError:
            return False
        return True

    async def _send_waiting(self) -> None:
        while True:
            await self._sendable.wait()
            self._sendable = trio.Event()
            while self._unsent:
                await trio.lowlevel.wait_writable(self._relay)
                slot = self._unsent[0]
                failure: OSError | None = None
                try:
                    if not self._send(slot):
                        continue
                except OSError as error:
                    failure = error
                self._unsent.popleft()
                if failure is not None:
                    if not slot.answered:
                        self._data.fail(slot.unique, failure)
                    self._end_relay(slot)

    async def _return_replies(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._relay)
            while True:
                try:
                    reply = self._relay.recv(2 * _RELAY_MESSAGE)
                except BlockingIOError:
                    break
                except ConnectionResetError:
                    return
                if not reply:
                    return
                self._return(reply)

    def _return(self, reply: bytes) -> None:
        _, error, unique = OUT_HEADER.unpack_from(reply)
        slot = self._pending.get(unique)
        if slot is None:
            log.warning("pyfuse3 answered request %d, which is not pending", unique)
            return
        if slot.opcode in CHANGES_NAMES:
            slot.mark(SlotState.DONE, -error)
        delivered = not slot.answered and self._data.send(reply if error else self._adjusted(slot.opcode, reply))
        if not delivered and not error:
            self._take_back(slot.opcode, reply)
        self._end_relay(slot)
        if slot.opcode == Opcode.INIT:
            self.serving.set()

    def _adjusted(self, opcode: int, reply: bytes) -> bytes:
        """Say in a reply what pyfuse3 cannot."""
        if opcode == Opcode.INIT:
            assert self._init_request is not None
            return adjust_init(self._init_request, reply, max_write=MAX_WRITE, background=BACKGROUND)
        at = OPEN_REPLY_AT.get(opcode)
        if at is None:
            return reply
        # Beside direct writes an older kernel leaves other openers with old pages. Control files have no pages.
        file = self.handles.files.get(opened_handle(reply, at))
        return adjust_open(reply, at, parallel=self._coherent or file is None or not file.parallel)

    def _take_back(self, opcode: int, reply: bytes) -> None:
        """Undo what a reply gave out that the kernel did not hear of: nobody will ever release it."""
        if opcode in OPEN_REPLY_AT:
            self.handles.close(opened_handle(reply, OPEN_REPLY_AT[opcode]))
        if opcode in (Opcode.LOOKUP, Opcode.CREATE):
            self.names.forget_now([(FORGET_ONE.unpack_from(reply, OUT_HEADER.size)[0], 1)])
        elif opcode == Opcode.READDIRPLUS:
            self.names.forget_now(listed(reply))
        elif opcode == Opcode.OPENDIR:
            self.names.close_listing(opened_handle(reply, OUT_HEADER.size))

    def _end_relay(self, slot: Slot) -> None:
        del self._pending[slot.unique]
        self._relayed -= 1
        self._release(slot)
        slot.mark(SlotState.READ)


def _message(slot: Slot, length: int) -> bytes:
    return bytes(slot.head[:length]) + bytes(slot.body[: max(0, length - HEADER_SIZE)])
