"""Generations that overwrite each other, what a crash leaves while they go below, and what its recovery makes of that.

Owns the order that the level below is judged by: sector by sector, all generations up to one, and some sectors of the
next. It must not know what is tested.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import FusecacheError
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, Bench, benched, block, read, write
from layers.rwl.tests.support.failing_medium import PATIENCE
from layers.rwl.tests.support.timeline import SECTOR

GENERATIONS: Final = ({0: 1, 2: 2}, {0: 3, 4: 4}, {2: 5, 4: 6, 6: 7}, {0: 8, 6: 9})
"""Block and content of each write; none are neighbours, so each is a move of its own."""
BLOCKS: Final = 8


def states() -> Sequence[bytes]:
    """Return the image after each generation."""
    found = [bytes(BLOCKS * BLOCK)]
    for generation in GENERATIONS:
        image = bytearray(found[-1])
        for at, number in generation.items():
            image[at * BLOCK : (at + 1) * BLOCK] = block(number)
        found.append(bytes(image))
    return found


STATES: Final = states()
LAST: Final = len(GENERATIONS)


def sectors(image: bytes) -> Iterator[bytes]:
    """Yield the sectors of an image."""
    return (image[at : at + SECTOR] for at in range(0, len(image), SECTOR))


def is_point(image: bytes, first: int, last: int = LAST) -> bool:
    """Say whether *image* is all generations up to g, and some of the next, for a g from *first* to *last*."""
    return any(
        all(found in either for found, *either in zip(sectors(image), sectors(STATES[g]), sectors(new), strict=True))
        for g in range(first, min(last, LAST) + 1)
        for new in [STATES[min(g + 1, LAST)]]
    )


@dataclass(frozen=True)
class Crash:
    """What the death of the process leaves at some instant.

    Attributes:
        pool, image: bytes of the pool file, and of the level below.
        is_set, is_torn: what the mark says.
        written_back: the last generation that the durable superblock says is below.
    """

    pool: bytes
    image: bytes
    is_set: bool
    is_torn: bool
    written_back: int

    @property
    def is_good(self) -> bool:
        """What is below is a point of the order, no older than what is durably written back, or the mark says torn."""
        if not self.is_set:
            return self.image == STATES[-1]
        return self.is_torn or is_point(self.image, self.written_back, self.written_back + 1)

    @property
    def is_ahead(self) -> bool:
        """Some of the generation after the one that is being retired is below."""
        return self.is_set and not is_point(self.image, self.written_back, self.written_back)


def crashed(bench: Bench, layer: RwlLayer) -> Crash:
    """Return what is left if the process dies now."""
    image = bench.below(0, BLOCKS * BLOCK)
    written_back = layer._log.superblock.written_back
    return Crash(bench.pool.read_bytes(), image, bench.mark.is_set, bench.mark.is_torn, written_back)


@contextlib.contextmanager
def left(crash: Crash) -> Iterator[Bench]:
    """Make a bench of what a crash left."""
    with benched() as bench:
        bench.pool.write_bytes(crash.pool)
        bench.bare.content.write(0, crash.image)
        bench.mark.is_set, bench.mark.is_torn = crash.is_set, crash.is_torn
        yield bench


@asynccontextmanager
async def filled(bench: Bench, **options: Any) -> AsyncIterator[RwlLayer]:
    """Open the layer with all generations in its log, durable there, and none below."""
    async with bench.opened(**options) as layer:
        for generation in GENERATIONS:
            for at, number in generation.items():
                await write(layer, at, number)
            await layer.flush()
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
    await until(lambda: bench.medium.held and bench.below(0, BLOCKS * BLOCK) == STATES[2])
    await wait_all_tasks_blocked()


async def step_by_step(
    bench: Bench, layer: RwlLayer, before: Callable[[], None] = lambda: None, *, late: bool = True
) -> Sequence[tuple[Crash, str]]:
    """Write everything back, one request after the other.

    Args:
        before: called before each step.
        late: superblocks come as late as can be; otherwise as early.

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
            is_below = held and (late or not superblocks)
            found.append((crashed(bench, layer), held[0].request.operation if is_below else "superblock"))
            if is_below:
                held[0].let_go()
            elif superblocks:
                superblocks.pop(0)()
            await wait_all_tasks_blocked()
    bench.gate.open()
    bench.medium.let_go()
    return found


async def recover(crash: Crash) -> Sequence[Crash]:
    """Open what a crash left, and write it back; return what crashes on the way would leave."""
    with left(crash) as bench:
        async with bench.opened() as layer:
            assert await read(layer, 0, BLOCKS) == STATES[-1]
            found = [found for found, _ in await step_by_step(bench, layer)]
        assert bench.below(0, BLOCKS * BLOCK) == STATES[-1]
        assert not bench.mark.is_torn
        assert not bench.mark.is_set
    # A superblock of the recovery repeats what the last one said.
    assert all(one.is_good and one.written_back >= crash.written_back for one in found)
    return found
