"""Write-back goes top down; discards go top first."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import trio

from fusecache.api.errors import BadCommand, LayerDirty, PluginMissing
from fusecache.api.layer import LayerState, LayerStatus
from fusecache.stack.assemble import Stack, StackLayer
from fusecache.stack.link import Link
from fusecache.stack.plan import MissingLayer
from fusecache.testing.memory import MemoryVolume
from fusecache_passthrough import PassthroughLayer


class Cache(PassthroughLayer):
    """A layer that is dirty or torn when the test says so, and tells what it is asked to do."""

    torn = False

    def __init__(self, below: Link, index: int, told: list[str]) -> None:
        super().__init__(below)
        self.index = index
        self.told = told
        self.found = LayerStatus()

    def status(self) -> LayerStatus:
        return self.found

    async def writeback(self) -> None:
        self.told.append(f"write back {self.index}")
        await trio.lowlevel.checkpoint()
        self.found = LayerStatus()

    async def invalidate(self, *, dirty: bool) -> None:
        if self.found.dirty_bytes and not dirty:
            raise LayerDirty(f"layer {self.index} is dirty")
        self.told.append(f"drop {self.index}" + " dirty" * dirty)
        await trio.lowlevel.checkpoint()
        self.found = LayerStatus()


class TellingImage(MemoryVolume):
    """Tells of its flushes."""

    def __init__(self, told: list[str]) -> None:
        super().__init__(4096)
        self.told = told

    async def flush(self) -> None:
        self.told.append("flush the backend")
        await super().flush()


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
async def stack(told: list[str]) -> AsyncIterator[Stack]:
    """A stack of layers 0, 2 and 5, and a layer 7 that is left out."""
    image = TellingImage(told)
    base = link = Link(image)
    layers = []
    for index in (0, 2, 5):
        layer = Cache(link, index, told)
        link = Link(layer)
        layers.append(StackLayer(index, "cache", layer, link, {}))
    missing = [MissingLayer(7, "gone", {}, "gone is not installed")]
    async with trio.open_nursery() as nursery:
        yield Stack(link, base, image, layers, missing, image.identity, 1, nursery)


def soil(stack: Stack, *indexes: int) -> None:
    for layer in stack.layers:
        assert isinstance(layer.layer, Cache)
        if layer.index in indexes:
            layer.layer.found = LayerStatus(state=LayerState.DIRTY, dirty_bytes=512)


async def test_everything_is_written_back_top_down_and_flushed(stack: Stack, told: list[str]) -> None:
    await stack.writeback(None)
    assert told == ["write back 5", "write back 2", "write back 0", "flush the backend"]


async def test_one_layer_is_written_back_alone(stack: Stack, told: list[str]) -> None:
    await stack.writeback(2)
    assert told == ["write back 2"]


async def test_a_clean_layer_is_dropped_alone_whatever_lies_above(stack: Stack, told: list[str]) -> None:
    soil(stack, 5)
    await stack.invalidate(2, dirty=False)
    assert told == ["drop 2"]


async def test_what_a_layer_above_might_write_back_meanwhile_is_not_dropped_with_a_clean_layer(
    stack: Stack, told: list[str]
) -> None:
    soil(stack, 5)
    with pytest.raises(LayerDirty, match=r"lies under dirty layers.*: 5 "):
        await stack.invalidate(0, dirty=True)
    assert not told


async def test_a_dirty_layer_is_not_dropped_by_accident(stack: Stack, told: list[str]) -> None:
    soil(stack, 2)
    with pytest.raises(LayerDirty, match="layer 2 is dirty"):
        await stack.invalidate(2, dirty=False)
    assert told == []


async def test_dirty_data_under_dirty_layers_stays(stack: Stack, told: list[str]) -> None:
    soil(stack, 0, 2, 5)
    with pytest.raises(
        LayerDirty, match=r"layer 0 lies under dirty layers, discard them first: 2 \(cache\), 5 \(cache\)"
    ):
        await stack.invalidate(0, dirty=True)
    assert told == []
    for index in (5, 2, 0):
        await stack.invalidate(index, dirty=True)


async def test_dirty_data_over_a_torn_level_goes_only_if_torn_will_do(stack: Stack, told: list[str]) -> None:
    soil(stack, 2)
    layer = stack.layers[1].layer
    assert isinstance(layer, Cache)
    layer.torn = True
    with pytest.raises(LayerDirty, match="layer 2 is dirty"):
        await stack.invalidate(2, dirty=False)
    with pytest.raises(LayerDirty, match=r"layer 2 is in the middle of a group .* --layer 2 --dirty --torn"):
        await stack.invalidate(2, dirty=True)
    assert told == []
    await stack.invalidate(2, dirty=True, torn=True)
    await stack.invalidate(5, dirty=True, torn=True)
    assert told == ["drop 2 dirty", "drop 5", "drop 5 dirty"]


async def test_dirty_data_that_may_be_of_a_group_goes_only_if_torn_will_do(stack: Stack, told: list[str]) -> None:
    stack = replace(stack, holds_group=lambda index: index == 2)
    await stack.invalidate(2, dirty=True)
    soil(stack, 0, 2)
    with pytest.raises(LayerDirty, match=r"layer 2 holds writes .* as one group.* --layer 2 --dirty --torn"):
        await stack.invalidate(2, dirty=True)
    assert told == ["drop 2 dirty"]
    await stack.invalidate(2, dirty=True, torn=True)
    await stack.invalidate(0, dirty=True)
    assert told[1:] == ["drop 2 dirty", "drop 5", "drop 0 dirty", "drop 2", "drop 5"]


async def test_after_dirty_data_the_clean_copies_above_are_dropped(stack: Stack, told: list[str]) -> None:
    soil(stack, 0)
    await stack.invalidate(0, dirty=True)
    assert told == ["drop 0 dirty", "drop 2", "drop 5"]


async def test_a_layer_that_writes_back_is_dirty(stack: Stack) -> None:
    soil(stack, 0)
    (upper,) = [layer.layer for layer in stack.layers if layer.index == 2]
    assert isinstance(upper, Cache)
    upper.found = LayerStatus(state=LayerState.WRITING_BACK)
    with pytest.raises(LayerDirty):
        await stack.invalidate(0, dirty=True)


@pytest.mark.parametrize("index", [-1, 1, 6])
async def test_an_unknown_layer_is_refused_with_those_there_are(stack: Stack, told: list[str], index: int) -> None:
    for command in (stack.writeback(index), stack.invalidate(index, dirty=True)):
        with pytest.raises(BadCommand, match=rf"found layer {index}, allowed: 0, 2, 5, 7"):
            await command
    assert told == []


async def test_a_layer_that_is_left_out_obeys_no_command(stack: Stack, told: list[str]) -> None:
    for command in (stack.writeback(7), stack.invalidate(7, dirty=False)):
        with pytest.raises(PluginMissing, match="layer 7 is left out: gone is not installed"):
            await command
    assert told == []
