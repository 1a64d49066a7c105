"""Reads, writes and syncs of files by the kernel's own threads, through io_uring.

Owns one ring: how requests get into it and results out. It must not know images or what a result means.

A thread of ours costs two hand-overs of the interpreter's lock for each call, several times the call itself. The
kernel's threads need no interpreter: a request is 64 bytes in shared memory, any number of requests cost one system
call, and a result is seen by reading memory. The interface is that of ``io_uring(7)``, by system call number, for
x86-64 only: there a store is seen by the other side after all stores before it, which Python cannot ask for where it
is not given.

The kernel may refuse rings (``kernel.io_uring_disabled``, seccomp in containers); then :func:`open_ring` returns None.
"""

import ctypes
import errno
import logging
import mmap
import os
import platform
import struct
from collections.abc import Callable
from typing import Any, Final

from fusecache.api import Completions
from fusecache.backends.placement import placement_of_this_thread

log = logging.getLogger(__name__)

_left_behind: "list[Ring]" = []

RingDone = Callable[[int], None]
"""Receives a request's result: bytes moved, or a negative errno."""

_SETUP, _ENTER, _REGISTER = 425, 426, 427
_REGISTER_EVENTFD = 4
_REGISTER_IOWQ_AFF = 17
_REGISTER_IOWQ_MAX_WORKERS = 19
_OP_FSYNC, _OP_READ, _OP_WRITE = 3, 22, 23
_FSYNC_DATASYNC = 1
_OFF_SQES = 0x10000000
_FEAT_SINGLE_MMAP = 1
_SQE_ASYNC = 1 << 4
"""A thread of the kernel's does it, without a try beforehand whether it can be done without waiting."""
_SETUP_COOP_TASKRUN = 1 << 8
"""Results need not interrupt the loop's thread: it looks for them, and makes system calls all the while."""

_ENTRIES: Final = 1024
_ALONE: Final = 8
"""So many requests, each alone, say that more will come alone."""
_STAYS: Final = 16
"""Requests between two looks at which CPU the loop is on."""
_WORKERS: Final = 64
_SQE: Final = struct.Struct("=BBHiQQIIQ24x")
"""opcode, flags, ioprio, fd, offset, address, length, rw_flags, user_data."""
_SQE_SIZE: Final = 64
_CQE: Final = struct.Struct("=Qi4x")
"""user_data, result."""
_PARAMS: Final = struct.Struct("=7I12x10I10I")

# Not CDLL: a submission does not wait, and giving up the interpreter's lock for it invites others to take it.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_current_cpu: Callable[[], int] = _libc.sched_getcpu


def open_ring(completions: Completions) -> "Ring | None":
    """Return a ring, or None where this machine or its kernel has none for us."""
    if platform.machine() != "x86_64":
        return None
    try:
        return Ring(completions)
    except OSError as error:
        log.info("io_uring is not available, threads are used instead: %s", error)
        return None


class Ring:
    """A ring; a :class:`fusecache.api.completions.Source` of results.

    Requests that come one by one are done on the loop's CPU, unless the others are awake: waking one takes longer than
    most requests.

    All methods belong to the loop's thread.

    Raises:
        OSError: the kernel refuses.
    """

    def __init__(self, completions: Completions) -> None:
        self._fd, parameters = _set_up()
        try:
            self._map(parameters)
            self._register(_REGISTER_EVENTFD, [completions.signal_fd])
            # The first number is of threads for files: so many may be stuck in a device without stopping others.
            self._register(_REGISTER_IOWQ_MAX_WORKERS, [_WORKERS, 0])
        except BaseException:
            os.close(self._fd)
            raise
        self._completions = completions
        self._placement = placement_of_this_thread()
        self._alone = 0
        self._requests: dict[int, tuple[RingDone, Any]] = {}
        self._next = 0
        self._unsubmitted = 0
        completions.add_source(self)

    def _map(self, parameters: tuple[int, ...]) -> None:
        sq_entries, cq_entries, _, _, _, features, _, *offsets = parameters
        if not features & _FEAT_SINGLE_MMAP:
            raise OSError(errno.ENOSYS, "the kernel's io_uring is older than Linux 5.4")
        _, sq_tail, _, _, _, _, sq_array, *_ = offsets[:10]
        cq_head, cq_tail, _, _, _, cqes, *_ = offsets[10:]
        size = max(sq_array + 4 * sq_entries, cqes + _CQE.size * cq_entries)
        self._ring = mmap.mmap(self._fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0)
        self._sqes = mmap.mmap(self._fd, _SQE_SIZE * sq_entries, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=_OFF_SQES)
        self._words = memoryview(self._ring).cast("I")
        for index in range(sq_entries):
            self._words[sq_array // 4 + index] = index
        self._sq_mask, self._cq_mask = sq_entries - 1, cq_entries - 1
        self._sq_tail, self._cq_head, self._cq_tail = sq_tail // 4, cq_head // 4, cq_tail // 4
        self._cqes = cqes
        self._tail, self._head = self._words[self._sq_tail], self._words[self._cq_head]

    def _register(self, what: int, numbers: list[int]) -> None:
        array = (ctypes.c_uint32 * len(numbers))(*numbers)
        _checked(_syscall(_REGISTER, self._fd, what, array, 1 if what == _REGISTER_EVENTFD else len(numbers)))

    @property
    def full(self) -> bool:
        """Nothing can be submitted until results have been collected."""
        return len(self._requests) > self._sq_mask

    @property
    def crowded(self) -> bool:
        """The kernel's threads, which are the same for all rings of a thread of ours, may all be stuck."""
        return self._completions.detached >= _WORKERS

    def close(self) -> None:
        """Close the ring; one with requests that hang in the kernel is left as it is, until the process ends."""
        self._completions.remove_source(self)
        if self._requests:
            log.warning("%d requests are left behind, waiting for the kernel", len(self._requests))
            # The kernel may still use their buffers, which must not become anybody else's memory.
            _left_behind.append(self)
            return
        self._words.release()
        self._ring.close()
        self._sqes.close()
        os.close(self._fd)

    def read(self, fd: int, offset: int, buffer: bytearray, done: RingDone) -> None:
        """Have *buffer* filled from *offset*; ``done`` is told how far."""
        self._add(_OP_READ, fd, offset, ctypes.c_char.from_buffer(buffer), len(buffer), done)

    def write(self, fd: int, offset: int, data: memoryview, done: RingDone) -> None:
        """Have *data*, of a writable buffer and unchanged meanwhile, written at *offset*; ``done`` is told how much."""
        self._add(_OP_WRITE, fd, offset, ctypes.c_char.from_buffer(data), data.nbytes, done)

    def fdatasync(self, fd: int, done: RingDone) -> None:
        """Have what has reached *fd* by now made durable; ``done`` is told 0. It is handed over at once.

        Raises:
            OSError: the kernel does not take it; ``done`` is never called.
        """
        self._submit()
        token = self._put(_OP_FSYNC, 0, fd, 0, None, 0, _FSYNC_DATASYNC, done)
        self._place()
        try:
            self._enter()
        except OSError:
            self._forget_unsubmitted()
            del self._requests[token]
            self._completions.outstanding -= 1
            self._completions.detached -= 1
            raise

    def _add(self, operation: int, fd: int, offset: int, buffer: Any, length: int, done: RingDone) -> None:
        alone = self._alone == _ALONE and not self._requests
        flags = _SQE_ASYNC if alone and operation == _OP_WRITE else 0
        self._put(operation, flags, fd, offset, buffer, length, 0, done)
        if alone:
            # There will be nothing to hand over together with it.
            self._submit()
        elif self._unsubmitted == 1:
            self._completions.before_wait(self._submit)

    def _put(
        self, operation: int, flags: int, fd: int, offset: int, buffer: Any, length: int, rw_flags: int, done: RingDone
    ) -> int:
        token = self._next = self._next + 1
        at = (self._tail & self._sq_mask) * _SQE_SIZE
        address = 0 if buffer is None else ctypes.addressof(buffer)
        _SQE.pack_into(self._sqes, at, operation, flags, 0, fd, offset, address, length, rw_flags, token)
        self._tail = (self._tail + 1) & 0xFFFFFFFF
        # The buffer's export keeps its memory where it is until the kernel is done with it.
        self._requests[token] = (done, buffer)
        self._completions.outstanding += 1
        self._completions.detached += 1
        self._unsubmitted += 1
        return token

    def _submit(self) -> None:
        if not self._unsubmitted:
            return
        self._place()
        try:
            self._enter()
        except OSError as error:
            number = error.errno or errno.EIO
            for token in self._forget_unsubmitted():
                self._end(token, -number)

    def _enter(self) -> None:
        self._words[self._sq_tail] = self._tail
        while self._unsubmitted:
            self._unsubmitted -= _checked(_syscall(_ENTER, self._fd, self._unsubmitted, 0, 0, None, 0))

    def _place(self) -> None:
        # Moving the kernel's threads costs as much as a request, so one that is alone by chance does not.
        if self._completions.detached > 1:
            self._alone = 0
            self._placement.anywhere(self._place_new)
        elif self._alone < _ALONE:
            self._alone += 1
        elif self._completions.cpus_are_awake:
            self._placement.anywhere(self._place_new)
        elif not self._next % _STAYS:
            self._placement.near(_current_cpu(), self._place_new)

    def _place_new(self, mask: bytes) -> None:
        _syscall(_REGISTER, self._fd, _REGISTER_IOWQ_AFF, mask, len(mask))

    def _forget_unsubmitted(self) -> range:
        """Take back what the kernel did not take; return its tokens."""
        tokens = range(self._next - self._unsubmitted + 1, self._next + 1)
        self._tail = (self._tail - self._unsubmitted) & 0xFFFFFFFF
        self._words[self._sq_tail] = self._tail
        self._unsubmitted = 0
        return tokens

    def collect(self) -> int:
        words, head = self._words, self._head
        tail = words[self._cq_tail]
        if tail == head:
            return 0
        collected = 0
        while head != tail:
            token, result = _CQE.unpack_from(self._ring, self._cqes + (head & self._cq_mask) * _CQE.size)
            head = (head + 1) & 0xFFFFFFFF
            # Given back before the callback, which may submit and collect.
            self._head = words[self._cq_head] = head
            collected += 1
            self._end(token, result)
        return collected

    def _end(self, token: int, result: int) -> None:
        done, _ = self._requests.pop(token)
        self._completions.outstanding -= 1
        self._completions.detached -= 1
        try:
            done(result)
        except Exception:
            log.exception("a completion callback failed")


def _set_up() -> tuple[int, tuple[int, ...]]:
    """Make a ring; return its descriptor and the parameters that the kernel chose."""
    for flags in (_SETUP_COOP_TASKRUN, 0):
        parameters = bytearray(_PARAMS.pack(0, 0, flags, *bytes(24)))
        try:
            fd = _checked(_syscall(_SETUP, _ENTRIES, (ctypes.c_char * len(parameters)).from_buffer(parameters)))
        except OSError as error:
            # Kernels before Linux 5.19 do not know the flag.
            if error.errno != errno.EINVAL or not flags:
                raise
        else:
            return fd, _PARAMS.unpack(parameters)
    raise AssertionError("the last attempt returns or raises")


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
