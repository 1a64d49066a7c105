"""Generations on their way to the level below: one, a row of them, or a group as one.

Owns the steps of each, and that what a crash leaves after each of them is allowed. It must not know when it is time for
write-back, nor how far it is to go.

**One generation after the other** (``order = "strict"``, and always where no more than one waits). Of a process killed,
or power lost, after each step:

====  ==========================================  ======================================================================
step                                              what is true
====  ==========================================  ======================================================================
1     the generation is sealed (in memory only)   below is all before it
2     some of its moves are written below         below is all before it, and some of it; the log still has all of it
3     all of them are                             below is all of it, perhaps not yet durable there
4     the level below is flushed                  below is all of it, durable; it is *kept*
5     the superblock names the next generation    the same; recovery begins behind it
6     its space is let go                         the same
====  ==========================================  ======================================================================

Killed before step 5, recovery finds the whole generation dirty again and moves it again, which changes nothing: the
moves of a generation carry its newest content only. A task that is cancelled in between leaves the same.

**Step 5 comes late** in strict order: more generations take steps 1 to 4 while some are kept, and one superblock
retires all of them. Killed then, recovery finds those that are kept, and perhaps some of the next, below; and moves the
kept ones again, the oldest first. Below is a point of the order all the while, as two things hold:

- No two that are kept change the same byte. What moves again finds its own bytes there, and changes none.
- The next one, while it goes below, may change bytes of theirs. A kept one that moves again takes some of that back:
  below are all of the kept ones still, and of the next one some. Once all of it is below it could not be kept beside
  them, as it would not stay whole; so a superblock that is written meanwhile retires them before.

Between steps 1 and 2 a generation that no flush has ended is made durable in the log: so the level below never has
what the log could lose, and what is read is what the medium has, not what the page cache failed to write. A crash
before that leaves below all before it, and in the log a prefix of it.

In a log that has failed step 5 is in memory only, and comes at once; :mod:`fusecache_rwl.groups` has what that leaves,
and what several generations that go below as one do.

What is moved is read from the log, which keeps dirty data in place. No request from above ever reaches the range of a
move in the level below: what is dirty is answered from the log.
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Protocol

import trio

from fusecache.api import DECLINED, PENDING, FusecacheError, Volume
from fusecache_rwl.chain import Chain
from fusecache_rwl.groups import Groups
from fusecache_rwl.ledger import Generation
from fusecache_rwl.log import Log
from fusecache_rwl.merge import plan_slices
from fusecache_rwl.movement import Movement, Pace
from fusecache_rwl.options import RwlOptions
from fusecache_rwl.retirement import Retirement, is_small


class Orders(Pace, Protocol):
    """What whoever orders write-back says while it goes on.

    Attributes:
        paced: :meth:`pace` may wait.
    """

    @property
    def paced(self) -> bool: ...

    def awaits(self, number: int) -> bool:
        """Say whether somebody waits for the generation *number* to be retired."""

    def goes_on(self, generation: Generation | None) -> bool:
        """Say whether *generation*, the next one, is to go below; None is the open one."""

    def moved(self, length: int) -> None:
        """Account for *length* bytes of data moved."""


class Descent:
    """The way down of one log's generations.

    Args:
        nursery: outlives whoever writes back.
        retired: called when there is more space.
    """

    def __init__(
        self,
        pool: Log,
        below: Volume,
        options: RwlOptions,
        groups: Groups,
        orders: Orders,
        nursery: trio.Nursery,
        retired: Callable[[], None],
    ) -> None:
        self._log = pool
        self._below = below
        self._strict = options.order == "strict"
        self._depth = options.writeback_depth
        self._groups = groups
        self._orders = orders
        self._nursery = nursery
        self._retirement = Retirement(pool, nursery, retired)

    async def carry_on(self) -> None:
        """Take generations down until the orders say otherwise, or none is left. Whatever happens, none is kept then.

        A cancellation waits for a superblock that is being written, and leaves the rest of what was kept dirty.

        Raises:
            FusecacheError, OSError: the level below, or the log, failed.
        """
        failure: Exception | None = None
        try:
            try:
                await self._take_down()
            except (FusecacheError, OSError) as error:
                failure = error
            try:
                await self._retirement.retire_kept()
            except (FusecacheError, OSError) as error:
                failure = failure or error
        finally:
            await self._retirement.abandon()
        if failure is not None:
            raise failure

    async def _take_down(self) -> None:
        ledger, orders, retirement = self._log.ledger, self._orders, self._retirement
        while ledger.records:
            kept = len(retirement)
            oldest = ledger.oldest_sealed(kept)
            if kept and (oldest is None or not self._keeps):
                await retirement.retire_kept()
            elif orders.stopped or not orders.goes_on(oldest):
                break
            elif oldest is None:
                self._log.seal()
            elif await Chain(self._log, self._below, self, self._depth).run():
                continue
            elif not await self._move([oldest] if kept else self._groups.next()):
                break

    @property
    def _keeps(self) -> bool:
        """Generations are kept, and retired later."""
        return self._strict and not self._groups.in_flight and self._log.failure is None

    async def _move(self, generations: Sequence[Generation]) -> bool:
        """Take all steps but the last for what goes below as one; False where it was stopped in between."""
        if self._keeps and not self._retirement.has_room(generations[0]):
            self._retirement.begin()
        if not await self._groups.announce(generations):
            return True
        if self._orders.stopped:
            return False
        self._groups.begun = True
        self._sync_ahead()
        records = chain.from_iterable(generation.records for generation in generations)
        if not await Movement(self._log, self._below, self._orders, self._nursery).carry_out(
            plan_slices(records, self._below.preferred_io), self._depth
        ):
            return False
        await self._flush_below()
        await self._retirement.settle()
        if self._keeps:
            self._keep(generations[0])
        else:
            await self._retirement.retire_kept()
            await self._retirement.retire(generations)
        return True

    def _sync_ahead(self) -> None:
        """Have the log made durable for the generation after this one, so that it need not wait."""
        following = self._log.ledger.oldest_sealed(len(self._retirement) + 1)
        if following is not None and self._log.failure is None and self._log.durable_lsn < following.end_lsn - 1:
            self._log.commit(lambda error: None)

    async def _flush_below(self) -> None:
        ended = trio.Event()
        failures: list[BaseException] = []

        def done(error: BaseException | None) -> None:
            failures.extend([] if error is None else [error])
            ended.set()

        # Where nothing is to be waited for, a turn of all tasks costs more than the flush.
        outcome = self._below.try_flush(done)
        if outcome is DECLINED:
            await self._below.flush()
        elif outcome is PENDING:
            await ended.wait()
        if failures:
            raise failures[0]

    # ---- what goes down in a row: see Succession ----

    def follower(self, ahead: int) -> Generation | None:
        """Return the generation that may go below in a row."""
        orders = self._orders
        generation = self._log.ledger.oldest_sealed(len(self._retirement) + ahead)
        if (
            generation is None
            or not self._keeps
            or self._groups.is_ahead
            or not is_small(generation)
            or self._log.durable_lsn < generation.end_lsn - 1
            or orders.stopped
            or orders.paced
            or not orders.goes_on(generation)
            or not self._retirement.has_room(generation)
        ):
            return None
        return generation

    def moved(self, length: int) -> None:
        """So many bytes are on their way below."""
        self._orders.moved(length)

    def keep(self, generation: Generation) -> None:
        """Keep a generation of the row."""
        self._keep(generation)

    @property
    def must_settle(self) -> bool:
        """None can be kept before :meth:`settle`."""
        return self._retirement.is_under_way

    async def settle(self) -> None:
        """Wait until those that are kept are retired, where they are being."""
        await self._retirement.settle()

    # ---- somebody waits ----

    @property
    def kept_bytes(self) -> int:
        """Bytes of the ring that are free once nothing is kept any more."""
        return self._retirement.kept_bytes

    def _keep(self, generation: Generation) -> None:
        self._retirement.keep(generation)
        if self._orders.awaits(generation.number):
            self._retirement.begin()

    def hurry(self) -> None:
        """Somebody begins to wait for space: what is kept is retired now, beside what is on its way."""
        self._retirement.hurry()
