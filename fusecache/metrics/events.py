"""What happened to a mount, a line each.

Owns the events that are retained in memory and the form of their lines. It must not know who emits or reads them.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from fusecache.metrics.text import printable

log = logging.getLogger(__name__)

RETAINED: Final = 1000
"""How many events an :class:`EventLog` keeps unless told otherwise."""


def timestamp(seconds: float) -> str:
    """Return *seconds* since the epoch as UTC in ISO 8601, to the second: ``2026-11-22T18:33:11Z``."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class EventLog:
    """The latest events, oldest first; an older one makes room for a newer one. Safe from any thread.

    Args:
        retained: how many events are kept.
    """

    def __init__(self, retained: int = RETAINED) -> None:
        self._lines: deque[str] = deque(maxlen=retained)
        self._lock = threading.Lock()

    def emit(self, kind: str, text: str) -> None:
        """Record an event and log it; an :data:`fusecache.api.Emit`. Line ends in *text* are escaped."""
        kind, text = printable(kind), printable(text)
        # The time is taken under the lock, so that the lines stand in the order of their times.
        with self._lock:
            self._lines.append(f"{timestamp(time.time())} {kind} {text}")
        log.info("%s: %s", kind, text)

    def lines(self) -> Sequence[str]:
        """Return the retained events, oldest first: ``2026-11-22T18:33:11Z kind text``, without line ends."""
        with self._lock:
            return tuple(self._lines)
