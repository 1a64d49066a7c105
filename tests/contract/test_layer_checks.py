"""Every check of layers and plugins passes a layer that keeps dirty data, and catches one that breaks its promise."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from pydantic import BaseModel, ConfigDict

from fusecache.api import DONE, Attempt, Buffers, Done, LayerContext, LayerStatus, Volume
from fusecache.testing import check_layer, layer_checks, memory_volume, plugin_checks
from fusecache.testing.harness import keep
from fusecache.testing.rig import LayerRig, layer_rig
from fusecache.testing.sparse import SparseBytes
from tests.support.writeback_layer import WritebackLayer, WritebackPlugin

SIZE: Final = 32768 + 517


async def test_a_layer_that_keeps_dirty_data_keeps_the_contract() -> None:
    await check_layer(WritebackPlugin())


class TooSmall(WritebackLayer):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.size -= 1


class CountsBackwards(WritebackLayer):
    def status(self) -> LayerStatus:
        return replace(super().status(), hits=self.size - self.dirty_bytes)


class CleanWithDirtyBytes(WritebackLayer):
    def status(self) -> LayerStatus:
        return replace(super().status(), dirty_bytes=1)


class ForgetsToFlushBelow(WritebackLayer):
    async def writeback(self) -> None:
        for extent in self.pool.dirty.extents(0, self.size):
            await self.below.write(extent.offset, memoryview(self.pool.dirty.read(extent.offset, extent.length)))
        self.pool.dirty = SparseBytes(self.size)


class KeepsTheCallersData(WritebackLayer):
    async def write(self, offset: int, data: memoryview) -> None:
        await super().write(offset, data)
        self.mine = offset, data

    async def writeback(self) -> None:
        self.keep(*self.mine)
        await super().writeback()


class ObeysTheRateWhenAsked(WritebackLayer):
    async def writeback(self) -> None:
        if self.writeback_rate != 0:
            await super().writeback()


class CleanBeforeItIsBelow(WritebackLayer):
    def take_back(self) -> None:
        self.pool.leaving = SparseBytes(self.size)


class SwallowsErrors(WritebackLayer):
    async def writeback(self) -> None:
        try:
            await super().writeback()
        except OSError:
            return


class DropsDirtyDataUnasked(WritebackLayer):
    async def invalidate(self, *, dirty: bool) -> None:
        await super().invalidate(dirty=True)


class CachesForEver(WritebackLayer):
    cached: bytes | None = None

    async def read(self, offset: int, length: int) -> Buffers:
        if (offset, length) != (0, self.size):
            return await super().read(offset, length)
        if self.dirty_bytes or self.cached is None:
            self.cached = b"".join(await super().read(offset, length))
        return [self.cached]


class KeepsALittle(WritebackLayer):
    async def invalidate(self, *, dirty: bool) -> None:
        head = self.pool.dirty.read(0, 1) if self.dirty_bytes else b""
        await super().invalidate(dirty=dirty)
        if head:
            self.pool.dirty.write(0, head)


class WriteThrough(WritebackLayer):
    async def write(self, offset: int, data: memoryview) -> None:
        await self.below.write(offset, data)

    async def write_zeroes(self, offset: int, length: int) -> None:
        await self.below.write_zeroes(offset, length)

    async def discard(self, offset: int, length: int) -> None:
        await self.below.discard(offset, length)

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        return self.below.try_write(offset, data, done)


class SaysItFlushed(WriteThrough):
    def try_flush(self, done: Done) -> Attempt:
        return DONE

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()


class ReadsZeroesOnErrors(WritebackLayer):
    async def read(self, offset: int, length: int) -> Buffers:
        try:
            return await super().read(offset, length)
        except OSError:
            return [bytes(length)]


class WritesBackBesideItself(WritebackLayer):
    async def writeback(self) -> None:
        async with trio.open_nursery() as nursery:
            for data in (b"new", b"old"):
                nursery.start_soon(self.below.write, 0, memoryview(data)[: self.size])
        await super().writeback()


class LosesWhatIsWrittenMeanwhile(WritebackLayer):
    async def writeback(self) -> None:
        await super().writeback()
        self.pool.dirty = SparseBytes(self.size)

    async def write(self, offset: int, data: memoryview) -> None:
        self.keep(offset, data)
        await trio.lowlevel.checkpoint()


class OpenedStrangely(WritebackPlugin):
    """Opens the layer inside *around*, which says what is strange."""

    def __init__(self, around: Callable[[LayerContext, WritebackLayer], AbstractAsyncContextManager[None]]) -> None:
        super().__init__()
        self.around = around

    def open(self, context: LayerContext, below: Volume) -> AbstractAsyncContextManager[WritebackLayer]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[WritebackLayer]:
            async with super(OpenedStrangely, self).open(context, below) as layer, self.around(context, layer):
                yield layer

        return opened()


@asynccontextmanager
async def forgets_at_close(context: LayerContext, layer: WritebackLayer) -> AsyncIterator[None]:
    """Lose what is dirty when the layer is closed."""
    yield
    layer.pool.dirty = SparseBytes(layer.size)


@asynccontextmanager
async def writes_back_at_close(context: LayerContext, layer: WritebackLayer) -> AsyncIterator[None]:
    """Wait for a write-back when the layer is closed."""
    yield
    await layer.writeback()


@asynccontextmanager
async def leaves_a_task(context: LayerContext, layer: WritebackLayer) -> AsyncIterator[None]:
    """Start a task that nobody ends."""
    context.nursery.start_soon(trio.sleep_forever)
    yield


BROKEN_LAYERS: Final[Sequence[tuple[Callable[[LayerRig], Awaitable[None]], WritebackPlugin]]] = (
    (layer_checks.a_layer_has_the_size_of_the_level_below, WritebackPlugin(TooSmall)),
    (layer_checks.status_figures_are_sane, WritebackPlugin(CountsBackwards)),
    (layer_checks.status_figures_are_sane, WritebackPlugin(CleanWithDirtyBytes)),
    (layer_checks.writeback_puts_everything_below_and_flushes_it, WritebackPlugin(ForgetsToFlushBelow)),
    (layer_checks.data_changed_after_a_write_is_not_written_back, WritebackPlugin(KeepsTheCallersData)),
    (layer_checks.a_rate_of_zero_pauses_only_the_background, WritebackPlugin(ObeysTheRateWhenAsked)),
    (layer_checks.a_failed_writeback_keeps_the_data_dirty, WritebackPlugin(CleanBeforeItIsBelow)),
    (layer_checks.a_failed_writeback_keeps_the_data_dirty, WritebackPlugin(SwallowsErrors)),
    (layer_checks.a_cancelled_writeback_loses_nothing, WritebackPlugin(CleanBeforeItIsBelow)),
    (layer_checks.invalidate_refuses_to_drop_dirty_data_unasked, WritebackPlugin(DropsDirtyDataUnasked)),
    (layer_checks.invalidating_a_clean_layer_shows_the_level_below, WritebackPlugin(CachesForEver)),
    (layer_checks.invalidate_with_dirty_drops_everything_for_good, WritebackPlugin(KeepsALittle)),
    (layer_checks.a_flush_reaches_what_the_layer_has_passed_on, WritebackPlugin(SaysItFlushed)),
    (layer_checks.closing_keeps_the_data, OpenedStrangely(forgets_at_close)),
    (layer_checks.closing_does_not_wait_for_writeback, OpenedStrangely(writes_back_at_close)),
    (layer_checks.closing_leaves_nothing_running_and_the_level_below_open, OpenedStrangely(leaves_a_task)),
    (layer_checks.an_error_below_is_never_wrong_data, WritebackPlugin(ReadsZeroesOnErrors)),
    (layer_checks.requests_go_on_beside_a_writeback, WritebackPlugin(LosesWhatIsWrittenMeanwhile)),
    (layer_checks.requests_go_on_beside_a_writeback, WritebackPlugin(WritesBackBesideItself)),
)


def name_of(plugin: WritebackPlugin) -> str:
    """Return what is broken about *plugin*."""
    return plugin.around.__name__ if isinstance(plugin, OpenedStrangely) else plugin.layer.__name__


@pytest.mark.parametrize(("check", "plugin"), BROKEN_LAYERS, ids=[name_of(plugin) for _, plugin in BROKEN_LAYERS])
async def test_a_check_catches_a_broken_layer(
    check: Callable[[LayerRig], Awaitable[None]], plugin: WritebackPlugin, autojump_clock: trio.testing.MockClock
) -> None:
    promise = check.__name__.replace("_", " ")
    with pytest.raises(AssertionError, match=f"^{promise}: "):
        await keep(check, partial(layer_rig, plugin, {}, memory_volume, SIZE))


def test_every_layer_check_is_seen_to_fail() -> None:
    assert {check for check, _ in BROKEN_LAYERS} == set(layer_checks.LAYER_CHECKS)


async def test_a_layer_that_writes_through_keeps_the_contract_too() -> None:
    class FlushesBelow(WriteThrough):
        def try_flush(self, done: Done) -> Attempt:
            return self.below.try_flush(done)

        async def flush(self) -> None:
            await self.below.flush()

    await check_layer(WritebackPlugin(FlushesBelow))


class Nameless(WritebackPlugin):
    name = ""


class OfAnotherVersion(WritebackPlugin):
    api_version = 0


class AnyOption(WritebackPlugin):
    class Loose(BaseModel):
        model_config = ConfigDict(extra="allow")

    config_model = Loose


class SecretFile(WritebackPlugin):
    def open(self, context: LayerContext, below: Volume) -> AbstractAsyncContextManager[WritebackLayer]:
        (context.state_dir / "secret").touch()
        return super().open(context, below)


class CreatesWhenAsked(WritebackPlugin):
    def artifacts(self, context: LayerContext) -> Sequence[Path]:
        (path,) = super().artifacts(context)
        path.touch()
        return [path]


class OneFileForAllIndexes(WritebackPlugin):
    def artifacts(self, context: LayerContext) -> Sequence[Path]:
        return [context.state_dir / "writeback.pool"]


BROKEN_PLUGINS: Final[Sequence[tuple[Callable[[plugin_checks.Configured], Awaitable[None]], WritebackPlugin]]] = (
    (plugin_checks.the_plugin_declares_itself, Nameless()),
    (plugin_checks.the_plugin_declares_itself, OfAnotherVersion()),
    (plugin_checks.unknown_options_are_refused, AnyOption()),
    (plugin_checks.artifacts_are_named_before_they_are_created, SecretFile()),
    (plugin_checks.artifacts_are_named_before_they_are_created, CreatesWhenAsked()),
    (plugin_checks.artifacts_of_two_layers_never_collide, OneFileForAllIndexes()),
)


@pytest.mark.parametrize(
    ("check", "plugin"), BROKEN_PLUGINS, ids=[type(plugin).__name__ for _, plugin in BROKEN_PLUGINS]
)
async def test_a_check_catches_a_broken_plugin(
    check: Callable[[plugin_checks.Configured], Awaitable[None]], plugin: WritebackPlugin
) -> None:
    promise = check.__name__.replace("_", " ")
    with pytest.raises(AssertionError, match=f"^{promise}: (?!raised)"):
        await check_layer(plugin)


def test_every_plugin_check_is_seen_to_fail() -> None:
    assert {check for check, _ in BROKEN_PLUGINS} == set(plugin_checks.PLUGIN_CHECKS)
