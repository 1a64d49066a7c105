"""Reads without callbacks: a second, read-only handle of each image that is held under its lock.

Owns a client of its own for reading, the handles, and how results are collected. It must not know locks, changes or
what a failed read means: whoever asked asks librbd's other handle again.

**Why that is the same data.** librbd keeps nothing in memory here (its cache is off, which is checked before the lock
is taken), so both handles ask the OSDs, and what was acknowledged to one is what the other reads. Requests that overlap
are kept apart above. But of a change of the image's *header* such a handle is not told, as it does not watch it:

- Clones have none: after a resize or a flatten it would go on looking for data in the parent.
- An image that changes its size gets a new one. If somebody else shrinks it while it is open, what was cut off reads as
  zeroes until that is noticed, when its attributes are next asked for; then it reads as an error.

**Why it cannot read past the lock.** The handle reads only as long as the image asks it to, and the image stops asking
when the lock is lost.

A cluster that does not answer holds threads of this module's own, never others, and the images go on without it.
"""

import ctypes
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import trio

from fusecache.api import Completions, FusecacheError
from fusecache.backends.rbd.client import OVERRIDES, Settings
from fusecache.backends.rbd.librbd import EVENTFD, QUICK, WAITING, checked
from fusecache.backends.workers import WorkerPool

log = logging.getLogger(__name__)

ReadResult = Callable[[int, bytearray], None]
"""Receives how many bytes were read, or a negative errno, and the buffer."""

_PATIENCE: Final = 1.0
"""Seconds that the end waits for the cluster."""

_ROOM: Final = 64
_THREADS: Final = 3
_SETTINGS: Final = {
    **OVERRIDES,
    # One thread each: more only wake each other for every request. Safe, as no callback of this client ever waits.
    "librados_thread_count": "1",
    "ms_async_op_threads": "1",
}

_left_behind: "list[Reader]" = []


class ReadClient:
    """A client for reading; a :class:`fusecache.api.completions.Source`. Loop's thread only.

    It connects at the first read of an image, on a thread, and again at another's where that failed.
    """

    def __init__(self, settings: Settings, completions: Completions) -> None:
        self._settings = settings
        self._completions = completions
        self._pool = WorkerPool(completions, threads=_THREADS, name="rbd-read")
        self._lane = self._pool.lane(turns=_THREADS - 1)
        # One at a time: the first connects.
        self._opening = self._pool.lane(turns=1)
        self._cluster: int | None = None
        self._ioctx: int | None = None
        self._busy: set[Reader] = set()
        # Of its own: what is left behind may signal for as long as the process lives.
        self._signal = os.dup(completions.fd)
        self._open = 0
        completions.add_source(self)

    def reads(self, image_id: str) -> "Reads":
        """Return the reads of the image of that id. Opens nothing yet."""
        return Reads(partial(self._open_reader, image_id))

    def _open_reader(self, image_id: str, opened: Callable[["Reader | None"], None]) -> None:
        def finish(error: BaseException | None, handle: Any) -> None:
            if error is None:
                self._open += 1
                opened(Reader(self, handle))
            else:
                log.info("image %s is read through its locked handle only: %s", image_id, error)
                opened(None)

        self._opening.fetch(finish, self._open_handle, image_id)

    async def close(self) -> None:
        """End the client, once all readers are closed; leave behind what hangs."""
        self._completions.remove_source(self)
        if not self._open and self._cluster is not None:
            self._lane.submit(lambda error: None, self._disconnect)
        await self._pool.close(_PATIENCE)

    def collect(self) -> int:
        collected = 0
        if self._busy:
            for reader in tuple(self._busy):
                collected += reader.collect()
        return collected

    def _open_handle(self, image_id: str) -> int:
        if self._ioctx is None:
            self._connect()
        image = ctypes.c_void_p()
        name = f"rbd_open_by_id_read_only {image_id}"
        checked(WAITING.rbd_open_by_id_read_only(self._ioctx, image_id.encode(), ctypes.byref(image), None), name)
        assert image.value is not None
        try:
            checked(WAITING.rbd_set_image_notification(image, self._signal, EVENTFD), "rbd_set_image_notification")
        except FusecacheError:
            WAITING.rbd_close(image)
            raise
        return image.value

    def _connect(self) -> None:
        settings, cluster, ioctx = self._settings, ctypes.c_void_p(), ctypes.c_void_p()
        checked(
            WAITING.rados_create2(ctypes.byref(cluster), b"ceph", f"client.{settings.user}".encode(), 0),
            "rados_create2",
        )
        try:
            conf = None if settings.conf is None else bytes(settings.conf)
            checked(WAITING.rados_conf_read_file(cluster, conf), "rados_conf_read_file")
            for key, value in (*_SETTINGS.items(), ("client_mount_timeout", f"{settings.timeout:g}")):
                checked(WAITING.rados_conf_set(cluster, key.encode(), value.encode()), f"rados_conf_set {key}")
            checked(WAITING.rados_connect(cluster), "rados_connect")
            checked(
                WAITING.rados_ioctx_create(cluster, settings.pool.encode(), ctypes.byref(ioctx)), "rados_ioctx_create"
            )
        except FusecacheError:
            WAITING.rados_shutdown(cluster)
            raise
        WAITING.rados_ioctx_set_namespace(ioctx, settings.namespace.encode())
        self._cluster, self._ioctx = cluster.value, ioctx.value

    def _disconnect(self) -> None:
        WAITING.rados_ioctx_destroy(self._ioctx)
        WAITING.rados_shutdown(self._cluster)
        os.close(self._signal)

    def _close_handle(self, handle: int, closed: Callable[[], None]) -> None:
        def finish(error: BaseException | None) -> None:
            self._open -= 1
            closed()

        self._lane.submit(finish, WAITING.rbd_close, handle)


class Reads:
    """The reads of one image; made by :meth:`ReadClient.reads`. Loop's thread only.

    The handle is opened at the first read, on a thread, and used once it is there.
    """

    def __init__(self, open_: Callable[[Callable[["Reader | None"], None]], None]) -> None:
        self._open = open_
        self._reader: Reader | None = None
        self._wanted = True
        # Of the handle that is open or being opened; others are on their way out.
        self._generation = 0
        self._handles = 0
        self._gone = trio.Event()

    def start(self, offset: int, length: int, done: ReadResult) -> bool:
        """Start a read; False where there is no handle yet, and nothing was started."""
        reader = self._reader
        if reader is None:
            if self._wanted:
                self._wanted = False
                self._handles += 1
                self._open(partial(self._opened, self._generation))
            return False
        try:
            reader.read(offset, length, done)
        except FusecacheError as error:
            log.info("%s", error)
            return False
        return True

    def renew(self) -> None:
        """Use the handle no more, and another one from the next read on: the image's header has changed."""
        self._drop()
        self._wanted = True

    def stop(self) -> None:
        """Start no more reads, and close the handle when those under way have ended. Calling again changes nothing."""
        self._drop()
        self._wanted = False

    async def closed(self) -> None:
        """Return when no handle is open, after :meth:`stop`."""
        if self._handles:
            await self._gone.wait()

    def _drop(self) -> None:
        self._generation += 1
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close(self._left)

    def _opened(self, generation: int, reader: "Reader | None") -> None:
        if reader is None:
            self._left()
        elif generation != self._generation:
            reader.close(self._left)
        else:
            self._reader = reader

    def _left(self) -> None:
        self._handles -= 1
        if not self._handles:
            self._gone.set()
            self._gone = trio.Event()


class Reader:
    """An open handle for reading; made by :class:`ReadClient`. Loop's thread only."""

    def __init__(self, client: ReadClient, handle: int) -> None:
        self._client = client
        self._completions = client._completions
        self._handle = handle
        self._requests: dict[int | None, tuple[ReadResult, bytearray, Any]] = {}
        self._completion = ctypes.c_void_p()
        self._completion_at = ctypes.byref(self._completion)
        self._ended = (ctypes.c_void_p * _ROOM)()
        self._closed: Callable[[], None] | None = None

    def read(self, offset: int, length: int, done: ReadResult) -> None:
        """Start a read; ``done`` is called once, later, with a buffer of *length* bytes."""
        buffer = bytearray(length)
        memory = ctypes.c_char.from_buffer(buffer)
        checked(QUICK.rbd_aio_create_completion(None, None, self._completion_at), "rbd_aio_create_completion")
        completion = self._completion.value
        result = QUICK.rbd_aio_read(self._handle, offset, length, ctypes.addressof(memory), completion)
        if result < 0:
            QUICK.rbd_aio_release(completion)
            checked(result, "rbd_aio_read")
        # The buffer's export keeps its memory where it is until librbd is done with it.
        self._requests[completion] = (done, buffer, memory)
        self._client._busy.add(self)
        self._completions.expect()

    def collect(self) -> int:
        """Run the callbacks of all reads that have ended; return how many."""
        requests, ended = self._requests, self._ended
        collected = 0
        while requests and (count := QUICK.rbd_poll_io_events(self._handle, ended, _ROOM)) > 0:
            for completion in ended[:count]:
                done, buffer, _ = requests.pop(completion)
                result = QUICK.rbd_aio_get_return_value(completion)
                QUICK.rbd_aio_release(completion)
                self._completions.outstanding -= 1
                collected += 1
                try:
                    done(result, buffer)
                except Exception:
                    log.exception("a completion callback failed")
        if not requests:
            self._client._busy.discard(self)
            if self._closed is not None:
                self._close(self._closed)
        return collected

    def close(self, closed: Callable[[], None]) -> None:
        """Close the handle when its reads have ended, if ever, then call *closed*. Never waits. Call once."""
        self._closed = closed
        if self._requests:
            # librbd may still write to their buffers.
            _left_behind.append(self)
        else:
            self._close(closed)

    def _close(self, closed: Callable[[], None]) -> None:
        self._closed = None
        if self in _left_behind:
            _left_behind.remove(self)
        self._client._close_handle(self._handle, closed)
