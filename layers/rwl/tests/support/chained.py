"""A chain over a real log and a level below that answers as a test says.

Owns how it is made and run. It must not know what is tested.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio
from trio.testing import wait_all_tasks_blocked

from fusecache_rwl.chain import Chain
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, Bench
from layers.rwl.tests.support.failing_medium import PATIENCE
from layers.rwl.tests.support.generations import Generations, writes
from layers.rwl.tests.support.retiring import filled
from layers.rwl.tests.support.scripted import Row, ScriptedVolume

THREE: Final = Generations("three", [writes({0: 1}), writes({2: 2}), writes({4: 3})])
TWICE: Final = Generations("several writes each", [writes({0: 1, 2: 2, 4: 3}), writes({1: 4, 3: 5, 6: 6})])
FIRST: Final = 0
SECOND: Final = 2 * BLOCK
THIRD: Final = 4 * BLOCK
"""Where those of :data:`THREE` are."""


@dataclass
class ChainRig:
    """A chain over the generations in a real log, whose layer writes nothing back.

    Attributes:
        outcome: of the run: the count, or what it raised.
        over: it has ended.
    """

    bench: Bench
    layer: RwlLayer
    history: Generations
    nursery: trio.Nursery
    depth: int = 8
    outcome: list[int | Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        ledger = self.layer._log.ledger
        self.below = ScriptedVolume()
        self.row = Row([ledger._sealed[number] for number in range(self.history.last)])
        self.chain = Chain(self.layer._log, self.below, self.row, self.depth)
        self.over = trio.Event()
        self.scope = trio.CancelScope()

    async def start(self) -> None:
        """Have the row begin, and wait until nothing goes on by itself."""
        self.nursery.start_soon(self._run)
        await wait_all_tasks_blocked()

    async def _run(self) -> None:
        try:
            with self.scope:
                self.outcome.append(await self.chain.run())
        except Exception as error:
            self.outcome.append(error)
        finally:
            self.over.set()

    async def ended(self) -> int | Exception:
        """Wait for the end, and return the outcome."""
        with trio.fail_after(PATIENCE):
            await self.over.wait()
        (outcome,) = self.outcome
        return outcome

    async def end_all(self) -> int | Exception:
        """End what is under way and to come, and return the outcome."""
        with trio.fail_after(PATIENCE):
            await self.below.end_all(self.over)
        return await self.ended()

    def is_below(self, last: int) -> bool:
        """Say whether exactly the generations up to *last* are below."""
        return bytes(self.below.content.read(0, self.history.size)) == self.history.states[last]


@asynccontextmanager
async def chained(bench: Bench, history: Generations, depth: int = 8) -> AsyncIterator[ChainRig]:
    """Make one over *history*; what still runs at the end is cancelled."""
    async with filled(bench, history) as layer, trio.open_nursery() as nursery:
        yield ChainRig(bench, layer, history, nursery, depth)
        nursery.cancel_scope.cancel()
