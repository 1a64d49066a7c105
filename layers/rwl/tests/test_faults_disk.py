"""A real disk fails under the pool: what the page cache still has is proven and saved, what it has not is told."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import trio

from fusecache.api import LayerState
from fusecache.testing import MemoryVolume
from fusecache_rwl.failures import RecordDamaged
from fusecache_rwl.medium import create_pool
from layers.rwl.tests.support.bench import BLOCK, RING, SIZE, Bench, block, read, write
from layers.rwl.tests.support.failing_disk import Disk, failing_disk

PATIENCE = 5.0
"""Seconds after which a test that waits has failed."""


@dataclass
class Pair:
    disk: Disk
    bench: Bench


@pytest.fixture
def pair() -> Iterator[Pair]:
    with failing_disk() as disk:
        create_pool(disk.path / "pool", RING)
        yield Pair(disk, Bench(disk.path / "pool", MemoryVolume(SIZE)))


async def test_what_a_failed_disk_s_page_cache_has_is_saved_and_the_disk_used_again(pair: Pair) -> None:
    bench = pair.bench
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        await layer.flush()
        await write(layer, 1, 2)
        pair.disk.fail()
        with trio.fail_after(PATIENCE):
            await layer.flush()
        assert bench.below(0, 2 * BLOCK) == block(1) + block(2)
        assert layer.status().state is LayerState.DEGRADED
        await write(layer, 0, 3)
        await layer.writeback()
        assert bench.below() == block(3)
        pair.disk.mend()
        await layer.writeback()
        with trio.fail_after(PATIENCE):
            await bench.wait_for("log-resumed")
        await write(layer, 1, 4)
        await layer.flush()
        assert bench.below(BLOCK) == block(2)
        assert layer.status().state is LayerState.DIRTY
    async with bench.opened() as layer:
        assert await read(layer, 0, 2) == block(3) + block(4)


async def test_what_only_the_failed_disk_should_have_is_told_and_never_made_up(pair: Pair) -> None:
    bench = pair.bench
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        await layer.flush()
        pair.disk.fail()
        with bench.pool.open("rb") as pool:
            os.posix_fadvise(pool.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        await write(layer, 1, 2)
        with trio.fail_after(PATIENCE), pytest.raises(RecordDamaged):
            await layer.flush()
        with pytest.raises(RecordDamaged):
            await read(layer)
        assert bench.below(0, 2 * BLOCK) == bytes(2 * BLOCK)
        assert layer.status().state is LayerState.FAILED
        assert bench.mark.is_set
        pair.disk.mend()
