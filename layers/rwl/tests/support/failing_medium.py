"""A medium that fails at certain steps, and what is expected of a layer then.

Owns the errands that the tests of failed media share. It must not know what is tested.
"""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from fusecache.api import FusecacheError, LayerState
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, Bench, block, read, write
from layers.rwl.tests.support.switched import Step

PATIENCE: Final = 5.0
"""Seconds after which a test that waits has failed."""
STEPS: Final[tuple[Step, ...]] = ("append", "sync", "superblock")


def broken(bench: Bench, *steps: Step, torn: bool = False) -> None:
    """Have steps fail from now on."""
    bench.medium.failing.update(steps)
    bench.medium.torn = torn


async def fail(layer: RwlLayer, step: Step) -> None:
    """Do what takes that step, whatever it says."""
    work: dict[Step, Callable[[], Awaitable[None]]] = {
        "append": lambda: write(layer, 30, 30),
        "sync": layer.flush,
        "superblock": layer.writeback,
    }
    with contextlib.suppress(FusecacheError, OSError):
        await work[step]()


async def stood_aside(bench: Bench) -> None:
    """Wait until the layer has handed over to the level below."""
    with trio.fail_after(PATIENCE):
        await bench.wait_for("log-aside")


async def opened_again(bench: Bench, *allowed: bytes) -> None:
    """Opened again, the layer holds one of the contents, says so below, and works."""
    async with bench.opened() as layer:
        found = await read(layer, 0, len(allowed[0]) // BLOCK)
        assert found in allowed
        await write(layer, 9, 99)
        await layer.writeback()
        assert layer.status().state is LayerState.CLEAN
    assert bench.below(0, len(found)) == found
    assert bench.below(9 * BLOCK) == block(99)
