"""The pool's medium fails: the layer says so, nothing wrong is ever read, and the next open finds a prefix."""

import contextlib
from collections.abc import Iterator

import pytest
import trio

from fusecache.api import FusecacheError, LayerState
from fusecache_rwl.layer import RwlLayer
from fusecache_rwl.log import LogFailed
from layers.rwl.tests.support.bench import BLOCK, SIZE, Bench, benched, block, read, write
from layers.rwl.tests.support.switched import Step

FAILURES = (LogFailed, OSError)


@pytest.fixture(params=[False, True], ids=["whole", "torn"])
def torn(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with benched() as made:
        yield made


def broken(bench: Bench, step: Step, *, torn: bool = False) -> None:
    """Have a step fail from now on."""
    bench.medium.failing.add(step)
    bench.medium.torn = torn


async def expect_refusal(layer: RwlLayer) -> None:
    """The layer is failed, and takes nothing more."""
    assert layer.status().state is LayerState.FAILED
    with pytest.raises(LogFailed) as caught:
        await write(layer, 7, 77)
    assert caught.value.errno == 5
    for again in (layer.flush, layer.writeback):
        with pytest.raises(FAILURES):
            await again()


async def expect_nothing_wrong(layer: RwlLayer, *allowed: bytes) -> None:
    """A read returns one of the contents, or fails."""
    try:
        found = await read(layer, 0, len(allowed[0]) // BLOCK)
    except FAILURES:
        return
    assert found in allowed


async def expect_prefix(bench: Bench, *allowed: bytes) -> None:
    """Opened again, the layer holds one of the contents, says so below, and works."""
    async with bench.opened() as layer:
        found = await read(layer, 0, len(allowed[0]) // BLOCK)
        assert found in allowed
        await write(layer, 9, 99)
        await layer.writeback()
        assert layer.status().state is LayerState.CLEAN
    assert bench.below(0, len(found)) == found
    assert bench.below(9 * BLOCK) == block(99)


async def test_an_append_that_fails_fails_the_layer_and_leaves_no_trace(bench: Bench, torn: bool) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        await layer.flush()
        await write(layer, 1, 2)
        broken(bench, "append", torn=torn)
        with pytest.raises(LogFailed):
            await write(layer, 0, 3)
        bench.medium.failing.clear()
        await expect_refusal(layer)
        await expect_nothing_wrong(layer, block(1) + block(2))
        # What is not in the log is still served.
        assert await read(layer, 5) == bytes(BLOCK)
    assert bench.mark.is_set
    await expect_prefix(bench, block(1) + block(2))


async def test_a_sync_that_fails_is_told_and_fails_the_layer(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        await layer.flush()
        await write(layer, 0, 2)
        broken(bench, "sync")
        with pytest.raises(FAILURES):
            await layer.flush()
        bench.medium.failing.clear()
        await expect_refusal(layer)
        await expect_nothing_wrong(layer, block(2))
        assert bench.below() == bytes(BLOCK)
    assert bench.mark.is_set
    await expect_prefix(bench, block(1), block(2))


async def test_a_write_that_should_be_durable_fails_with_its_sync(bench: Bench) -> None:
    async with bench.opened(persist="write") as layer:
        await write(layer, 0, 1)
        broken(bench, "sync")
        with pytest.raises(FAILURES):
            await write(layer, 0, 2)
        assert layer.status().state is LayerState.FAILED
    await expect_prefix(bench, block(1), block(2))


async def test_a_retirement_that_fails_fails_the_layer_and_loses_nothing(bench: Bench, torn: bool) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        broken(bench, "superblock", torn=torn)
        with pytest.raises(FAILURES):
            await layer.writeback()
        await expect_refusal(layer)
        await expect_nothing_wrong(layer, block(1))
    assert bench.mark.is_set
    await expect_prefix(bench, block(1))


async def test_a_torn_superblock_is_not_written_over_by_a_second_torn_one(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        await layer.writeback()
        await write(layer, 0, 2)
        broken(bench, "superblock", torn=True)
        for _ in range(3):
            with pytest.raises(FAILURES):
                await layer.writeback()
    await expect_prefix(bench, block(2))


async def test_an_invalidation_that_fails_forgets_nothing(bench: Bench, torn: bool) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        broken(bench, "superblock", torn=torn)
        with pytest.raises(FAILURES):
            await layer.invalidate(dirty=True)
        await expect_nothing_wrong(layer, block(1))
    assert bench.mark.is_set
    await expect_prefix(bench, block(1))


@pytest.mark.parametrize("step", ["superblock", "read", "sync"])
async def test_a_recovery_that_fails_changes_nothing(bench: Bench, step: Step) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        await layer.flush()
        await write(layer, 0, 2)
    bench.fails_to_open = {step}
    with pytest.raises((FusecacheError, OSError)):
        async with bench.opened():
            pytest.fail("it opened")
    bench.fails_to_open.clear()
    assert bench.mark.is_set
    await expect_prefix(bench, block(2))


async def test_a_new_log_that_cannot_begin_is_not_opened(bench: Bench) -> None:
    bench.fails_to_open = {"superblock"}
    with pytest.raises(LogFailed):
        async with bench.opened():
            pytest.fail("it opened")
    bench.fails_to_open.clear()
    assert not bench.mark.is_set
    async with bench.opened() as layer:
        assert await read(layer, 0, SIZE // BLOCK) == bytes(SIZE)


async def test_a_read_that_fails_is_told_moves_nothing_wrong_and_may_succeed_later(bench: Bench) -> None:
    async with bench.opened() as layer:
        await write(layer, 0, 1)
        bench.medium.cold = True
        broken(bench, "read")
        with pytest.raises(OSError, match="error"):
            await read(layer)
        with pytest.raises(OSError, match="error"):
            await layer.writeback()
        assert bench.below() == bytes(BLOCK)
        assert layer.status().state is LayerState.DEGRADED
        bench.medium.failing.clear()
        assert await read(layer) == block(1)
        await layer.writeback()
    assert bench.below() == block(1)


async def test_a_close_of_a_failed_layer_ends(bench: Bench) -> None:
    steps: tuple[Step, ...] = ("append", "sync", "superblock")
    for step in steps:
        with trio.fail_after(10):
            async with bench.opened(writeback_rate="max", max_dirty_age="0s") as layer:
                await write(layer, 0, 1)
                broken(bench, step)
                with contextlib.suppress(*FAILURES):
                    await write(layer, 1, 2)
                with pytest.raises(FAILURES):
                    await layer.writeback()
        assert bench.mark.is_set
    await expect_prefix(bench, block(1) + bytes(BLOCK), block(1) + block(2))
