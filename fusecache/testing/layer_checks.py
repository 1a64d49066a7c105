"""The promises of :mod:`fusecache.api.layer` that an open layer keeps.

Owns one check for each. It must not know whether a layer keeps data: a check about dirty data has nothing to do where
a write leaves none. Every check receives a rig of its own, on which no layer has been open.
"""

import json
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from fusecache.api.errors import FusecacheError, LayerDirty
from fusecache.api.layer import Layer, LayerState, LayerStatus
from fusecache.api.volume import DECLINED
from fusecache.testing.faulty import Fault
from fusecache.testing.gated import GatedVolume
from fusecache.testing.harness import (
    AttemptWatch,
    Broken,
    cancelled_at_each_await,
    content,
    expect,
    expect_bytes,
    pattern,
    put,
    settle,
)
from fusecache.testing.requests import CHANGES, FLUSH, READ
from fusecache.testing.rig import LayerRig
from fusecache.testing.volume_checks import random_span

_COUNTS: Final = ("hits", "misses", "writes", "writeback_bytes", "errors")
_RANDOM_STEPS: Final = 60


async def a_layer_has_the_size_of_the_level_below(rig: LayerRig) -> None:
    """When it is opened, and when it is opened again after a resize."""
    async with rig.open() as layer:
        expect(layer.size == rig.bare.size, f"found size {layer.size} over a level of {rig.bare.size}")
        await layer.resize(layer.size + 4096)
        size = layer.size
    async with rig.open() as layer:
        expect(layer.size == size, f"found size {layer.size} after a resize to {size} and a reopen")


async def status_figures_are_sane(rig: LayerRig) -> None:
    """None is negative, counts never fall, and state, dirty bytes and their age agree."""
    async with rig.open() as layer:
        last = _sane(layer.status(), None)
        rng = random.Random(1)
        for step in range(_RANDOM_STEPS):
            await _random_change(layer, rng, step)
            await layer.read(*random_span(layer, rng))
            if not step % 20:
                await layer.writeback()
            last = _sane(layer.status(), last)
        await layer.invalidate(dirty=True)
        _expect_clean(_sane(layer.status(), last))


def _sane(status: LayerStatus, last: LayerStatus | None) -> LayerStatus:
    expect(isinstance(status, LayerStatus), f"status() returned {status!r}")
    for name in (*_COUNTS, "dirty_bytes", "used_bytes", "size_bytes"):
        value = getattr(status, name)
        expect(isinstance(value, int) and value >= 0, f"{name} is {value!r}")
    for name in _COUNTS if last else ():
        expect(getattr(status, name) >= getattr(last, name), f"{name} fell: {last}, then {status}")
    expect(isinstance(status.state, LayerState), f"state is {status.state!r}")
    expect(status.used_bytes <= status.size_bytes, f"more is used than there is: {status}")
    dirty = status.dirty_bytes > 0
    expect(dirty == (status.oldest_dirty_seconds is not None), f"dirty bytes and their age disagree: {status}")
    expect(not dirty or status.state is not LayerState.CLEAN, f"clean with dirty bytes: {status}")
    expect(status.oldest_dirty_seconds is None or status.oldest_dirty_seconds >= 0, f"found an age below 0: {status}")
    json.dumps([dict(replica) for replica in status.replicas])
    return status


def _expect_clean(status: LayerStatus) -> None:
    expect(not status.dirty_bytes and status.state is LayerState.CLEAN, f"expected a clean layer, found {status}")


async def writeback_puts_everything_below_and_flushes_it(rig: LayerRig) -> None:
    """What was dirty is in the level below, which was flushed after; the layer is clean and reads as before."""
    rng = random.Random(2)
    async with rig.open() as layer:
        for rounds in range(3):
            for step in range(_RANDOM_STEPS // 3):
                await _random_change(layer, rng, 100 * rounds + step)
            expected = await content(layer)
            await layer.writeback()
            expect_bytes(await content(rig.bare), expected)
            expect(not rig.below.unflushed, "changes below were not flushed")
            _expect_clean(_sane(layer.status(), None))
            expect_bytes(await content(layer), expected)
        await layer.writeback()
        expect_bytes(await content(rig.bare), expected)


async def data_changed_after_a_write_is_not_written_back(rig: LayerRig) -> None:
    """The layer keeps a copy of what it writes back later."""
    async with rig.open() as layer:
        layer.set_writeback_rate(0)
        data = pattern(layer.size, 3)
        buffer = bytearray(data)
        await layer.write(0, memoryview(buffer))
        buffer[:] = bytes(len(buffer))
        await layer.writeback()
        expect_bytes(await content(rig.bare), data)


async def a_rate_of_zero_pauses_only_the_background(rig: LayerRig) -> None:
    """Dirty data stays where it is until somebody asks; ``writeback`` then runs whatever the rate."""
    async with rig.open() as layer:
        before = await content(rig.bare)
        layer.set_writeback_rate(0)
        expect(layer.writeback_rate == 0, f"writeback_rate is {layer.writeback_rate!r} after it was set to 0")
        data = pattern(layer.size, 4)
        await put(layer, 0, data)
        await settle()
        if layer.status().dirty_bytes:
            expect(await content(rig.bare) == before, "paused, and the level below has changed")
        await layer.writeback()
        expect_bytes(await content(rig.bare), data)
        for rate in (1 << 20, None):
            layer.set_writeback_rate(rate)
            expect(layer.writeback_rate == rate, f"writeback_rate is {layer.writeback_rate!r}, set was {rate!r}")


async def a_failed_writeback_keeps_the_data_dirty(rig: LayerRig) -> None:
    """It raises, the data still reads, and once the level below is well again it is written back."""
    async with rig.open() as layer:
        for seed, operations in enumerate((CHANGES, FLUSH)):
            rig.faults.inject(Fault(operations))
            data = pattern(layer.size, 30 + seed)
            try:
                await put(layer, 0, data)
                kept = layer.status().dirty_bytes > 0
            except (OSError, FusecacheError):
                kept = False
            if kept:
                await _expect_failure(layer)
                expect(layer.status().dirty_bytes > 0, f"clean after a writeback that failed: {layer.status()}")
                expect_bytes(await content(layer), data)
            rig.faults.heal()
            if kept:
                await layer.writeback()
                expect_bytes(await content(rig.bare), data)


async def _expect_failure(layer: Layer) -> None:
    try:
        await layer.writeback()
    except Exception:
        return
    raise Broken("writeback() returned although the level below fails")


async def a_cancelled_writeback_loses_nothing(rig: LayerRig) -> None:
    """Cancelled at any await: all still reads, what is not below is still dirty, and the next one ends the job."""
    async with rig.open() as layer:
        layer.set_writeback_rate(0)
        seeds = iter(range(1000, 2000))
        data = pattern(layer.size, next(seeds))
        await put(layer, 0, data)

        async def look(where: str) -> None:
            nonlocal data
            expect(await content(layer) == data, f"{where}: the layer reads other data")
            clean = not layer.status().dirty_bytes
            expect(not clean or await content(rig.bare) == data, f"{where}: clean, and the level below lacks data")
            data = pattern(layer.size, next(seeds))
            await put(layer, 0, data)

        await cancelled_at_each_await(layer.writeback, look)
        await layer.writeback()
        expect_bytes(await content(rig.bare), data)


async def invalidate_refuses_to_drop_dirty_data_unasked(rig: LayerRig) -> None:
    """LayerDirty, and nothing is dropped."""
    async with rig.open() as layer:
        layer.set_writeback_rate(0)
        data = pattern(layer.size, 7)
        await put(layer, 0, data)
        if layer.status().dirty_bytes:
            try:
                await layer.invalidate(dirty=False)
            except LayerDirty:
                pass
            else:
                raise Broken("invalidate(dirty=False) of a dirty layer did not raise LayerDirty")
            expect(layer.status().dirty_bytes > 0, "the refused invalidate has dropped dirty data")
        expect_bytes(await content(layer), data)


async def invalidating_a_clean_layer_shows_the_level_below(rig: LayerRig) -> None:
    """Nothing is lost, and no copy of earlier content is left."""
    async with rig.open() as layer:
        data = pattern(layer.size, 8)
        await put(layer, 0, data)
        await layer.writeback()
        await content(layer)
        await layer.invalidate(dirty=False)
        expect_bytes(await content(layer), data)
        await put(rig.bare, 0, pattern(layer.size, 9))
        await layer.invalidate(dirty=False)
        expect_bytes(await content(layer), pattern(layer.size, 9))


async def invalidate_with_dirty_drops_everything_for_good(rig: LayerRig) -> None:
    """What the layer hid shows again, the layer is clean and usable, and nothing comes back at a reopen."""
    async with rig.open() as layer:
        await put(layer, 0, pattern(layer.size, 10))
        await layer.writeback()
        layer.set_writeback_rate(0)
        await put(layer, 0, pattern(layer.size, 11))
        await layer.invalidate(dirty=True)
        shown = await content(rig.bare)
        expect_bytes(await content(layer), shown)
        _expect_clean(_sane(layer.status(), None))
    async with rig.open() as layer:
        expect_bytes(await content(layer), shown)
        data = pattern(layer.size, 12)
        await put(layer, 0, data)
        await layer.writeback()
        expect_bytes(await content(layer), data)
        expect_bytes(await content(rig.bare), data)


async def a_flush_reaches_what_the_layer_has_passed_on(rig: LayerRig) -> None:
    """Changes that are below, because the layer does not hold them dirty, are flushed there."""
    async with rig.open() as layer:
        for seed in (13, 14):
            await put(layer, 0, pattern(layer.size, seed))
            passed_on = not layer.status().dirty_bytes
            outcome = DECLINED if seed == 13 else await AttemptWatch().outcome(lambda w: layer.try_flush(w.done))
            if outcome is DECLINED:
                await layer.flush()
            expect(not (passed_on and rig.below.unflushed), "the level below was not flushed")


async def closing_keeps_the_data(rig: LayerRig) -> None:
    """Every acknowledged change, flushed or not, is there when the layer is opened again."""
    rng = random.Random(15)
    expected = await content(rig.bare)
    for rounds in range(4):
        async with rig.open() as layer:
            expect_bytes(await content(layer), expected)
            _sane(layer.status(), None)
            for step in range(_RANDOM_STEPS // 4):
                await _random_change(layer, rng, 1000 * rounds + step)
            if rounds == 2:
                await layer.writeback()
            expected = await content(layer)
    async with rig.open() as layer:
        await layer.writeback()
    expect_bytes(await content(rig.bare), expected)


async def closing_does_not_wait_for_writeback(rig: LayerRig) -> None:
    """With a level below that does not answer, a dirty layer still closes, and its data is there afterwards."""
    async with rig.open() as layer:
        data = pattern(layer.size, 16)
        rig.gate.close()
        await _write_at_gate(layer, data, rig.gate)
    rig.gate.open()
    async with rig.open() as layer:
        expect_bytes(await content(layer), data)
        await layer.writeback()
    expect_bytes(await content(rig.bare), data)


async def _write_at_gate(layer: Layer, data: bytes, gate: GatedVolume) -> None:
    """Write; where that waits for the level below, open the gate."""
    scope = trio.CancelScope()
    written = False

    async def write() -> None:
        nonlocal written
        await put(layer, 0, data)
        written = True
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        with scope:
            # A write-back of the layer's own making is held as well; then the write ends without help.
            await gate.wait_held(1)
            await settle()
        if not written:
            gate.open()


async def closing_leaves_nothing_running_and_the_level_below_open(rig: LayerRig) -> None:
    """No task, no request under way; the level below goes on answering."""
    async with rig.open() as layer:
        await put(layer, 0, pattern(layer.size, 17))
    expect(not rig.left_running, f"found the tasks {rig.left_running} in the nursery")
    await settle()
    expect(not rig.below.in_flight, f"found {rig.below.in_flight} in flight below")
    await content(rig.below)


async def an_error_below_is_never_wrong_data(rig: LayerRig) -> None:
    """A request fails or does right; when the level below is well again, so is the layer."""
    async with rig.open() as layer:
        data = pattern(layer.size, 18)
        await put(layer, 0, data)
        await layer.writeback()
        await layer.invalidate(dirty=False)
        rig.faults.inject(Fault(READ))
        for _ in range(2):
            try:
                found = await content(layer)
            except (OSError, FusecacheError):
                continue
            expect_bytes(found, data)
        rig.faults.heal()
        expect_bytes(await content(layer), data)
        rig.faults.inject(Fault(CHANGES, count=1))
        new = pattern(layer.size, 19)
        try:
            await put(layer, 0, new)
        except (OSError, FusecacheError):
            await put(layer, 0, new)
        expect_bytes(await content(layer), new)


async def requests_go_on_beside_a_writeback(rig: LayerRig) -> None:
    """Reads and writes of any range, one after the other, see a byte array while everything is written back."""
    async with rig.open() as layer:
        rng = random.Random(20)
        expected = bytearray(await content(layer))
        over = trio.Event()

        async def write_back() -> None:
            while not over.is_set():
                await layer.writeback()
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_back)
            for step in range(_RANDOM_STEPS):
                offset, length, new = await _random_change(layer, rng, step)
                expected[offset : offset + length] = new
                expect_bytes(await content(layer), bytes(expected))
            over.set()
        await layer.writeback()
        expect_bytes(await content(rig.bare), bytes(expected))


async def _random_change(layer: Layer, rng: random.Random, seed: int) -> tuple[int, int, bytes]:
    offset, length = random_span(layer, rng)
    kind = rng.choice(("write", "write", "write_zeroes", "discard"))
    if kind == "write":
        new = pattern(length, seed)
        await put(layer, offset, new)
        return offset, length, new
    await (layer.write_zeroes if kind == "write_zeroes" else layer.discard)(offset, length)
    return offset, length, bytes(length)


LAYER_CHECKS: Final[Sequence[Callable[[LayerRig], Awaitable[None]]]] = (
    a_layer_has_the_size_of_the_level_below,
    status_figures_are_sane,
    writeback_puts_everything_below_and_flushes_it,
    data_changed_after_a_write_is_not_written_back,
    a_rate_of_zero_pauses_only_the_background,
    a_failed_writeback_keeps_the_data_dirty,
    a_cancelled_writeback_loses_nothing,
    invalidate_refuses_to_drop_dirty_data_unasked,
    invalidating_a_clean_layer_shows_the_level_below,
    invalidate_with_dirty_drops_everything_for_good,
    a_flush_reaches_what_the_layer_has_passed_on,
    closing_keeps_the_data,
    closing_does_not_wait_for_writeback,
    closing_leaves_nothing_running_and_the_level_below_open,
    an_error_below_is_never_wrong_data,
    requests_go_on_beside_a_writeback,
)
