"""A log that is full and stays full: how long a change waits for space, and what people are told meanwhile.

Owns when a log counts as stalled, and the events ``log-stalled`` and ``log-flows``, one of each. It must not know
requests, nor how space comes about. Nothing here is called for a change that finds space at once.
"""

import errno
import logging
from contextlib import suppress
from typing import Final

import trio

from fusecache.api import FusecacheError, LayerContext
from fusecache.api.units import readable_size
from fusecache_rwl.failures import LogFull
from fusecache_rwl.log import Log
from fusecache_rwl.options import RwlOptions
from fusecache_rwl.writeback import Writeback

log = logging.getLogger(__name__)

_PATIENCE: Final = 10.0
"""Seconds without any space after which people are told, or ``stall_timeout`` where that is less."""


class Stall:
    """The want of space of one log.

    Attributes:
        timeout: seconds that a change waits.
        refused: how many changes have waited in vain.
        waiting: a change has waited since the last one that found space.
    """

    def __init__(self, pool: Log, moving: Writeback, context: LayerContext) -> None:
        options: RwlOptions = context.config
        self.timeout = options.stall_timeout
        self.refused = 0
        self.waiting = False
        self._errno = getattr(errno, options.stall_errno)
        self._space = pool.space
        self._ledger = pool.ledger
        self._moving = moving
        self._emit = context.emit
        self._nursery = context.nursery
        self._waiters = moving.waiters
        self._retries = moving.retries
        self._since = 0.0
        self._tail = self._head = 0
        # Not None while people know.
        self._watch: trio.CancelScope | None = None

    async def wait(self, until: float) -> None:
        """Wait until there may be space, as :meth:`Writeback.wait_for_space` does.

        Raises:
            LogFull: trio's clock says *until*.
            FusecacheError: write-back has ended.
        """
        self._look()
        if not self.waiting:
            self._note(trio.current_time())
        told_at = self._since + _PATIENCE
        if self._watch is None and told_at < until:
            if await self._moving.wait_for_space(told_at):
                return
            self._tell()
        if not await self._moving.wait_for_space(until):
            if not self.waiting:
                # Others found space meanwhile.
                self._note(until - self.timeout)
            self._tell()
            self.refused += 1
            error = LogFull(f"{self._ledger.dirty_bytes} bytes of the log are dirty and cannot be written back")
            error.errno = self._errno
            raise error

    @property
    def note(self) -> str:
        """What is told of the log while it is stalled; otherwise empty."""
        if self._watch is None:
            return ""
        error = self._retries.failure
        return (
            f"the log is full, and writes have waited for space for {trio.current_time() - self._since:.0f} s; "
            f"{readable_size(self._ledger.dirty_bytes)} are dirty; "
            f"the level below {'has reported no error' if error is None else f'failed: {error}'}"
        )

    def _note(self, since: float) -> None:
        self.waiting = True
        self._since, self._tail, self._head = since, self._space.tail, self._space.head

    def _tell(self) -> None:
        if self._watch is not None or not self.waiting:
            return
        self._watch = trio.CancelScope()
        log.warning("%s", self.note)
        self._emit("log-stalled", self.note)
        self._nursery.start_soon(self._look_again, self._watch)

    async def _look_again(self, watch: trio.CancelScope) -> None:
        # Whoever waits for space has all written back, whatever the rate. This only looks.
        with watch, suppress(FusecacheError):
            while True:
                await self._waiters.advance()
                self._look()

    def _look(self) -> None:
        space = self._space
        # The head goes back where the log began anew.
        if self.waiting and (space.tail != self._tail or space.head < self._head or self._moving.aside.active):
            self.end()

    def end(self) -> None:
        """A change has found space, or will."""
        self.waiting = False
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
            self._emit("log-flows", f"there is space in the log again, after {trio.current_time() - self._since:.0f} s")
