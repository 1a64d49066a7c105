"""The channel: reads every request of the kernel, and sends it where it is answered.

Owns the FUSE descriptor, the request slots, the relay to pyfuse3, and when to wait how. It must not know what a file
is.

::

    /dev/fuse <-> channel --- READ WRITE FSYNC FALLOCATE LSEEK FLUSH RELEASE ---> data plane
                     |
                     +------- everything else, byte for byte --> socket pair <-> pyfuse3

A request is read straight into a slot of the slot memory. The data plane's are answered inside the loop or keep their
slot; relayed ones keep theirs until pyfuse3's reply has gone to the kernel. When all slots are taken the channel stops
reading; the kernel keeps what it has.
"""

import errno
import logging
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from fusecache.api.completions import Completions
from fusecache.fuse.dataplane import DataPlane
from fusecache.fuse.handles import Handles
from fusecache.fuse.protocol import (
    CHANGES_NAMES,
    HEADER_SIZE,
    IN_HEADER_SIZE,
    INTERRUPT_IN,
    OPEN_REPLY_AT,
    OUT_HEADER,
    REFUSED,
    REQUEST,
    WITHOUT_REPLY,
    Opcode,
    adjust_init,
    allow_parallel_writes,
)
from fusecache.fuse.slots import MAX_WRITE, SLOTS, Slot, SlotMemory, SlotState
from fusecache.fuse.spin import Spin

log = logging.getLogger(__name__)

_BATCH: Final = 64
"""Requests between two checkpoints, so that other tasks get their turn under load."""
_TRIM_AFTER: Final = 5.0
_RELAY_BUFFER: Final = 4 << 20


class Channel:
    """Serves one mount.

    Attributes:
        serving: set when INIT has been answered.
        memory, handles: the slots, and the files that are open.
        pyfuse3_end: the socket that pyfuse3 is to serve.

    Args:
        fd: the FUSE descriptor, non-blocking. The channel does not close it.
        on_full: called with True when all slots are taken, with False once there are enough for all that comes.
    """

    def __init__(
        self,
        fd: int,
        completions: Completions,
        spin: Spin,
        nursery: trio.Nursery,
        on_full: Callable[[bool], None] = lambda full: None,
    ) -> None:
        self._fd = fd
        self._completions = completions
        self._spin = spin
        self._on_full = on_full
        self._full = False
        self._pending: dict[int, Slot] = {}
        self._receiving = trio.CancelScope()
        self._slot_freed = trio.Event()
        self._answered = trio.Event()
        self._init_request: bytes | None = None
        self._unsent: deque[Slot] = deque()
        self._sendable = trio.Event()
        self.serving = trio.Event()
        self.memory = SlotMemory()
        self.handles = Handles(self.memory)
        self._data = DataPlane(fd, self.handles, self._pending, self._release, nursery)
        self.memory.attach(self._data.callbacks)
        self._relay, self.pyfuse3_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._relay, self.pyfuse3_end):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _RELAY_BUFFER)
        self._relay.setblocking(False)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    async def stop(self) -> None:
        """Read no further requests, and return when those under way are answered."""
        self._receiving.cancel()
        while self._pending:
            self._answered = trio.Event()
            await self._answered.wait()

    def close(self) -> None:
        """Close what the channel made."""
        self._relay.close()

    async def run(self) -> None:
        """Serve until the mount is gone; then return. After :meth:`stop`, answer what is under way until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._return_replies)
            nursery.start_soon(self._send_waiting)
            with self._receiving:
                try:
                    await self._receive()
                finally:
                    self._completions.stop_polling()
            if self._receiving.cancelled_caught:
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()

    async def _receive(self) -> None:
        fd, free, completions = self._fd, self.memory.free, self._completions
        handlers, unpack, readv = self._data.handlers, REQUEST.unpack_from, os.readv
        budget = _BATCH
        while True:
            if not budget or not free:
                completions.stop_polling()
                if free:
                    await trio.lowlevel.checkpoint()
                else:
                    await self._wait_for_slot()
                budget = _BATCH
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
                if not self._linger() and not completions.stop_polling():
                    await self._park()
                    budget = _BATCH
                continue
            except OSError as error:
                free.append(slot)
                if error.errno == errno.ENODEV:
                    return
                if error.errno not in (errno.ENOENT, errno.EINTR):
                    raise
                continue
            opcode, unique, handle, offset, size = unpack(slot.head)
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

    def _linger(self) -> bool:
        """Wait briefly for a request or a completion; True when there was one."""
        completions, spin = self._completions, self._spin
        if completions.outstanding > completions.detached:
            # A thread of ours needs the interpreter, which a spin would keep from it.
            if completions.stop_polling():
                return True
            if not spin.allowed():
                return False
            readable, _, _ = select.select((self._fd, completions.fd), (), (), spin.seconds)
            if completions.fd in readable:
                completions.acknowledge()
            found = bool(readable)
        else:
            if completions.drain():
                return True
            # Where only tasks of this loop and pyfuse3 are awaited, they need the loop.
            if (self._pending and not completions.detached) or not spin.allowed():
                return False
            found = self._poll_until(time.perf_counter_ns() + spin.nanoseconds)
        if found:
            spin.hit()
        else:
            spin.missed()
        return found

    def _poll_until(self, deadline: int) -> bool:
        poll, drain = self._poll.poll, self._completions.drain
        while not drain() and not poll(0):
            if time.perf_counter_ns() > deadline:
                return False
        return True

    async def _park(self) -> None:
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
        slot.unique, slot.opcode, slot.length = unique, opcode, length
        slot.answered, slot.interruptible = False, True
        if opcode == Opcode.INIT:
            self._init_request = bytes(slot.head[:length]) + bytes(slot.body[: max(0, length - HEADER_SIZE)])
            self.memory.record_init(self._init_request)
        if opcode in CHANGES_NAMES:
            slot.mark(SlotState.STARTED)
        try:
            sent = not self._unsent and self._send(slot)
        except OSError:
            slot.mark(SlotState.READ)
            raise
        if opcode not in WITHOUT_REPLY:
            self._pending[unique] = slot
        if not sent:
            self._unsent.append(slot)
            self._sendable.set()
            return True
        return opcode not in WITHOUT_REPLY

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
                if failure is not None and self._pending.pop(slot.unique, None) is not None and not slot.answered:
                    self._data.fail(slot.unique, failure)
                if failure is not None or slot.opcode in WITHOUT_REPLY:
                    self._release(slot)
                    slot.mark(SlotState.READ)

    async def _return_replies(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._relay)
            while True:
                try:
                    reply = self._relay.recv(MAX_WRITE)
                except BlockingIOError:
                    break
                except ConnectionResetError:
                    return
                if not reply:
                    return
                self._return(reply)

    def _return(self, reply: bytes) -> None:
        _, error, unique = OUT_HEADER.unpack_from(reply)
        slot = self._pending.pop(unique, None)
        if slot is None:
            log.warning("pyfuse3 answered request %d, which is not pending", unique)
            return
        if slot.opcode in CHANGES_NAMES:
            slot.mark(SlotState.DONE, -error)
        opened: int | None = None
        if not error:
            if slot.opcode == Opcode.INIT:
                reply = self._agree(reply)
            elif slot.opcode in OPEN_REPLY_AT:
                reply, opened = allow_parallel_writes(reply, OPEN_REPLY_AT[slot.opcode])
        delivered = False
        if not slot.answered:
            delivered = self._data.send(reply)
        if opened is not None and not delivered:
            # Nobody will ever release what the kernel did not hear of.
            self.handles.close(opened)
        self._release(slot)
        slot.mark(SlotState.READ)
        if slot.opcode == Opcode.INIT:
            self.serving.set()

    def _agree(self, reply: bytes) -> bytes:
        assert self._init_request is not None
        return adjust_init(self._init_request, reply, max_write=MAX_WRITE, slots=SLOTS)
