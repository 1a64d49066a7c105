"""Write-back: when dirty data go to the level below, and how far.

Owns the task that does it, and what those above want of it. It must not know requests from above, nor the steps of what
goes below (:mod:`fusecache_rwl.descent`).
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Final

import trio

from fusecache.api import DirtyMark, Emit, FusecacheError, LayerState, Volume
from fusecache.api.errors import VolumeClosed
from fusecache_rwl.aside import Aside
from fusecache_rwl.descent import Descent
from fusecache_rwl.failures import RecordDamaged
from fusecache_rwl.groups import Groups
from fusecache_rwl.ledger import Generation
from fusecache_rwl.log import Log
from fusecache_rwl.options import RwlOptions
from fusecache_rwl.retries import Retries
from fusecache_rwl.waiters import Waiters

log = logging.getLogger(__name__)

_GUARDED: Final = 60.0
"""Seconds that the image stays marked as dirty after the last dirty data went below: marking costs milliseconds."""


class Writeback:
    """The write-back of one layer; :meth:`run` is its one task.

    Attributes:
        state: CLEAN where nothing is to be told, WRITING_BACK, or DEGRADED after an error of the level below.
        moved_bytes: written below since the layer was opened.
        rate: bytes per second when nobody waits; 0 pauses, None is no limit.
        aside: the way of a layer whose medium has failed.
        waiters, retries: who waits for it to get on; its attempts.
        wake_at: call :meth:`wake` when more dirty bytes of the ring are used.
    """

    def __init__(
        self, pool: Log, below: Volume, options: RwlOptions, dirty: DirtyMark, emit: Emit, nursery: trio.Nursery
    ) -> None:
        self._log = pool
        self._dirty = dirty
        self._below = below
        self._options = options
        self._wanted = trio.Event()
        self.waiters = Waiters(self._hurry)
        self._high = int(options.high_water * pool.medium.ring_size)
        self._low = int(options.low_water * pool.medium.ring_size)
        self._groups = Groups(pool, dirty, grouped=options.order == "grouped")
        self._descent = Descent(pool, below, options, self._groups, self, nursery, self._retired)
        # How far write-back goes now: to that generation, and if so only to the low water mark.
        self._last = 0
        self._above = False
        self.retries = Retries(emit)
        self._unsettled = False
        self._pacing = trio.CancelScope()
        self._busy = False
        self._short = 0
        self._goals: list[int] = []
        self._stopped = False
        self._emptied = time.monotonic()
        self._idle = trio.Event()
        self._idle.set()
        self.moved_bytes = 0
        self.rate = options.writeback_rate
        self.wake_at: float = -1
        self.aside = Aside(pool, below, dirty, emit, each=options.persists_each, changed=self.waiters.tell)
        pool.changed = self._look_again

    @property
    def state(self) -> LayerState:
        if self.retries.failure is not None:
            return LayerState.DEGRADED
        return LayerState.WRITING_BACK if self._busy else LayerState.CLEAN

    @property
    def torn(self) -> bool:
        """See :attr:`Groups.torn`."""
        return self._groups.torn

    @property
    def is_damaged(self) -> bool:
        """What is dirty cannot be saved: a record is not what was written."""
        return isinstance(self.retries.failure, RecordDamaged) and self._log.ledger.records > 0

    def wake(self) -> None:
        """Look whether there is something to do."""
        self.wake_at = math.inf
        self._wanted.set()

    def set_rate(self, rate: int | None) -> None:
        """Set :attr:`rate`, with immediate effect."""
        self.rate = rate
        self._pacing.cancel()
        self.wake()

    async def drain(self) -> None:
        """Write back all that is dirty now, at full speed.

        A cancellation leaves what is not yet written back dirty.

        Raises:
            FusecacheError, OSError: the level below, or the pool, refused, or write-back has ended; all data are still
                there.
        """
        self.retries.hurry()
        self.aside.hurry()
        self._wanted.set()
        ledger = self._log.ledger
        self._log.seal()
        last = ledger.open_generation - 1
        self._goals.append(last)
        try:
            await self._until(lambda: self._log.superblock.written_back >= last or not ledger.records)
        finally:
            self._goals.remove(last)

    async def wait_for_space(self, until: float) -> bool:
        """Wait until there may be space, with write-back at full speed; False when trio's clock says *until*.

        The pauses after errors are kept: whoever waits comes again at once, and would have the level below asked
        without end.

        Raises:
            FusecacheError: write-back has ended.
        """
        self._short += 1
        self._descent.hurry()
        try:
            with trio.move_on_at(until), self.waiters.one_more():
                await self.waiters.wait()
                self.waiters.check()
                return True
            return False
        finally:
            self._short -= 1

    async def _until(self, finished: Callable[[], bool]) -> None:
        seen = self.retries.count
        with self.waiters.one_more():
            while not finished():
                await self.waiters.wait()
                if self.retries.count != seen and not finished() and self.retries.failure is not None:
                    raise self.retries.failure

    def _hurry(self) -> None:
        self._pacing.cancel()
        self._wanted.set()

    def end(self, reason: Exception) -> None:
        """Have whoever waits, now or later, receive *reason*: nothing is written back any more."""
        self._log.deserted = True
        self._log.stranded.tell(reason)
        self.waiters.end(reason)

    # ---- the task ----

    async def run(self) -> None:
        """Write back until cancelled."""
        try:
            while True:
                await self._wait_for_work()
                failures = self._log.failures
                try:
                    await (self.aside.come_back() if self.aside.active else self._write_back())
                except (FusecacheError, OSError) as error:
                    # Where the log has just failed, what is dirty is saved at once.
                    if failures == self._log.failures:
                        await self._failed(error)
        finally:
            self.end(VolumeClosed("the layer is closed"))

    async def stop(self) -> None:
        """Begin no further move, and return when those under way have ended. :meth:`resume` goes on, also after a
        cancellation."""
        self._stopped = True
        self._hurry()
        await self._idle.wait()

    def resume(self) -> None:
        """Go on after :meth:`stop`."""
        self._stopped = False
        self.retries.hurry()
        self.waiters.tell()
        self._wanted.set()

    def _look_again(self) -> None:
        """Have those who wait look for themselves: the log has failed, or a read lets go of clean data."""
        if self._log.failure is not None:
            self.aside.look()
            if self.aside.active:
                # A sync of before, which failed late: all that it was about is durable below.
                self._log.stranded.tell(None)
            elif self._log.stranded:
                self.retries.hurry()
            self._wanted.set()
        if self.waiters.count:
            self.waiters.tell()

    async def _wait_for_work(self) -> None:
        while True:
            patience = self._patience()
            if patience <= 0:
                return
            self._wanted = trio.Event()
            # The first dirty byte starts the clock of its age.
            self.wake_at = self._high if self._log.ledger.records else -1
            with trio.move_on_after(patience):
                await self._wanted.wait()

    def _patience(self) -> float:
        """Return the seconds until there is something to do."""
        if self._stopped:
            return math.inf
        if self.aside.active:
            return self.aside.patience
        return 0 if self._groups.in_flight or self._groups.is_stale else self._leisure()

    def _leisure(self) -> float:
        """Return the seconds until a generation is to be written back, or the mark to be cleared."""
        ledger = self._log.ledger
        if self._log.failure is not None:
            return 0
        if not ledger.records:
            if self._unsettled and not self._dirty.is_set:
                return 0
            return max(0.0, self._emptied + _GUARDED - time.monotonic()) if self._dirty.is_set else math.inf
        if self.waiters.count:
            return 0
        if self.rate == 0:
            return math.inf
        if self._log.space.dirty_used > self._high:
            return 0
        return max(0.0, (ledger.oldest_time or 0.0) + self._options.max_dirty_age - time.monotonic())

    async def _write_back(self) -> None:
        """Write back the group in flight, and where it is time for more generations until the low water mark, or, for
        somebody who waits or for age, all of them."""
        ledger = self._log.ledger
        self._above = self._log.space.dirty_used > self._high
        due = self._leisure() <= 0
        self._last = ledger.open_generation if due else 0
        self._busy = True
        self._idle = trio.Event()
        try:
            if not ledger.records and due:
                await (self.clear_mark() if self._log.failure is None else self.aside.step_aside())
                self.retries.succeeded()
            await self._descent.carry_on()
            await self._groups.rest()
        finally:
            self._busy = False
            self._idle.set()

    def goes_on(self, generation: Generation | None) -> bool:
        """Say whether *generation*, the next one, or the open one where that is None, is to be written back."""
        ledger = self._log.ledger
        if self._groups.in_flight or self.waiters.count or self._log.failure is not None:
            return True
        if self._above and self._log.space.dirty_used - self._descent.kept_bytes <= self._low:
            return False
        return (ledger.open_generation if generation is None else generation.number) <= self._last

    def _retired(self) -> None:
        if not self._options.keep_clean:
            self._log.drop_clean()
        self._emptied = time.monotonic()
        self.retries.succeeded()
        self.waiters.tell()

    async def mend(self) -> None:
        """See :meth:`Groups.rest`."""
        await self._groups.rest()

    async def clear_mark(self) -> None:
        """Clear the mark; where that fails it is tried again, until it is set again."""
        try:
            await self._dirty.clear()
        except BaseException:
            self._unsettled = True
            self._wanted.set()
            raise
        self._unsettled = False

    async def _failed(self, error: BaseException) -> None:
        """Tell, and wait a while before the next attempt; what is dirty stays dirty."""
        self.retries.failed(error)
        self._log.stranded.tell(error)
        self.waiters.tell()
        try:
            await self._groups.rest()
        except (FusecacheError, OSError):
            log.warning("the image stays marked as torn, though it is not, until the mark is next changed")
        await self.retries.pause()

    @property
    def stopped(self) -> bool:
        """No further move is to begin."""
        if self.rate == 0 and not self.waiters.count and not self._groups.in_flight and self._log.failure is None:
            return True
        return self._stopped

    @property
    def paced(self) -> bool:
        """:meth:`pace` may wait: there is a rate, and nobody waits."""
        return bool(self.rate) and not self.waiters.count and not self._stopped and self._log.failure is None

    def awaits(self, number: int) -> bool:
        """Say whether somebody waits for the generation *number* to be retired, for space, or at a slow rate for
        anything to be."""
        return self._short > 0 or self.paced or any(goal <= number for goal in self._goals)

    def moved(self, length: int) -> None:
        """Account for *length* bytes of data moved."""
        self.moved_bytes += length

    async def pace(self, length: int) -> None:
        """Account for *length* bytes of data moved, and wait as the rate asks, unless somebody waits."""
        self.moved(length)
        if self.paced:
            assert self.rate is not None
            self._pacing = trio.CancelScope(deadline=trio.current_time() + length / self.rate)
            with self._pacing:
                await trio.sleep_forever()
