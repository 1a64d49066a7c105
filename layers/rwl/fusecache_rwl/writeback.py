"""Write-back: moves dirty data to the level below, generation by generation, and then retires them.

Owns when and in which order. It must not know requests from above, nor how records are stored.

**One generation at a time** (``order = "strict"``). Of a process killed, or power lost, after each step:

====  ==========================================  ======================================================================
step                                              what is true
====  ==========================================  ======================================================================
1     the generation is sealed (in memory only)   below is all before it
2     some of its moves are written below         below is all before it, and some of it; the log still has all of it
3     all of them are                             below is all of it, perhaps not yet durable there
4     the level below is flushed                  below is all of it, durable
5     the superblock names the next generation    the same; recovery begins behind it
6     its space is let go                         the same
====  ==========================================  ======================================================================

Killed before step 5, recovery finds the whole generation dirty again and moves it again, which changes nothing: the
moves of a generation carry its newest content only, and none of a later one has been written below yet. A task that is
cancelled in between leaves the same.

Between steps 1 and 2 a generation that no flush has ended is made durable in the log: so the level below never has
what the log could lose, and what is read is what the medium has, not what the page cache failed to write. A crash
before that leaves below all before it, and in the log a prefix of it.

What is moved is read from the log, which keeps dirty data in place. No request from above ever reaches the range of a
move in the level below: what is dirty is answered from the log.
"""

import logging
import math
import time
from collections.abc import Callable
from typing import Final

import trio

from fusecache.api import DirtyMark, Emit, FusecacheError, LayerState, Volume
from fusecache.api.errors import VolumeClosed
from fusecache_rwl.ledger import Generation
from fusecache_rwl.log import Log, Tail
from fusecache_rwl.merge import plan_slices
from fusecache_rwl.movement import Movement
from fusecache_rwl.options import RwlOptions

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 30.0
"""Seconds between attempts after errors."""
_GUARDED: Final = 60.0
"""Seconds that the image stays marked as dirty after the last dirty data went below: marking costs milliseconds."""


class Writeback:
    """The write-back of one layer; :meth:`run` is its one task.

    Attributes:
        state: CLEAN where nothing is to be told, WRITING_BACK, or DEGRADED after an error of the level below.
        moved_bytes: written below since the layer was opened.
        rate: bytes per second when nobody waits; 0 pauses, None is no limit.
        wake_at: call :meth:`wake` when more dirty bytes of the ring are used.
    """

    def __init__(self, pool: Log, below: Volume, options: RwlOptions, dirty: DirtyMark, emit: Emit) -> None:
        self._log = pool
        self._dirty = dirty
        self._below = below
        self._options = options
        self._emit = emit
        self._wanted = trio.Event()
        self._advanced = trio.Event()
        self._high = int(options.high_water * pool.medium.ring_size)
        self._low = int(options.low_water * pool.medium.ring_size)
        self._urgent = 0
        self._failures = 0
        self._failure: BaseException | None = None
        self._pacing = trio.CancelScope()
        self._backing_off = trio.CancelScope()
        self._pause = _FIRST_PAUSE
        self._over: Exception | None = None
        self._busy = False
        self._stopped = False
        self._emptied = time.monotonic()
        self._idle = trio.Event()
        self._idle.set()
        self.moved_bytes = 0
        self.rate = options.writeback_rate
        self.wake_at: float = -1
        pool.changed = self._look_again

    @property
    def state(self) -> LayerState:
        if self._failure is not None:
            return LayerState.DEGRADED
        return LayerState.WRITING_BACK if self._busy else LayerState.CLEAN

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
        self._backing_off.cancel()
        ledger = self._log.ledger
        self._log.seal()
        last = ledger.open_generation - 1
        await self._until(lambda: self._log.superblock.written_back >= last or not ledger.records)

    async def wait_for_space(self, until: float) -> bool:
        """Wait until there may be space, with write-back at full speed; False when trio's clock says *until*.

        The pauses after errors are kept: whoever waits comes again at once, and would have the level below asked
        without end.

        Raises:
            FusecacheError: write-back has ended.
        """
        with trio.move_on_at(until):
            self._urgent += 1
            try:
                self._check_going_on()
                self._hurry()
                await self._advanced.wait()
                self._check_going_on()
                return True
            finally:
                self._urgent -= 1
        return False

    async def _until(self, finished: Callable[[], bool]) -> None:
        self._urgent += 1
        seen = self._failures
        try:
            while not finished():
                if self._log.failure is not None:
                    raise self._log.refusal()
                self._check_going_on()
                self._hurry()
                await self._advanced.wait()
                if self._failures != seen and not finished():
                    assert self._failure is not None
                    raise self._failure
        finally:
            self._urgent -= 1

    def _hurry(self) -> None:
        self._pacing.cancel()
        self._wanted.set()

    def _check_going_on(self) -> None:
        if self._over is not None:
            raise self._over

    def end(self, reason: Exception) -> None:
        """Have whoever waits, now or later, receive *reason*: nothing is written back any more."""
        self._over = reason
        self._tell()

    # ---- the task ----

    async def run(self) -> None:
        """Write back until cancelled."""
        try:
            while True:
                await self._wait_for_work()
                try:
                    await self._write_back()
                except (FusecacheError, OSError) as error:
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
        self._tell()
        self._wanted.set()

    def _look_again(self) -> None:
        """Have those who wait look for themselves: the log has failed, or a read lets go of clean data."""
        if self._urgent:
            self._tell()

    def _tell(self) -> None:
        self._advanced.set()
        self._advanced = trio.Event()

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
        ledger = self._log.ledger
        if self._stopped or self._log.failure is not None:
            return math.inf
        if not ledger.records:
            return max(0.0, self._emptied + _GUARDED - time.monotonic()) if self._dirty.is_set else math.inf
        if self._urgent:
            return 0
        if self.rate == 0:
            return math.inf
        if self._log.space.dirty_used > self._high:
            return 0
        return max(0.0, (ledger.oldest_time or 0.0) + self._options.max_dirty_age - time.monotonic())

    async def _write_back(self) -> None:
        """Write back generations until the low water mark, or, for somebody who waits or for age, all of them."""
        ledger, space = self._log.ledger, self._log.space
        above = space.dirty_used > self._high
        last = ledger.open_generation
        self._busy = True
        self._idle = trio.Event()
        try:
            if not ledger.records:
                await self._dirty.clear()
                self._succeeded()
            while ledger.records and not self.stopped:
                generation = ledger.oldest_sealed()
                if generation is None:
                    self._log.seal()
                    continue
                if not self._urgent and (generation.number > last or (above and space.dirty_used <= self._low)):
                    return
                if not await self._move(generation):
                    break
            if self._log.failure is not None:
                raise self._log.refusal()
        finally:
            self._busy = False
            self._idle.set()

    async def _move(self, generation: Generation) -> bool:
        """Steps 2 to 6 for one generation; False where it was stopped in between."""
        await self._log.make_durable(generation.end_lsn - 1)
        if not await Movement(self._log, self._below, self).carry_out(
            plan_slices(generation.records, self._below.preferred_io), self._options.writeback_depth
        ):
            return False
        await self._below.flush()
        await self._log.retire(Tail(generation.end_position, generation.end_lsn, generation.number))
        self._log.ledger.written_back(generation)
        if not self._options.keep_clean:
            self._log.drop_clean()
        self._emptied = time.monotonic()
        self._succeeded()
        self._tell()
        return True

    def _succeeded(self) -> None:
        if self._failure is not None:
            self._emit("writeback-resumed", "the level below takes data again")
        self._failure = None

    async def _failed(self, error: BaseException) -> None:
        """Tell, and wait a while before the next attempt; what is dirty stays dirty."""
        if self._failure is None:
            log.warning("write-back failed, and is tried again: %s", error)
            self._emit("writeback-failed", f"{error}; the data stay in the log and are tried again")
            self._pause = _FIRST_PAUSE
        self._failure = error
        self._failures += 1
        self._tell()
        self._backing_off = trio.CancelScope(deadline=trio.current_time() + self._pause)
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
        with self._backing_off:
            await trio.sleep_forever()

    @property
    def stopped(self) -> bool:
        """No further move is to begin."""
        return self._stopped or (self.rate == 0 and not self._urgent) or self._log.failure is not None

    async def pace(self, length: int) -> None:
        """Account for *length* bytes of data moved, and wait as the rate asks, unless somebody waits."""
        self.moved_bytes += length
        rate = self.rate
        if rate and not self._urgent and not self._stopped:
            self._pacing = trio.CancelScope(deadline=trio.current_time() + length / rate)
            with self._pacing:
                await trio.sleep_forever()
