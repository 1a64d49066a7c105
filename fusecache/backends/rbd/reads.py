"""Reads of an image straight from the objects that its data lies in.

Owns a client of its own for reading, the way from an offset to an object, and how results are collected. It must not
know locks, changes or what a failed read means: whoever asked asks librbd again.

librbd takes a request through three threads, and its Python binding through the interpreter's lock twice. An image
without a parent and with the usual striping is simply ``<prefix>.<number>``, an object for each stretch of the object
size, where what is missing reads as zeroes (``rbd(8)``, "Striping"; the kernel client reads in the same way). All else
is left to librbd.

**Why that is the same data.** librbd keeps nothing in memory here (its cache is off, which is checked before the lock
is taken): what it acknowledged is in the objects. Requests that overlap are kept apart above.

**Why it does not read past the lock.** It reads only as long as the image asks it to, and the image stops asking when
the loss of its lock is noticed: by a change that fails, or by the client within a few seconds. If somebody else shrinks
the image while it is open, what was cut off reads as zeroes until the image's attributes are next asked for.

**When the cluster refuses the client** (blocklisted) every read that is under way ends so and is librbd's, as are those
that follow until a new client has connected. It does so once nothing of the old one is under way any more.

**Memory.** librados writes to a read's buffer, and calls back with its completion, until it has told of the end.
Until then the request holds both; where the end does not come before the backend ends, they are left behind for good,
with the client, the pipe and the stream. Otherwise these are closed in this order: a thread of librados may still be
inside a call that writes to the stream, until the client has been shut down.

A cluster that does not answer holds threads of this module's own, never others, and the images go on without it.
"""

import ctypes
import errno
import fcntl
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from ctypes import c_uint32, c_void_p
from dataclasses import dataclass
from typing import Any, Final

from fusecache.api import Completions
from fusecache.backends.rbd.client import OVERRIDES, Settings
from fusecache.backends.rbd.errors import BLOCKLISTED
from fusecache.backends.rbd.librados import (
    QUICK,
    QUICK_LIBC,
    TELL,
    WAITING,
    address_of,
    checked,
    close_stream,
    stream_to,
)
from fusecache.backends.rbd.wakeups import Wakeups, threads_of
from fusecache.backends.workers import WorkerPool

log = logging.getLogger(__name__)

ReadResult = Callable[[int, bytearray], None]
"""Receives a read's length, or a negative errno, and the buffer."""

_PATIENCE: Final = 1.0
"""Seconds that the end waits for the cluster."""

_PAUSE: Final = 1.0
_LONG_PAUSE: Final = 30.0
"""Seconds between two attempts to connect, at least; after one that failed."""

_WORD: Final = 4
_WORDS: Final = 1024
"""So many the pipe is asked for at once."""
_MOST_NAMES: Final = 1 << 16
"""Names of objects kept for each image, some 10 MiB."""
_MOST_SPARE: Final = 16 << 20
"""Bytes."""
_HALVED: Final = 512 << 10
"""Bytes from which on a read that is alone is read in halves."""

_HALF: Final = 0xFFFFFFFF
_SETTINGS: Final = {
    **OVERRIDES,
    # One thread each: more only wake each other for every request. Safe, as no callback of this client ever waits.
    "librados_thread_count": "1",
    "ms_async_op_threads": "1",
    # Nothing else of this client tells it that an OSD is back.
    "objecter_tick_interval": "1",
    "objecter_timeout": "1",
}

_left_behind: "list[ObjectReader]" = []


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the data of an image lies.

    Attributes:
        prefix: of its objects' names.
        object_size: bytes; a power of two.
    """

    prefix: str
    object_size: int


class ObjectReader:
    """A client for reading; a :class:`fusecache.api.completions.Source`. Loop's thread only.

    It connects at the first read of an image, on a thread.

    Attributes:
        address: how the cluster names the client; empty while it is not connected.
    """

    def __init__(self, settings: Settings, completions: Completions) -> None:
        self._settings = settings
        self._completions = completions
        self._pool = WorkerPool(completions, threads=2, name="rbd-read")
        self._lane = self._pool.lane(turns=1)
        self.address = ""
        self._wanted = True
        self._not_before = 0.0
        self._ioctx: c_void_p | None = None
        # Those that are open: a cluster and its pool. The lane's thread only.
        self._clients: list[tuple[c_void_p, c_void_p]] = []
        self._buffers = _Buffers()
        self._wakeups = Wakeups()
        # By the half of the completion's address that comes through the pipe: the completion and the piece.
        self._requests: dict[int, tuple[int, _Read, int, int]] = {}
        self._completion = c_void_p()
        self._completion_at = ctypes.byref(self._completion)
        # What the pipe told last: the halves of completions' addresses.
        self._told = (c_uint32 * _WORDS)()
        self._keys = memoryview(self._told).cast("B").cast("I")
        self._ended, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ended, False)
        self._stream = stream_to(writing)
        # No thread of librados ever waits to write; nor is it interrupted, as only who waits is. How much a pipe holds
        # depends on how many its user has.
        self._most = fcntl.fcntl(self._ended, fcntl.F_GETPIPE_SZ) // _WORD
        completions.add_source(self, self._ended)

    def reads(self, layout: Layout) -> "Reads":
        """Return the reads of an image."""
        return Reads(self, layout)

    def start(self, name: bytes, offset: int, length: int, done: ReadResult) -> bool:
        """Start a read of one object; False where that is librbd's to do, and nothing was started."""
        if self._ioctx is None:
            self._connect_once()
            return False
        if len(self._requests) > self._most - 2:
            return False
        self._wakeups.note(len(self._requests))
        read = _Read(done, *self._buffers.take(length))
        # One that is alone is read in halves, so that what is there can be received while the rest is read.
        if length < _HALVED or self._requests:
            self._start_piece(read, name, offset, 0, length)
        else:
            half = length // 2
            self._start_piece(read, name, offset, 0, half)
            self._start_piece(read, name, offset, half, length - half)
        return read.pieces > 0

    def _start_piece(self, read: "_Read", name: bytes, offset: int, at: int, length: int) -> None:
        if QUICK.rados_aio_create_completion2(self._stream, TELL, self._completion_at) < 0:
            read.result = -errno.EIO
            return
        completion = self._completion.value or 0
        key = completion & _HALF
        address = ctypes.addressof(read.memory) + at
        if key in self._requests or (
            QUICK.rados_aio_read(self._ioctx, name, completion, address, length, offset + at) < 0
        ):
            QUICK.rados_aio_release(completion)
            read.result = -errno.EIO
            return
        self._requests[key] = (completion, read, at, length)
        read.pieces += 1
        self._completions.expect()

    def collect(self) -> int:
        requests = self._requests
        if not requests:
            return 0
        # Not os.read(): often there is nothing, and its exception costs more than a request.
        told = QUICK_LIBC.read(self._ended, self._told, _WORDS * _WORD)
        if told <= 0:
            return 0
        # A copy: what is called below may collect as well.
        keys = self._keys[: told // _WORD].tolist()
        for key in keys:
            completion, read, at, length = requests.pop(key)
            result = QUICK.rados_aio_get_return_value(completion)
            self._completions.outstanding -= 1
            if result == -errno.ENOENT:
                result = 0
            # What an object does not have reads as zeroes, and so does an object that is not there.
            if 0 <= result < length:
                ctypes.memset(ctypes.addressof(read.memory) + at + result, 0, length - result)
            elif result < 0:
                read.result = result
                if result == -BLOCKLISTED:
                    self._refused()
            read.pieces -= 1
            if not read.pieces:
                try:
                    read.done(read.result, read.buffer)
                except Exception:
                    log.exception("a completion callback failed")
                self._buffers.give(read)
            QUICK.rados_aio_release(completion)
        return len(keys)

    async def close(self) -> None:
        """End the client, once all images are closed; leave behind what hangs."""
        self._completions.remove_source(self, self._ended)
        if self._requests:
            # librados may still write to their buffers.
            _left_behind.append(self)
        else:
            self._lane.submit(_nothing, self._end)
        await self._pool.close(_PATIENCE)

    def _refused(self) -> None:
        if self._ioctx is not None:
            log.warning("the cluster has blocklisted %s, the client for reading", self.address)
            self._ioctx, self.address, self._wanted = None, "", True
            self._wakeups.adopt(())

    def _connect_once(self) -> None:
        # While requests of a former client are under way, it cannot be ended, and their completions tell nothing of it.
        if self._wanted and not self._requests and time.monotonic() >= self._not_before:
            self._wanted = False
            self._not_before = time.monotonic() + _PAUSE
            self._lane.fetch(self._connected, self._connect)

    def _connected(self, error: BaseException | None, found: Any) -> None:
        if error is None:
            self._ioctx, self.address, threads = found
            self._wakeups.adopt(threads)
        else:
            self._wanted, self._not_before = True, time.monotonic() + _LONG_PAUSE
            log.info("images are read through librbd only, for %g s at least: %s", _LONG_PAUSE, error)

    # ---- on the lane's thread ----

    def _connect(self) -> tuple[c_void_p, str, set[int]]:
        self._disconnect()
        ioctx, threads = threads_of(self._make_client)
        return ioctx, address_of(self._clients[-1][0]), threads

    def _make_client(self) -> c_void_p:
        settings, cluster, ioctx = self._settings, c_void_p(), c_void_p()
        user = f"client.{settings.user}".encode()
        checked(WAITING.rados_create2(ctypes.byref(cluster), b"ceph", user, 0), "rados_create2")
        try:
            conf = None if settings.conf is None else bytes(settings.conf)
            checked(WAITING.rados_conf_read_file(cluster, conf), "rados_conf_read_file")
            for key, value in (*_SETTINGS.items(), ("client_mount_timeout", str(math.ceil(settings.timeout)))):
                checked(WAITING.rados_conf_set(cluster, key.encode(), value.encode()), f"rados_conf_set {key}")
            checked(WAITING.rados_connect(cluster), "rados_connect")
            pool = settings.pool.encode()
            checked(WAITING.rados_ioctx_create(cluster, pool, ctypes.byref(ioctx)), "rados_ioctx_create")
        except BaseException:
            WAITING.rados_shutdown(cluster)
            raise
        WAITING.rados_ioctx_set_namespace(ioctx, settings.namespace.encode())
        self._clients.append((cluster, ioctx))
        return ioctx

    def _disconnect(self) -> None:
        while self._clients:
            cluster, ioctx = self._clients.pop()
            WAITING.rados_ioctx_destroy(ioctx)
            WAITING.rados_shutdown(cluster)

    def _end(self) -> None:
        self._disconnect()
        close_stream(self._stream)
        os.close(self._ended)


class _Read:
    """A read under way, in one piece or several.

    Attributes:
        memory: keeps the buffer's memory where it is until librados is done with it, and knows its address.
        pieces: how many have not ended.
        result: the length, or the negative errno of a piece.
    """

    __slots__ = ("buffer", "done", "memory", "pieces", "result")

    def __init__(self, done: ReadResult, buffer: bytearray, memory: Any) -> None:
        self.done = done
        self.buffer = buffer
        self.memory = memory
        self.pieces = 0
        self.result = len(buffer)


class _Buffers:
    """Memory to read into, used again: fresh memory costs more than a read of a mebibyte does."""

    def __init__(self) -> None:
        self._spare: dict[int, list[tuple[bytearray, Any]]] = {}
        self._bytes = 0
        # As many references as a buffer has that only give()'s caller knows of.
        self._alone = self._count(_Read(_ignore, *self._new(1)))

    def take(self, length: int) -> tuple[bytearray, Any]:
        """Return a buffer with any content, and what keeps its memory where it is and knows its address."""
        spare = self._spare.get(length)
        if not spare:
            return self._new(length)
        self._bytes -= length
        return spare.pop()

    def give(self, read: _Read) -> None:
        """Take a read's buffer back, unless somebody still has it: to whom it was given it belongs."""
        length = len(read.buffer)
        if sys.getrefcount(read.buffer) <= self._alone and self._bytes + length <= _MOST_SPARE:
            self._bytes += length
            self._spare.setdefault(length, []).append((read.buffer, read.memory))

    def _new(self, length: int) -> tuple[bytearray, Any]:
        buffer = bytearray(length)
        return buffer, ctypes.c_char.from_buffer(buffer)

    def _count(self, read: _Read) -> int:
        return sys.getrefcount(read.buffer)


class Reads:
    """The reads of one image; made by :meth:`ObjectReader.reads`. Loop's thread only."""

    def __init__(self, reader: ObjectReader, layout: Layout) -> None:
        self._start = reader.start
        self._size = layout.object_size
        self._name = f"{layout.prefix}.%016x"
        self._names: dict[int, bytes] = {}

    def start(self, offset: int, length: int, done: ReadResult) -> bool:
        """Start a read; False where it cannot be done here, and nothing was started."""
        number, within = divmod(offset, self._size)
        if within + length > self._size:
            return False
        name = self._names.get(number)
        if name is None:
            if len(self._names) >= _MOST_NAMES:
                self._names.clear()
            name = self._names[number] = (self._name % number).encode()
        return self._start(name, within, length, done)


def _ignore(result: int, buffer: bytearray) -> None:
    pass


def _nothing(error: BaseException | None) -> None:
    if error is not None:
        log.info("the client for reading did not end well: %s", error)
