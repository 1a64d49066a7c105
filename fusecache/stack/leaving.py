"""Locks of this process on images that were given up and are not free yet, and who waits for them.

Owns how the next open of such an image, or its removal, learns of the end. It must not know locks, nor why one takes
long.

One instance lives as long as the process. What is given up is added on the loop's thread, before whoever closed the
image goes on; what frees it may be any thread.
"""

import threading
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial

import trio


class Leaving:
    """Locks on their way out, by any key. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows; held for a few bytecodes
        self._waiting: dict[Hashable, list[Callable[[], None]]] = {}

    def add(self, key: Hashable) -> None:
        """The lock *key* is given up, or what needs it is being closed. To be followed by one :meth:`freed`."""
        with self._lock:
            self._waiting.setdefault(key, [])

    def freed(self, key: Hashable) -> None:
        """The lock *key* is free, or stays taken for another reason; where it was not added nothing happens."""
        with self._lock:
            waiting = self._waiting.pop(key, [])
        for tell in waiting:
            # The loop that somebody waited in may have ended.
            with suppress(trio.RunFinishedError):
                tell()

    async def until_freed(self, key: Hashable) -> None:
        """Return once the lock *key* is not on its way out; at once, without a checkpoint, where it is not."""
        with self._lock:
            waiting = self._waiting.get(key)
            if waiting is None:
                return
            freed = trio.Event()
            waiting.append(partial(trio.lowlevel.current_trio_token().run_sync_soon, freed.set))
        await freed.wait()
