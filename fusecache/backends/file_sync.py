"""Files of layers made durable by the kernel's threads, or by ours.

Owns which of the two does it. It must not know whose files they are. The contract is :mod:`fusecache.api.file_sync`.

Through a ring it costs no hand-over between threads: a result is seen by reading memory, and while the loop spins it
is seen at once. Where the kernel has no rings for us, or no threads to spare for them, a thread of ours calls
``fdatasync(2)``.
"""

import errno
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from fusecache.api import Completions, Done, FileSync
from fusecache.backends.uring import Ring, open_ring
from fusecache.backends.workers import Lane, WorkerPool

log = logging.getLogger(__name__)

_THREADS: Final = 64
"""Files that may hang in the kernel at once without stopping others; threads are started as they are needed."""


@asynccontextmanager
async def open_file_sync(completions: Completions) -> AsyncIterator[FileSync]:
    """Make files durable until the context ends; all layers must be closed by then.

    What still hangs in the kernel in the end is logged and left behind.
    """
    pool = WorkerPool(completions, threads=_THREADS, name="sync")
    ring = open_ring(completions)
    try:
        yield RingFileSync(ring, pool.lane(turns=_THREADS))
    finally:
        await pool.close()
        if ring is not None:
            ring.close()


class RingFileSync:
    """A :class:`FileSync` on a ring, or on threads where there is none; made by :func:`open_file_sync`."""

    def __init__(self, ring: Ring | None, lane: Lane) -> None:
        self._ring = ring
        self._lane = lane

    def fdatasync(self, fd: int, done: Done) -> None:
        """See :meth:`FileSync.fdatasync`."""
        ring = self._ring
        # What hangs in other rings, of a backend that is away, must not keep logs from being synced.
        if ring is not None and not ring.full and not ring.crowded:
            try:
                ring.fdatasync(fd, partial(self._ended, fd, done))
                return
            except OSError as error:
                log.info("io_uring takes no request, a thread is used instead: %s", error)
        self._lane.submit(done, os.fdatasync, fd)

    def _ended(self, fd: int, done: Done, result: int) -> None:
        if result == 0:
            done(None)
        elif result == -errno.EINTR:
            # Nothing was told of, and nothing dropped; os.fdatasync repeats it as well.
            self._lane.submit(done, os.fdatasync, fd)
        else:
            done(OSError(-result, os.strerror(-result)))
