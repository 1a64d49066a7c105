"""Small generations that go below one after the other, without a turn of the event loop in between.

Owns the steps of a row of generations, each begun by the callback that ends the one before; the data of the next one
are read and checked meanwhile, so that nothing but the call itself lies between two of them. It must not know which
generation may be the next, nor when it counts as written back.

Where write-back goes from flush to flush the level below has one request at a time, and every pause between two is
time lost: a turn of all tasks is a tenth of what a cluster takes for a write.

A crash, or a cancellation, leaves some writes of one generation below; all of it is still in the log.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import trio

from fusecache.api import DECLINED, DONE, PENDING, FusecacheError, Volume
from fusecache_rwl.format import RecordType
from fusecache_rwl.ledger import Generation
from fusecache_rwl.log import Log
from fusecache_rwl.merge import plan
from fusecache_rwl.proof import Proven


class Succession(Protocol):
    """What whoever orders a row says of it. Nothing of this waits."""

    def follower(self, ahead: int) -> Generation | None:
        """Return the generation that may go below when *ahead* more of them are kept; None where there is none, or not
        in this way. Asked again, with 0, when it is to begin."""

    def moved(self, length: int) -> None:
        """So many bytes are on their way, or there."""

    @property
    def must_settle(self) -> bool:
        """None can be kept before :meth:`settle`."""

    async def settle(self) -> None:
        """Wait until one can."""

    def keep(self, generation: Generation) -> None:
        """It is durable below."""


class _Ready(NamedTuple):
    """A generation, read from the log: offset and data of its writes, which are disjoint."""

    generation: Generation
    writes: Sequence[tuple[int, memoryview]]


class Chain:
    """One row of generations; :meth:`run` is called once.

    Args:
        depth: writes under way at once, at the most.
    """

    def __init__(self, pool: Log, below: Volume, succession: Succession, depth: int) -> None:
        self._proven = Proven(pool)
        self._below = below
        self._succession = succession
        self._depth = depth
        self._over = trio.Event()
        self._cut = False
        self._failure: BaseException | None = None
        self._kept = 0
        self._under_way = 0
        # All of it is on its way below, or there; and what follows it.
        self._current: Generation | None = None
        self._next: _Ready | None = None
        # The current one is durable there, and waits only to be kept.
        self._flushed_below = False

    async def run(self) -> int:
        """Take generations down until none follows, and return how many are kept.

        0 where the first is not for this: it is to be moved in another way, also where some of it is below.

        Raises:
            FusecacheError, OSError: the first failure.
        """
        first = self._read(self._succession.follower(0))
        if first is None:
            return 0
        try:
            self._begin(first)
            await self._over.wait()
        finally:
            # What is under way ends by itself.
            self._cut = True
        if self._failure is not None:
            raise self._failure
        if self._current is not None:
            if not self._flushed_below:
                await self._below.flush()
            await self._succession.settle()
            self._keep(self._current)
        return self._kept

    def _read(self, generation: Generation | None) -> _Ready | None:
        """Read a generation; None where that would wait, or fail, or where it has more than writes."""
        if generation is None:
            return None
        moves = plan(generation.records, self._below.preferred_io)
        if len(moves) > self._depth or any(move.kind is not RecordType.DATA for move in moves):
            return None
        try:
            pieces = [self._proven.gather_now(move.pieces) for move in moves]
        except (FusecacheError, OSError):
            # Whoever moves it in another way finds the same, and says so.
            return None
        writes = [(move.offset, piece) for move, piece in zip(moves, pieces, strict=True) if piece is not None]
        return _Ready(generation, writes) if len(writes) == len(moves) else None

    def _begin(self, ready: _Ready) -> None:
        self._current = ready.generation
        # One more, so that the end comes when all have begun.
        self._under_way = 1
        for offset, data in ready.writes:
            try:
                outcome = self._below.try_write(offset, data, self._written)
            except Exception as error:
                self._fail(error)
                break
            if outcome is DECLINED:
                # Whoever moves it in another way counts it.
                self._current = None
                break
            self._under_way += outcome is PENDING
            self._succession.moved(len(data))
        self._under_way -= 1
        if not self._under_way:
            # Nothing waits, so that others would never run.
            self._over.set()
        elif self._current is not None:
            self._next = self._read(self._succession.follower(1))

    def _written(self, error: BaseException | None) -> None:
        if error is not None:
            self._fail(error)
        self._under_way -= 1
        if self._under_way:
            return
        if self._cut or self._failure is not None or self._current is None:
            self._over.set()
            return
        try:
            outcome = self._below.try_flush(self._flushed)
        except Exception as failure:
            self._flushed(failure)
            return
        if outcome is DONE:
            self._flushed(None)
        elif outcome is DECLINED:
            self._over.set()

    def _flushed(self, error: BaseException | None) -> None:
        if error is not None:
            self._fail(error)
            self._over.set()
        elif not self._cut:
            try:
                self._go_on()
            except Exception as failure:
                self._fail(failure)
                self._over.set()

    def _go_on(self) -> None:
        assert self._current is not None
        if self._succession.must_settle:
            self._flushed_below = True
            self._over.set()
            return
        ready = self._next
        self._keep(self._current)
        follower = self._succession.follower(0)
        if ready is None or ready.generation is not follower:
            ready = self._read(follower)
        if ready is None:
            self._over.set()
        else:
            self._begin(ready)

    def _keep(self, generation: Generation) -> None:
        self._current = self._next = None
        self._kept += 1
        self._succession.keep(generation)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
