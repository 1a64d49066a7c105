"""Making files durable outside the core.

Owns the simplest implementation of the contract. It must not know whose files they are.
"""

import os
import threading

from fusecache.api.completions import Completions
from fusecache.api.volume import Done


class ThreadFileSync:
    """A :class:`fusecache.api.FileSync` with a thread for each call; one that hangs is a daemon, and left behind."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions

    def fdatasync(self, fd: int, done: Done) -> None:
        """See :meth:`fusecache.api.FileSync.fdatasync`."""
        self._completions.expect()
        threading.Thread(target=self._run, args=(fd, done), name="file-sync", daemon=True).start()

    def _run(self, fd: int, done: Done) -> None:
        error: OSError | None = None
        try:
            os.fdatasync(fd)
        except OSError as failure:
            error = failure
        self._completions.post(done, error)
