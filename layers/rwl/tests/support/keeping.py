"""A layer that keeps some generations, while the next one is on its way below.

Owns how it gets there. It must not know what is tested.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import Done
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import Bench
from layers.rwl.tests.support.failing_medium import PATIENCE
from layers.rwl.tests.support.generations import ROWS
from layers.rwl.tests.support.retiring import Way, filled, kept, quietly, superblocks, until, until_kept
from layers.rwl.tests.support.switched import io_error


def failing_superblock(bench: Bench, torn: bool) -> Callable[[bytes, int, Done], None]:
    """Return what writes no superblock, or half of one, and says that it failed."""
    inner = bench.medium._inner.write_superblock

    def fail(data: bytes, at: int, done: Done) -> None:
        if torn:
            inner(data[: len(data) // 2] + bytes(len(data) // 2), at, lambda _: done(io_error()))
        else:
            done(io_error())

    return fail


@dataclass
class KeepingRig:
    """A layer of whose generations two are kept, while the third is under way.

    Attributes:
        superblocks: the last generation that each retired.
        scope: of the write-back that somebody waits for.
    """

    bench: Bench
    layer: RwlLayer
    nursery: trio.Nursery
    superblocks: Sequence[int]
    scope: trio.CancelScope

    @property
    def below(self) -> bytes:
        return self.bench.below(0, ROWS.size)

    async def start(self, call: Callable[[], Awaitable[object]]) -> trio.Event:
        """Call it, and wait until nothing goes on by itself; the event is its end."""
        over = trio.Event()

        async def run() -> None:
            await call()
            over.set()

        self.nursery.start_soon(run)
        await wait_all_tasks_blocked()
        return over

    async def rests(self, last: int) -> None:
        """Write-back comes to rest when what was under way is below, and one superblock has retired all that is."""
        self.bench.gate.open()
        await until(self.layer.moving._idle.is_set)
        assert kept(self.layer) == 0
        assert self.superblocks == [last]
        assert self.layer._log.superblock.written_back == last
        assert self.below == ROWS.states[last]


@asynccontextmanager
async def keeping(bench: Bench, way: Way) -> AsyncIterator[KeepingRig]:
    """Write :data:`ROWS` to a layer, of which two are kept, and have somebody wait for all of them to be written
    back."""
    bench.gate.attempts = way
    with trio.fail_after(PATIENCE):
        async with filled(bench, ROWS) as layer, trio.open_nursery() as nursery:
            bench.gate.close()
            rig = KeepingRig(bench, layer, nursery, superblocks(layer), trio.CancelScope())

            async def write_back() -> None:
                with rig.scope:
                    await quietly(layer.writeback)

            nursery.start_soon(write_back)
            await until_kept(bench, layer, 2)
            assert not rig.superblocks
            yield rig
            bench.gate.open()
            bench.medium.let_go()
