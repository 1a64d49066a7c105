"""Threads that read from a file what would make the event loop wait.

Owns the threads and their queue. It must not know why something is read.
"""

import errno
import os
import threading
from queue import SimpleQueue
from typing import Final

from fusecache.api import Completions
from fusecache.api.errors import VolumeClosed
from fusecache_rwl.medium_base import ReadEnd
from fusecache_rwl.pool_file import PoolFile

_MOST_THREADS: Final = 2


class Readers:
    """Reads a pool file on at most two threads, started as they are needed. All methods belong to the loop's thread.

    Args:
        file: each thread is a user of it.

    Attributes:
        threads: those started so far.
    """

    def __init__(self, file: PoolFile, completions: Completions) -> None:
        self.threads: list[threading.Thread] = []
        self._file = file
        self._completions = completions
        self._queue: SimpleQueue[tuple[int, int, ReadEnd] | None] = SimpleQueue()
        self._waiting = 0
        self._stopped = False

    def read(self, offset: int, length: int, done: ReadEnd) -> None:
        """Read *length* bytes at *offset* of the file; ``done`` is called on the loop's thread, later.

        Raises:
            VolumeClosed: the readers were stopped.
        """
        if self._stopped:
            raise VolumeClosed("the medium is closed")
        self._completions.expect()
        self._waiting += 1
        self._queue.put((offset, length, done))
        if len(self.threads) < min(self._waiting, _MOST_THREADS):
            self._file.share()
            thread = threading.Thread(target=self._serve, name=f"rwl-reader-{len(self.threads)}", daemon=True)
            self.threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Have the threads end after what was asked for."""
        self._stopped = True
        for _ in self.threads:
            self._queue.put(None)

    def _serve(self) -> None:
        try:
            while (job := self._queue.get()) is not None:
                offset, length, done = job
                try:
                    data = read_exactly(self._file, offset, length)
                except OSError as error:
                    self._completions.post(self._deliver, done, error, b"")
                else:
                    self._completions.post(self._deliver, done, None, data)
                    del data
                del job, done
        finally:
            self._file.release()

    def _deliver(self, done: ReadEnd, error: OSError | None, data: bytes) -> None:
        self._waiting -= 1
        done(error, data)


def read_exactly(file: PoolFile, offset: int, length: int) -> bytes:
    """Return *length* bytes at *offset*. May wait for the device; any thread.

    Raises:
        OSError: they cannot be had; EIO where the file ends before.
    """
    data = os.pread(file.fd, length, offset)
    while len(data) < length:
        more = os.pread(file.fd, length - len(data), offset + len(data))
        if not more:
            raise ended_early(file)
        data += more
    return data


def ended_early(file: PoolFile) -> OSError:
    """Return the error of a pool file that somebody has cut short (EIO)."""
    return OSError(errno.EIO, f"{file.path} has {os.fstat(file.fd).st_size} bytes and had {file.size}")
