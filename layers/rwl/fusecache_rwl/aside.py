"""A layer whose medium failed: what is dirty is saved below, then the layer stands aside, then it returns.

Owns the steps, and what is told of them. It must not know records, nor how write-back moves data.

====  ==============================================  ==================================================================
step                                                  a crash, or loss of power, leaves
====  ==============================================  ==================================================================
1     a store or sync fails; the log is failed        what the medium has: all that a flush acknowledged, and of later
                                                      writes a prefix
2     write-back moves all that is dirty, oldest      the same, over a level below that has some of it
      generation first, each record only if its
      checksums prove it
3     all is below, and flushed                       the same
4     the image is durably not marked as dirty        the level below, which has everything: what the pool holds is void
5     flushes of before are acknowledged; changes     the level below
      go there
6     two superblocks of a log that is empty are      the level below; the pool, opened later, begins anew anyway
      durable in the pool
7     no change is under way below, and it is         the same
      flushed
8     changes are appended to the log again, once     the log, as ever
      the image is marked as dirty
====  ==============================================  ==================================================================

**Why a crash in steps 2 and 3 loses nothing that was promised.** The next open recovers what the pool has and puts it
over what is below. What the pool has lost are records that no flush has acknowledged. Some of those may be below, and
older records over them: of writes after the last acknowledged flush some are there and some are not, as on any disk.
That is also why no flush is acknowledged before step 4: from then on nothing is put over the level below any more.
While what the next open has recovered goes down, the level below is torn, and the mark says so
(:mod:`fusecache_rwl.groups`).

**Changes wait** from step 1 to 5, as in a full log, and fail as there after ``stall_timeout``. To let them pass would
put newer data below what is still dirty above. They fail at once where a record is damaged: then the steps lead
nowhere.

**Steps 6 to 8** are tried after a pause, which doubles with each failure of the medium, and when somebody has
everything written back. A medium that hangs in them keeps nobody waiting: changes go below until step 7.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from fusecache.api import Buffer, DirtyMark, Emit, FusecacheError, Volume
from fusecache_rwl.format import RecordType
from fusecache_rwl.log import Log
from fusecache_rwl.superblock import name_of

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 600.0
"""Seconds between a failure of the medium and the next try."""


class Aside:
    """The way of one layer aside, and back.

    Args:
        each: changes are durable when they are acknowledged.
        changed: called when those who wait are to look again.

    Attributes:
        active: changes and flushes go to the level below. The log has failed, and nothing of it counts any more.
    """

    def __init__(
        self, pool: Log, below: Volume, dirty: DirtyMark, emit: Emit, *, each: bool, changed: Callable[[], None]
    ) -> None:
        self.active = False
        self._log = pool
        self._below = below
        self._dirty = dirty
        self._emit = emit
        self._each = each
        self._changed = changed
        self._told = 0
        self._pause = _FIRST_PAUSE
        self._next_try = 0.0
        self._under_way = 0
        self._quiet = trio.Event()

    def look(self) -> None:
        """Tell people where the log has failed."""
        if self._told != self._log.failures:
            self._told = self._log.failures
            self._emit("log-failed", f"{self._log.refusal()}; what is dirty is written below, every record checked")

    # ---- requests ----

    async def mark(self) -> None:
        """Mark the image as dirty, for the log; see :meth:`fusecache.api.DirtyMark.set`."""
        with self._counted():
            await self._dirty.set(name_of(self._log.superblock))

    async def change(self, kind: RecordType, offset: int, length: int, data: Buffer | None) -> None:
        """Make a change in the level below. To be called while :attr:`active`, with nothing awaited in between."""
        with self._counted():
            if data is not None:
                await self._below.write(offset, memoryview(data))
            elif kind is RecordType.DISCARD:
                await self._below.discard(offset, length)
            else:
                await self._below.write_zeroes(offset, length)
            if self._each:
                await self._below.flush()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._quiet.set()
                self._quiet = trio.Event()

    async def _wait_quiet(self) -> None:
        while self._under_way:
            await self._quiet.wait()

    # ---- the steps; for write-back's task only ----

    @property
    def patience(self) -> float:
        """Seconds until the medium is tried again; not below 0."""
        return max(0.0, self._next_try - trio.current_time())

    def hurry(self) -> None:
        """Try the medium again now."""
        self._next_try = 0.0

    async def step_aside(self) -> None:
        """Take steps 4 and 5. Nothing is dirty, and all is flushed below. A cancellation leaves the step before.

        Raises:
            FusecacheError, OSError: the mark cannot be cleared; nothing has changed.
        """
        while True:
            # A mark that is being set for a change would come after.
            await self._wait_quiet()
            await self._dirty.clear()
            if not self._under_way and not self._dirty.is_set:
                break
        self._log.index.clear()
        self.active = True
        self._wait_longer()
        self._emit("log-aside", "nothing is dirty any more; without its log, the layer hands all to the level below")
        self._log.stranded.tell(None)
        self._changed()

    async def come_back(self) -> None:
        """Take steps 6 to 8, or stay aside. A cancellation leaves it aside."""
        self._wait_longer()
        try:
            if not await self._log.recommence():
                return
            self.active = False
            await self._wait_quiet()
            await self._below.flush()
            self._log.resume()
        except (FusecacheError, OSError) as error:
            log.info("the layer stays aside: %s", error)
            self._log.stranded.tell(error)
        finally:
            self.active = self._log.failure is not None
        if not self.active:
            self._emit("log-resumed", "the pool's medium takes data again")
            self._log.stranded.tell(None)
        self._changed()

    def _wait_longer(self) -> None:
        self._next_try = trio.current_time() + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)
