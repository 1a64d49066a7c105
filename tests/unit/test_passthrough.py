"""The passthrough layer: everything passes, nothing stays."""

import os
from pathlib import Path
from typing import Any

import pytest
import trio

from fusecache.api import (
    API_VERSION,
    DECLINED,
    DONE,
    PENDING,
    Attempt,
    Completions,
    Done,
    Identity,
    Layer,
    LayerContext,
    LayerState,
    ReadDone,
    ReadOutcome,
    Volume,
    joined,
)
from fusecache.testing.faulty import Fault, FaultyVolume
from fusecache.testing.file_sync import ThreadFileSync
from fusecache.testing.marks import RecordingMark
from fusecache.testing.memory import MemoryVolume
from fusecache_passthrough import PassthroughLayer, plugin

SIZE = 10_000


class Watching(MemoryVolume):
    """Remembers what it was handed, and answers as the test says."""

    outcome: Attempt = DONE

    def _remember(self, *args: Any) -> Attempt:
        self.received = args
        return self.outcome

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        outcome = self._remember("read", offset, length, done)
        return [b"data"] if outcome is DONE else outcome

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        return self._remember("write", offset, data, done)

    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        return self._remember("write_zeroes", offset, length, done)

    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        return self._remember("discard", offset, length, done)

    def try_flush(self, done: Done) -> Attempt:
        return self._remember("flush", done)


def done(*args: object) -> None:
    """Stands for a caller's callback."""


def context(nursery: trio.Nursery, completions: Completions, state_dir: Path) -> LayerContext:
    return LayerContext(
        image="disk.img",
        identity=Identity("memory:1"),
        index=0,
        config=plugin.config_model(),
        state_dir=state_dir,
        epoch=1,
        nursery=nursery,
        completions=completions,
        file_sync=ThreadFileSync(completions),
        emit=lambda kind, text: None,
        dirty=RecordingMark(),
    )


async def test_the_plugin_opens_a_layer_that_owns_no_files(tmp_path: Path) -> None:
    below = MemoryVolume(SIZE, alignment=512, read_only=True)
    completions = Completions()
    async with trio.open_nursery() as nursery:
        surroundings = context(nursery, completions, tmp_path)
        assert plugin.artifacts(surroundings) == ()
        async with plugin.open(surroundings, below) as layer:
            assert isinstance(layer, Layer)
            assert (layer.size, layer.alignment, layer.preferred_io) == (SIZE, 512, below.preferred_io)
            assert layer.read_only
    completions.close()
    assert await trio.to_thread.run_sync(os.listdir, tmp_path) == []
    assert (plugin.name, plugin.api_version) == ("passthrough", API_VERSION)


def test_it_writes_out_every_method_of_a_layer() -> None:
    promised = {name for kind in (Volume, Layer) for name, value in vars(kind).items() if callable(value)}
    own = {name for name, value in vars(PassthroughLayer).items() if callable(value)}
    assert {name for name in promised if not name.startswith("_")} - own == {"set_writeback_rate"}


@pytest.mark.parametrize("outcome", Attempt)
@pytest.mark.parametrize(
    ("operation", "args"),
    [
        ("read", (8, 4)),
        ("write", (8, memoryview(b"data"))),
        ("write_zeroes", (8, 4)),
        ("discard", (8, 4)),
        ("flush", ()),
    ],
)
def test_an_attempt_hands_on_the_callers_own_done(outcome: Attempt, operation: str, args: tuple[Any, ...]) -> None:
    below = Watching(SIZE)
    below.outcome = outcome
    layer = PassthroughLayer(below)
    result = getattr(layer, f"try_{operation}")(*args, done)
    assert result == ([b"data"] if (operation, outcome) == ("read", DONE) else outcome)
    assert below.received == (operation, *args, done)
    assert below.received[-1] is done


async def test_the_level_below_holds_everything() -> None:
    below = MemoryVolume(SIZE)
    layer = PassthroughLayer(below)
    await layer.write(100, memoryview(b"some data"))
    assert below.content.read(100, 9) == b"some data"
    assert joined(await layer.read(100, 9)) == b"some data"
    await layer.write_zeroes(100, 2)
    await layer.discard(102, 2)
    assert below.content.read(100, 9) == bytes(4) + b" data"
    assert await layer.extents(0, SIZE) == await below.extents(0, SIZE)
    await layer.resize(50)
    assert layer.size == below.size == 50


async def test_reads_are_misses_and_a_request_counts_once() -> None:
    layer = PassthroughLayer(MemoryVolume(SIZE, attempts="declined"))
    assert layer.try_read(0, 1, done) is DECLINED
    await layer.read(0, 1)
    assert layer.try_write(0, memoryview(b"a"), done) is DECLINED
    await layer.write(0, memoryview(b"a"))
    await layer.write_zeroes(0, 1)
    await layer.discard(0, 1)
    status = layer.status()
    assert (status.hits, status.misses, status.writes) == (0, 1, 3)
    pending = PassthroughLayer(MemoryVolume(SIZE, attempts="pending"))
    assert pending.try_read(0, 1, done) is PENDING
    assert pending.try_discard(0, 1, done) is PENDING
    assert (pending.status().misses, pending.status().writes) == (1, 1)


async def test_it_is_never_dirty_and_drops_nothing() -> None:
    below = MemoryVolume(SIZE)
    layer = PassthroughLayer(below)
    await layer.write(0, memoryview(b"data"))
    for dirty in (False, True):
        await layer.invalidate(dirty=dirty)
    assert (layer.status().state, layer.status().dirty_bytes) == (LayerState.CLEAN, 0)
    assert below.content.read(0, 4) == b"data"


async def test_write_back_flushes_the_level_below() -> None:
    below = FaultyVolume(MemoryVolume(SIZE))
    layer = PassthroughLayer(below)
    fault = below.inject(Fault(["flush"], count=1))
    with pytest.raises(OSError, match="Input/output error"):
        await layer.writeback()
    await layer.writeback()
    assert fault.hits == 1
