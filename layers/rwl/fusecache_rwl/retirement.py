"""Retiring what is durable below: several generations by one superblock, and while the next one goes there.

Owns what is below and not yet retired, and when it must be. It must not know how data are moved, nor what is next.
What a crash leaves meanwhile stands in :mod:`fusecache_rwl.descent`.
"""

from collections.abc import Callable, Sequence
from typing import Final

import trio

from fusecache.api import FusecacheError
from fusecache_rwl.ledger import Generation
from fusecache_rwl.log import Log, Tail
from fusecache_rwl.spans import Spans

_MOST: Final = 32
"""Generations that one superblock retires: it costs next to nothing then, and what goes below again after a crash takes
no time."""
_SMALL_RECORDS: Final = 64
_SMALL_BYTES: Final = 64 << 10
"""Of a generation that others may join: to a larger one a superblock adds little, and its space should soon be free."""


def is_small(generation: Generation) -> bool:
    """Say whether one superblock may retire *generation* and others."""
    return len(generation) <= _SMALL_RECORDS and generation.length <= _SMALL_BYTES


class Retirement:
    """The retiring of one log's generations, the oldest first.

    Args:
        nursery: outlives whoever writes back.
        ended: called when generations are retired: their superblock is durable, and the ledger has forgotten them.
    """

    def __init__(self, pool: Log, nursery: trio.Nursery, ended: Callable[[], None]) -> None:
        self._log = pool
        self._nursery = nursery
        self._tell = ended
        self._kept: list[Generation] = []
        self._spans = Spans()
        self._over: trio.Event | None = None
        self._failure: Exception | None = None

    def __len__(self) -> int:
        """How many generations, the ledger's oldest, are kept: durable below, and not retired. No two of them change
        the same byte."""
        return len(self._kept)

    async def retire(self, generations: Sequence[Generation]) -> None:
        """Retire the oldest *generations*, all of which are durable below; as :meth:`Log.retire`.

        Nothing is awaited between the moment when there is more space and the return.
        """
        last = generations[-1]
        await self._log.retire(Tail(last.end_position, last.end_lsn, last.number))
        for generation in generations:
            self._log.ledger.written_back(generation)
        self._tell()

    @property
    def is_under_way(self) -> bool:
        """Those that are kept are being retired, or could not be: :meth:`settle` before another one is kept."""
        return self._over is not None or self._failure is not None

    @property
    def kept_bytes(self) -> int:
        """Bytes of the ring that are free when those that are kept are retired."""
        return self._kept[-1].end_position - self._log.space.tail if self._kept else 0

    def has_room(self, generation: Generation) -> bool:
        """Say whether *generation* may be kept beside those that are, once nothing is being retired."""
        if not self._kept or self.is_under_way:
            return True
        if len(self._kept) >= _MOST or not is_small(self._kept[-1]) or not is_small(generation):
            return False
        return not self._spans.meet(generation.records)

    def keep(self, generation: Generation) -> None:
        """Keep the next generation, which is durable below; there is room for it, and nothing is being retired."""
        assert not self.is_under_way
        self._kept.append(generation)
        if is_small(generation):
            self._spans.add(generation.records)

    def hurry(self) -> None:
        """Begin to retire what is kept, where anything is, and is not being retired."""
        if self._kept and not self.is_under_way:
            self.begin()

    def begin(self) -> None:
        """Begin to retire all that are kept; they are kept until :meth:`settle` returns."""
        assert self._kept
        assert self._over is None
        self._over = trio.Event()
        self._nursery.start_soon(self._retire_kept, self._over)

    async def _retire_kept(self, over: trio.Event) -> None:
        try:
            await self.retire(self._kept)
        except (FusecacheError, OSError) as error:
            self._failure = error
        finally:
            self._forget()
            self._over = None
            over.set()

    def _forget(self) -> None:
        """Keep none: those that are not retired are dirty as ever, and go below again."""
        self._kept = []
        self._spans = Spans()

    async def settle(self) -> None:
        """Return when nothing is being retired any more. A cancellation waits for it.

        Raises:
            FusecacheError: what was is not retired: the medium failed, or is being closed.
        """
        await self._wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def retire_kept(self) -> None:
        """As :meth:`settle`, when all that are kept are retired."""
        if self._kept and self._over is None:
            self.begin()
        await self.settle()

    async def abandon(self) -> None:
        """Keep none any more, and have nothing being retired, without a word of a failure."""
        await self._wait()
        self._failure = None
        self._forget()

    async def _wait(self) -> None:
        if self._over is not None:
            with trio.CancelScope(shield=True):
                await self._over.wait()
