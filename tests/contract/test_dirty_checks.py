"""Every check of marks passes a layer that sets its own in time, and catches one that does not."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Final

import pytest
import trio.testing

from fusecache.api import DONE, Attempt, Done, LayerContext, Volume
from fusecache.api.errors import FusecacheError
from fusecache.testing import RecordingMark, dirty_checks, memory_volume
from fusecache.testing.harness import keep
from fusecache.testing.rig import LayerRig, layer_rig
from fusecache_passthrough import plugin as passthrough
from tests.support.writeback_layer import WritebackLayer, WritebackPlugin

SIZE: Final = 32768 + 517


class MarksAfterwards(WritebackLayer):
    async def write(self, offset: int, data: memoryview) -> None:
        self.keep(offset, data)
        await trio.lowlevel.checkpoint()


class MarksAfterwardsWhenAttempted(WritebackLayer):
    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.keep(offset, data)
        return DONE


class MarksAfterwardsWhenDiscarding(WritebackLayer):
    async def discard(self, offset: int, length: int) -> None:
        self.keep(offset, bytes(length))
        await trio.lowlevel.checkpoint()


class KeepsWhatItCannotMark(WritebackLayer):
    async def write(self, offset: int, data: memoryview) -> None:
        self.keep(offset, data)
        await self.mark.set()


class ClearsBeforeItIsBelow(WritebackLayer):
    async def writeback(self) -> None:
        await self.mark.clear()
        await super().writeback()


class Unmarked(WritebackPlugin):
    """Does not say that its layers write back."""

    writes_back = False


class NeverClears(WritebackLayer):
    async def writeback(self) -> None:
        await super().writeback()
        # As one that finds itself dirty at its close.
        self.pool.leaving.write(0, b"\1")


class ForgetsTheMark(WritebackPlugin):
    """Uses what its files hold, whatever the mark says."""

    def open(self, context: LayerContext, below: Volume) -> AbstractAsyncContextManager[WritebackLayer]:
        return super().open(replace(context, dirty=RecordingMark(is_set=True)), below)


BROKEN: Final[list[tuple[Callable[[LayerRig], Awaitable[None]], WritebackPlugin]]] = [
    (dirty_checks.dirty_data_is_marked_before_it_is_acknowledged, WritebackPlugin(MarksAfterwards)),
    (dirty_checks.dirty_data_is_marked_before_it_is_acknowledged, WritebackPlugin(MarksAfterwardsWhenAttempted)),
    (dirty_checks.dirty_data_is_marked_before_it_is_acknowledged, WritebackPlugin(MarksAfterwardsWhenDiscarding)),
    (dirty_checks.dirty_data_is_marked_before_it_is_acknowledged, WritebackPlugin(NeverClears)),
    (dirty_checks.dirty_data_is_marked_before_it_is_acknowledged, Unmarked()),
    (dirty_checks.a_mark_that_cannot_be_set_leaves_the_layer_clean, WritebackPlugin(KeepsWhatItCannotMark)),
    (dirty_checks.the_mark_is_cleared_over_a_clean_layer_only, WritebackPlugin(ClearsBeforeItIsBelow)),
    (dirty_checks.what_no_mark_vouches_for_is_not_used, ForgetsTheMark()),
]


@pytest.mark.parametrize(("check", "plugin"), BROKEN)
async def test_a_check_catches_a_broken_layer(
    check: Callable[[LayerRig], Awaitable[None]],
    plugin: WritebackPlugin,
    autojump_clock: trio.testing.MockClock,
) -> None:
    promise = check.__name__.replace("_", " ")
    with pytest.raises(AssertionError, match=f"^{promise}: (?!raised)"):
        await keep(check, partial(layer_rig, plugin, {}, memory_volume, SIZE))


def test_every_dirty_check_is_seen_to_fail() -> None:
    assert {check for check, _ in BROKEN} == set(dirty_checks.DIRTY_CHECKS)


@pytest.mark.parametrize("check", dirty_checks.DIRTY_CHECKS)
async def test_layers_that_keep_their_marks_pass(check: Callable[[LayerRig], Awaitable[None]]) -> None:
    for plugin in (WritebackPlugin(), passthrough):
        await keep(check, partial(layer_rig, plugin, {}, memory_volume, SIZE))


async def test_a_layer_that_passes_everything_on_never_touches_its_mark() -> None:
    async with layer_rig(passthrough, {}, memory_volume, SIZE) as rig:
        rig.mark.failure = FusecacheError("touched")
        async with rig.open() as layer:
            await layer.write(0, memoryview(b"data"))
            await layer.writeback()
        assert rig.mark.told == []
