"""Reports about very many images keep nobody from being served meanwhile."""

import gc
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import pytest
import trio

from fusecache.api.volume import Attempt, joined
from fusecache.control.hops import hops_of
from fusecache.metrics.registry import Sources, scrape
from fusecache.stack.stats import Op
from tests.support.controlled import World

NAMES = tuple(f"disk-{number:03d}" for number in range(300))
LONGEST = 0.03
"""Seconds of CPU time in which nobody else has a turn; all of a report at one go takes some tenths of a second."""


@pytest.fixture
async def world(nursery: trio.Nursery) -> AsyncIterator[World]:
    """Many open images, each of which was read and written."""

    def metrics() -> Iterator[str]:
        return scrape(
            Sources(
                version="1",
                backend="memory",
                operations=tuple(Op),
                hops=lambda: hops_of(made.registry, "memory"),
                open_images=lambda: len(NAMES),
                running_commands=lambda: 0,
                slots_in_use=lambda: 0,
            )
        )

    made = World(nursery, names=NAMES, metrics=metrics, release_after=60.0)
    async with AsyncExitStack() as images:
        for name in NAMES:
            image = await images.enter_async_context(made.registry.using(name))
            await image.top.write(0, memoryview(b"x" * 512))
            await image.top.read(0, 512)
        yield made


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Keep the garbage collector, which takes longer the more a test run has loaded, from measurements."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("path", ["metrics", "status", "status.json"])
async def test_others_have_their_turn_while_a_report_is_made(world: World, path: str, no_collections: None) -> None:
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        before = time.thread_time()
        while True:
            await trio.lowlevel.checkpoint()
            longest, before = max(longest, time.thread_time() - before), time.thread_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        file = await world.open(path)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert longest < LONGEST
    # It is whole, however it is read.
    whole = read(0, file.end, file.read)
    assert whole == b"".join(read(at, min(70_001, file.end - at), file.read) for at in range(0, file.end, 70_001))
    assert len({whole.count(name.encode()) for name in NAMES}) == 1
    headings = [line for line in whole.splitlines() if line.startswith(b"# ")]
    assert len(headings) == len(set(headings))


async def test_an_image_that_is_closed_while_the_metrics_are_made_is_left_out(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("a", "b"))
    async with world.opened("a"):
        async with world.opened("b"):
            hops = hops_of(world.registry, "memory")
            assert next(hops)[0].image == "a"
        b = world.registry.opened("b")
        while b is not None and world.registry.opened_as(b.info.key) is not None:
            await trio.lowlevel.checkpoint()
        assert list(hops) == []


def read(offset: int, length: int, call: object) -> bytes:
    assert callable(call)
    outcome = call(offset, length, None)
    assert not isinstance(outcome, Attempt)
    content = joined(outcome)
    assert len(content) == length
    return bytes(content)
