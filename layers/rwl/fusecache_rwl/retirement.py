"""Retiring what is durable below, while the next generation goes there.

Owns what is being retired, and that it is one thing at a time. It must not know how data are moved, nor what is next.
What a crash leaves meanwhile stands in :mod:`fusecache_rwl.writeback`.
"""

from collections.abc import Callable, Sequence

import trio

from fusecache.api import FusecacheError
from fusecache_rwl.ledger import Generation
from fusecache_rwl.log import Log, Tail


class Retirement:
    """The retiring of one log's generations.

    Args:
        nursery: outlives whoever writes back.
        ended: called when generations are retired: their superblock is durable, and the ledger has forgotten them.

    Attributes:
        generation: that which is being retired while the next goes below; None where none is.
    """

    def __init__(self, pool: Log, nursery: trio.Nursery, ended: Callable[[], None]) -> None:
        self._log = pool
        self._nursery = nursery
        self._tell = ended
        self._over = trio.Event()
        self._failure: Exception | None = None
        self.generation: Generation | None = None

    async def retire(self, generations: Sequence[Generation]) -> None:
        """Retire the oldest *generations*, all of which are durable below; as :meth:`Log.retire`.

        Nothing is awaited between the moment when there is more space and the return.
        """
        last = generations[-1]
        await self._log.retire(Tail(last.end_position, last.end_lsn, last.number))
        for generation in generations:
            self._log.ledger.written_back(generation)
        self._tell()

    def begin(self, generation: Generation) -> None:
        """Begin to retire the oldest generation, which is durable below. Nothing else is being retired."""
        assert self.generation is None
        self.generation = generation
        self._over = trio.Event()
        self._nursery.start_soon(self._retire, generation)

    async def _retire(self, generation: Generation) -> None:
        try:
            await self.retire([generation])
        except (FusecacheError, OSError) as error:
            self._failure = error
        finally:
            self.generation = None
            self._over.set()

    async def settle(self) -> None:
        """Return when nothing is being retired any more. A cancellation waits for it.

        Raises:
            FusecacheError: the last thing that was is not retired: the medium failed, or is being closed.
        """
        await self._wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    async def abandon(self) -> None:
        """As :meth:`settle`, without a word of a failure: something else has failed."""
        await self._wait()
        self._failure = None

    async def _wait(self) -> None:
        if self.generation is not None:
            with trio.CancelScope(shield=True):
                await self._over.wait()
