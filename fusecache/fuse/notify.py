"""Notifications to the kernel, written by a thread of their own.

Owns the one thread that tells the kernel to drop what it keeps of a file. It must not know why.

The kernel answers an invalidation only after it has locked the pages concerned, and a page that is being read is locked
until we answer that read: the thread that answers requests would wait for itself.
"""

import logging
import os
import queue
import threading

from fusecache.fuse.protocol import invalidation

log = logging.getLogger(__name__)


class Notifier:
    """Writes notifications to the FUSE descriptor *fd*."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # A daemon thread: a write that the kernel never finishes must not keep the process.
        self._thread = threading.Thread(target=self._run, name="fuse-notify", daemon=True)
        self._thread.start()

    def invalidate(self, nodeid: int) -> None:
        """Have the kernel drop a file's pages and attributes, soon. Never waits."""
        self._queue.put(invalidation(nodeid))

    def close(self) -> None:
        """Write what is queued, at most for a second, and end."""
        self._queue.put(None)
        self._thread.join(1.0)

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                os.write(self._fd, message)
            except FileNotFoundError:
                pass  # The kernel does not know the file.
            except OSError as error:
                log.warning("the kernel refused a notification: %s", error)
