"""Generations on their way below, what a crash leaves while they go there, and what its recovery makes of that.

Owns the steps of a write-back, taken one by one, and what is left at each of them. It must not know what is tested.
"""

import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import FusecacheError, Volume
from fusecache_rwl.format import RecordType
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, Bench, benched, read
from layers.rwl.tests.support.failing_medium import PATIENCE
from layers.rwl.tests.support.generations import OVERWRITES, Generations

Way: TypeAlias = Literal["pending", "declined"]
"""How the level below answers attempts: so small generations go below in a row, or by tasks."""
Choose: TypeAlias = Callable[[int, bool], int]
"""Which step comes next, of so many requests that are held below, and perhaps a superblock: its number; -1 is that."""


def late(below: int, superblock: bool) -> int:
    """Superblocks come as late as can be."""
    return 0 if below else -1


def early(below: int, superblock: bool) -> int:
    """Superblocks come as early as can be."""
    return -1 if superblock else 0


def at_random(rng: random.Random) -> Choose:
    """Whatever comes, in any order."""
    return lambda below, superblock: rng.randrange(-1 if superblock else 0, below)


@dataclass(frozen=True)
class Crash:
    """What the death of the process leaves at some instant.

    Attributes:
        history: what was written.
        pool, image: bytes of the pool file, and of the level below.
        is_set, is_torn, is_torn_beyond: what the mark says.
        written_back: the last generation that the durable superblock says is below.
    """

    history: Generations
    pool: bytes
    image: bytes
    is_set: bool
    is_torn: bool
    is_torn_beyond: bool
    written_back: int

    @property
    def is_good(self) -> bool:
        """What is below is a point of the order, no older than what is durably written back, or the mark says torn."""
        if not self.is_set:
            return self.image == self.history.states[-1]
        return self.is_torn or self.history.is_point(self.image, self.written_back)

    @property
    def is_ahead(self) -> bool:
        """Some of the second generation after the last that is durably written back is below, or of a later one."""
        return self.is_set and not self.history.is_point(self.image, self.written_back, self.written_back)

    def unpowered(self, image: bytes) -> "Crash":
        """Return the same, but *image* is below."""
        return replace(self, image=image)


def crashed(bench: Bench, layer: RwlLayer, history: Generations = OVERWRITES) -> Crash:
    """Return what is left if the process dies now."""
    image = bench.below(0, history.size)
    written_back = layer._log.superblock.written_back
    mark, pool = bench.mark, bench.pool.read_bytes()
    return Crash(history, pool, image, mark.is_set, mark.is_torn, mark.is_torn_beyond, written_back)


@contextlib.contextmanager
def left(crash: Crash, way: Way = "declined") -> Iterator[Bench]:
    """Make a bench of what a crash left."""
    with benched() as bench:
        bench.gate.attempts = way
        bench.pool.write_bytes(crash.pool)
        bench.bare.content.write(0, crash.image)
        mark = bench.mark
        mark.is_set, mark.is_torn, mark.is_torn_beyond = crash.is_set, crash.is_torn, crash.is_torn_beyond
        yield bench


async def fill(volume: Volume, history: Generations) -> None:
    """Write all generations to a layer, each ended by a flush."""
    for generation in history.each:
        for change in generation:
            at, length = change.at * BLOCK, change.blocks * BLOCK
            match change.kind:
                case RecordType.DISCARD:
                    await volume.discard(at, length)
                case RecordType.ZERO:
                    await volume.write_zeroes(at, length)
                case _:
                    await volume.write(at, memoryview(change.data))
        await volume.flush()


@asynccontextmanager
async def filled(bench: Bench, history: Generations = OVERWRITES, **options: Any) -> AsyncIterator[RwlLayer]:
    """Open the layer with all generations in its log, durable there, and none below."""
    async with bench.opened(**options) as layer:
        await fill(layer, history)
        yield layer


async def quietly(call: Callable[[], Awaitable[None]]) -> None:
    """Call, whatever it says."""
    with contextlib.suppress(FusecacheError, OSError):
        await call()


async def until(condition: Callable[[], object]) -> None:
    """Wait for it."""
    with trio.fail_after(PATIENCE):
        while not condition():
            await trio.lowlevel.checkpoint()


async def overlap(bench: Bench) -> None:
    """Wait until the first superblock is held, and all of the second generation below."""
    await until(lambda: bench.medium.held and bench.below(0, OVERWRITES.size) == OVERWRITES.states[2])
    await wait_all_tasks_blocked()


def kept(layer: RwlLayer) -> int:
    """Return how many generations are durable below, and not yet retired."""
    return len(layer.moving._descent._retirement)


def superblocks(layer: RwlLayer) -> Sequence[int]:
    """Return a list that grows: the last generation that each superblock retires, from now on."""
    found: list[int] = []
    retirement = layer.moving._descent._retirement
    passed = retirement._tell

    def tell() -> None:
        found.append(layer._log.superblock.written_back)
        passed()

    retirement._tell = tell
    return found


async def until_kept(bench: Bench, layer: RwlLayer, count: int) -> None:
    """Let requests below pass a closed gate until so many generations are kept, and the next one is at it."""
    while kept(layer) < count or not bench.gate.held:
        await until(lambda: bench.gate.held or kept(layer) >= count)
        if kept(layer) < count:
            bench.gate.held[0].let_go()
        await wait_all_tasks_blocked()
    assert kept(layer) == count


async def step_by_step(
    bench: Bench,
    layer: RwlLayer,
    before: Callable[[], None] = lambda: None,
    *,
    history: Generations = OVERWRITES,
    choose: Choose = late,
) -> Sequence[tuple[Crash, str]]:
    """Write everything back, one request after the other.

    Args:
        before: called before each step.
        history: what was written.
        choose: which step comes next.

    Returns:
        what a crash leaves before each, and the step.
    """
    found: list[tuple[Crash, str]] = []
    over = trio.Event()

    async def write_back() -> None:
        await quietly(layer.writeback)
        over.set()

    bench.gate.close()
    bench.medium.hold("superblock")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_back)
        while True:
            await until(lambda: bench.gate.held or bench.medium.held or over.is_set())
            await wait_all_tasks_blocked()
            if over.is_set():
                break
            before()
            held, superblocks = bench.gate.held, bench.medium.held
            chosen = choose(len(held), bool(superblocks)) if held or superblocks else -1
            found.append(
                (crashed(bench, layer, history), "superblock" if chosen < 0 else held[chosen].request.operation)
            )
            if chosen >= 0:
                held[chosen].let_go()
            elif superblocks:
                superblocks.pop(0)()
            await wait_all_tasks_blocked()
    bench.gate.open()
    bench.medium.let_go()
    return found


async def recover(crash: Crash, *, choose: Choose = late, way: Way = "declined", **options: Any) -> Sequence[Crash]:
    """Open what a crash left, and write it back; return what crashes on the way would leave."""
    history = crash.history
    with left(crash, way) as bench:
        async with bench.opened(**options) as layer:
            assert await read(layer, 0, history.blocks) == history.states[-1]
            steps = await step_by_step(bench, layer, history=history, choose=choose)
        assert bench.below(0, history.size) == history.states[-1]
        assert not bench.mark.is_torn
        assert not bench.mark.is_set
    # A superblock of the recovery repeats what the last one said; of a clean image nothing is recovered.
    first = crash.written_back if crash.is_set else 0
    assert all(one.is_good and one.written_back >= first for one, _ in steps)
    return [one for one, _ in steps]
