"""Trying again after errors.

Owns the pauses between the attempts, and what is told of them. It must not know what is attempted.
"""

import logging
from typing import Final

import trio

from fusecache.api import Emit

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 30.0
"""Seconds between attempts after errors."""


class Retries:
    """The attempts of one write-back.

    Attributes:
        failure: of the last attempt; None where it did not fail.
        count: how many have failed.
    """

    def __init__(self, emit: Emit) -> None:
        self.failure: BaseException | None = None
        self.count = 0
        self._emit = emit
        self._pause = _FIRST_PAUSE
        self._waiting = trio.CancelScope()

    def succeeded(self) -> None:
        """The last attempt did not fail."""
        if self.failure is not None:
            self._emit("writeback-resumed", "the level below takes data again")
        self.failure = None

    def failed(self, error: BaseException) -> None:
        """The last attempt failed; people are told of the first one in a row."""
        if self.failure is None:
            log.warning("write-back failed, and is tried again: %s", error)
            self._emit("writeback-failed", f"{error}; what is not below stays in the log, and is tried again")
            self._pause = _FIRST_PAUSE
        self.failure = error
        self.count += 1

    async def pause(self) -> None:
        """Wait before the next attempt, longer each time, unless :meth:`hurry` is called."""
        self._waiting = trio.CancelScope(deadline=trio.current_time() + self._pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        with self._waiting:
            await trio.sleep_forever()

    def hurry(self) -> None:
        """End a pause."""
        self._waiting.cancel()
