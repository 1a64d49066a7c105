"""The data plane: answers the requests that move bytes.

Owns READ, WRITE, FSYNC, FALLOCATE, LSEEK, FLUSH and RELEASE, from the request in its slot to the reply. It must not
know how requests are read from the kernel, nor whether a file is an image or a control file.

A handler answers at once and returns False, or returns True: the request is pending, the slot stays taken, and one of
the slot's callbacks (``done``, ``read_done``) answers later. A pending request that was answered early, because its
caller was interrupted, ends without a second reply.

A write that was given up because its image failed is answered while its payload may still be in use: its slot is kept,
neither read into nor given back to the system, until its end comes after all, or else to the end of the mount. Of a
process that dies, this leaves: before the reply, a request like any other, which was not acknowledged and may be
repeated; after it, a slot that is free for whoever reads the memory file. In between, repeating it is harmless, as no
later request was read.

Another slot takes the place of one that is kept, so that failed images never stop the mount. And so that they do not
take all memory either, writes are made from copies once very many slots are kept: a copy lives for as long as somebody
has a reference to it, and the slot is free at once.
"""

import errno
import logging
import os
from collections.abc import Callable
from typing import Final, TypeAlias

import trio

from fusecache.api.errors import FusecacheError, errno_of
from fusecache.api.volume import PENDING, Buffers, Done, ReadDone, joined
from fusecache.fuse.handles import Handles
from fusecache.fuse.protocol import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    FALLOCATE_IN,
    IN_HEADER_SIZE,
    LSEEK_IN,
    LSEEK_OUT,
    OUT_HEADER,
    SEEK_DATA,
    SEEK_HOLE,
    WRITE_OUT,
    Opcode,
    error_reply,
)
from fusecache.fuse.slots import Slot, SlotState
from fusecache.images.node import GivenUp, OpenFile

log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Slot, int, int, int, int], bool]
"""``handler(slot, unique, fh, offset, size)``."""

_INTERRUPT_PATIENCE: Final = 0.1
"""Seconds that an interrupted request may still take to end by itself."""
MOST_KEPT: Final = 1024
"""As many slots may be kept, and those of the writes under way when the last of these came."""
_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
_PUNCH: Final = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_pack_header = OUT_HEADER.pack
_pack_write = WRITE_OUT.pack


class DataPlane:
    """Handlers over one FUSE descriptor.

    Attributes:
        handlers: by opcode.
        pending: slots of pending requests, the channel's relayed ones included, by their ``unique``.

    Args:
        release: told of each slot whose request has ended, once it is no longer pending.
        keep: told of each slot that is no longer pending but must not be used.
        take_back: told of each slot that was kept, once it may be used again.
    """

    def __init__(
        self,
        fd: int,
        handles: Handles,
        pending: dict[int, Slot],
        release: Callable[[Slot], None],
        keep: Callable[[Slot], None],
        take_back: Callable[[Slot], None],
        nursery: trio.Nursery,
    ) -> None:
        self._fd = fd
        self._handles = handles
        self._files = handles.files
        self._release = release
        self._keep = keep
        self._take_back = take_back
        self._kept = 0
        self._nursery = nursery
        self.pending = pending
        self.handlers: dict[int, Handler] = {
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.FSYNC: self._fsync,
            Opcode.FALLOCATE: self._fallocate,
            Opcode.LSEEK: self._lseek,
            Opcode.FLUSH: self._flush,
            Opcode.RELEASE: self._release_handle,
        }

    def detach(self) -> None:
        """Answer nothing more: the descriptor is about to be closed."""
        self._fd = -1

    def callbacks(self, slot: Slot) -> tuple[Done, ReadDone]:
        """Return the callbacks that answer the pending request of *slot*."""

        def done(error: BaseException | None) -> None:
            if slot.interruptible:
                slot.mark(SlotState.DONE, errno_of(error) if error is not None else 0)
            if not slot.answered:
                if error is not None:
                    self.fail(slot.unique, error)
                    if isinstance(error, GivenUp):
                        self._set_aside(slot)
                        return
                elif slot.opcode == Opcode.WRITE:
                    self.send(_pack_write(24, 0, slot.unique, slot.length))
                else:
                    self.send(_pack_header(16, 0, slot.unique))
            elif slot.kept:
                self._end_keeping(slot)
                return
            self._end(slot)

        def read_done(error: BaseException | None, buffers: Buffers) -> None:
            if not slot.answered:
                if error is not None:
                    self.fail(slot.unique, error)
                else:
                    self._send_data(slot.unique, slot.length, buffers)
            self._end(slot)

        return done, read_done

    def interrupt(self, slot: Slot) -> None:
        """Answer an interrupted request EINTR where it need not be waited for; changes to images are left to end.

        A command is answered at once, all else a tenth of a second later: not just a signal that kills interrupts, but
        also a program's timer or the end of its asynchronous I/O, and programs do not expect EINTR of an ordinary file.
        """
        if not slot.interruptible or slot.answered:
            return
        if slot.opcode == Opcode.WRITE:
            self._give_up(slot)
        else:
            self._nursery.start_soon(self._give_up_later, slot, slot.unique)

    def _give_up(self, slot: Slot) -> None:
        slot.answered = True
        self.send(error_reply(slot.unique, errno.EINTR))

    async def _give_up_later(self, slot: Slot, unique: int) -> None:
        await trio.sleep(_INTERRUPT_PATIENCE)
        if self.pending.get(unique) is slot and not slot.answered:
            self._give_up(slot)

    def fail(self, unique: int, error: BaseException) -> None:
        """Answer with the errno of *error*; what nobody expected is logged."""
        if not isinstance(error, FusecacheError | OSError):
            log.error("unexpected error in a request", exc_info=error)
        self.send(error_reply(unique, errno_of(error)))

    def _pend(self, slot: Slot, unique: int, opcode: int, length: int, *, interruptible: bool = False) -> bool:
        slot.unique = unique
        slot.opcode = opcode
        slot.length = length
        slot.answered = False
        slot.interruptible = interruptible
        self.pending[unique] = slot
        return True

    def _end(self, slot: Slot) -> None:
        del self.pending[slot.unique]
        self._release(slot)
        if slot.interruptible:
            slot.mark(SlotState.READ)

    def _set_aside(self, slot: Slot) -> None:
        slot.answered = slot.kept = True
        del self.pending[slot.unique]
        self._kept += 1
        if self._kept == MOST_KEPT:
            log.warning("%d request slots are kept for writes of failed images; writes are copied now", self._kept)
            self.handlers[Opcode.WRITE] = self._write_copy
        self._keep(slot)

    def _end_keeping(self, slot: Slot) -> None:
        slot.kept = False
        self._kept -= 1
        if self._kept < MOST_KEPT:
            self.handlers[Opcode.WRITE] = self._write
        self._take_back(slot)

    def send(self, reply: bytes) -> bool:
        """Write a whole reply; False when the kernel did not take it."""
        try:
            os.write(self._fd, reply)
        except FileNotFoundError:
            return False  # The kernel waits no longer: interrupted, or answered by a predecessor.
        except OSError as error:
            if self._fd >= 0:
                log.warning("the kernel refused a reply: %s", error)
            return False
        return True

    def _send_data(self, unique: int, length: int, buffers: Buffers) -> None:
        if len(buffers) >= _IOV_MAX:
            buffers = (joined(buffers),)
        try:
            os.writev(self._fd, (_pack_header(16 + length, 0, unique), *buffers))
        except FileNotFoundError:
            pass
        except OSError as error:
            if self._fd < 0:
                return
            log.warning("the kernel refused data: %s", error)
            self.send(error_reply(unique, errno.EIO))

    def _read(self, slot: Slot, unique: int, handle: int, offset: int, size: int) -> bool:
        try:
            file = self._files[handle]
            end = file.end
            if offset + size > end:
                size = end - offset
                if size <= 0:
                    self.send(_pack_header(16, 0, unique))
                    return False
            outcome = file.read(offset, size, slot.read_done)
            if outcome is PENDING:
                return self._pend(slot, unique, Opcode.READ, size, interruptible=True)
        except Exception as error:
            self.fail(unique, error)
            return False
        self._send_data(unique, size, outcome)  # type: ignore[arg-type]
        return False

    def _write(self, slot: Slot, unique: int, handle: int, offset: int, size: int) -> bool:
        try:
            file = self._files[handle]
            if offset + size > file.end:
                size = file.clip(offset, size)
            if size > 4096:
                slot.used = True
            if file.write(offset, slot.body[:size], slot.done) is PENDING:
                if file.interruptible_writes:
                    slot.mark(SlotState.STARTED)
                return self._pend(slot, unique, Opcode.WRITE, size, interruptible=file.interruptible_writes)
        except Exception as error:
            self.fail(unique, error)
            return False
        self.send(_pack_write(24, 0, unique, size))
        return False

    def _write_copy(self, slot: Slot, unique: int, handle: int, offset: int, size: int) -> bool:
        """As :meth:`_write`, from memory of its own."""
        body, done = slot.body, slot.done
        # Writable, as slots are: some ways of writing need that.
        slot.body, slot.done = memoryview(bytearray(body[:size])), _first_end(done)
        try:
            return self._write(slot, unique, handle, offset, size)
        finally:
            slot.body, slot.done = body, done

    def _fsync(self, slot: Slot, unique: int, handle: int, offset: int, size: int) -> bool:
        try:
            if self._files[handle].flush(slot.done) is PENDING:
                return self._pend(slot, unique, Opcode.FSYNC, 0)
            self.send(_pack_header(16, 0, unique))
        except Exception as error:
            self.fail(unique, error)
        return False

    def _fallocate(self, slot: Slot, unique: int, handle: int, offset: int, size: int) -> bool:
        _, offset, length, mode = FALLOCATE_IN.unpack_from(slot.head, IN_HEADER_SIZE)
        try:
            file = self._files[handle]
            if mode == _PUNCH:
                outcome = file.discard(offset, length, slot.done)
            elif mode in (FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE):
                if not mode & FALLOC_FL_KEEP_SIZE and offset + length > file.end:
                    raise OSError(errno.EOPNOTSUPP, "zeroing a range does not make a file longer")
                outcome = file.zero(offset, length, slot.done)
            elif mode in (0, FALLOC_FL_KEEP_SIZE):
                outcome = file.allocate(offset, length, slot.done, keep_size=bool(mode))
            else:
                raise OSError(errno.EOPNOTSUPP, f"fallocate mode {mode:#x} is not supported")
            if outcome is PENDING:
                return self._pend(slot, unique, Opcode.FALLOCATE, 0)
            self.send(_pack_header(16, 0, unique))
        except Exception as error:
            self.fail(unique, error)
        return False

    def _lseek(self, slot: Slot, unique: int, handle: int, offset: int, size: int) -> bool:
        _, offset, whence = LSEEK_IN.unpack_from(slot.head, IN_HEADER_SIZE)
        try:
            file = self._files[handle]
            if whence not in (SEEK_DATA, SEEK_HOLE):
                raise OSError(errno.EINVAL, f"lseek whence {whence} is not supported")
        except Exception as error:
            self.fail(unique, error)
            return False
        self._pend(slot, unique, Opcode.LSEEK, 0, interruptible=True)
        self._nursery.start_soon(self._seek, slot, file, offset, whence == SEEK_HOLE)
        return True

    async def _seek(self, slot: Slot, file: OpenFile, offset: int, hole: bool) -> None:
        try:
            found = await file.seek(offset, hole=hole)
        except Exception as error:
            if not slot.answered:
                self.fail(slot.unique, error)
        else:
            if not slot.answered:
                self.send(LSEEK_OUT.pack(LSEEK_OUT.size, 0, slot.unique, found))
        self._end(slot)

    def _flush(self, slot: Slot, unique: int, handle: int, offset: int, size: int) -> bool:
        # close(2) promises nothing; fsync does.
        self.send(_pack_header(16, 0, unique))
        return False

    def _release_handle(self, slot: Slot, unique: int, handle: int, offset: int, size: int) -> bool:
        try:
            self._handles.close(handle)
        except Exception:
            log.exception("closing a file failed")
        self.send(_pack_header(16, 0, unique))
        return False


def _first_end(done: Done) -> Done:
    """Return a ``done`` for which a write that is given up has ended: its slot serves others when the end comes."""
    ended = False

    def once(error: BaseException | None) -> None:
        nonlocal ended
        if not ended:
            ended = True
            done(FusecacheError(str(error)) if isinstance(error, GivenUp) else error)

    return once
