"""The promises of :class:`fusecache.api.DirtyMark` that a layer keeps.

Owns one check for each. It must not know whether a layer keeps data. Every check receives a rig of its own, on which no
layer has been open.
"""

import contextlib
import errno
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

import trio

from fusecache.api.errors import FusecacheError
from fusecache.api.layer import Layer
from fusecache.api.volume import DECLINED
from fusecache.testing.harness import AttemptWatch, Broken, content, expect, expect_bytes, pattern, put, settle
from fusecache.testing.rig import LayerRig

Change: TypeAlias = Callable[[Layer, bytes], Awaitable[None]]


async def _attempt_to_write(layer: Layer, data: bytes) -> None:
    view = memoryview(data)
    if await AttemptWatch().outcome(lambda watch: layer.try_write(0, view, watch.done)) is DECLINED:
        await layer.write(0, view)


async def _attempt_to_zero(layer: Layer, data: bytes) -> None:
    length = len(data)
    if await AttemptWatch().outcome(lambda watch: layer.try_write_zeroes(0, length, watch.done)) is DECLINED:
        await layer.write_zeroes(0, length)


async def _attempt_to_discard(layer: Layer, data: bytes) -> None:
    length = len(data)
    if await AttemptWatch().outcome(lambda watch: layer.try_discard(0, length, watch.done)) is DECLINED:
        await layer.discard(0, length)


_CHANGES: Final[Mapping[str, Change]] = {
    "write": lambda layer, data: put(layer, 0, data),
    "an attempt to write": _attempt_to_write,
    "write_zeroes": lambda layer, data: layer.write_zeroes(0, len(data)),
    "an attempt to write zeroes": _attempt_to_zero,
    "discard": lambda layer, data: layer.discard(0, len(data)),
    "an attempt to discard": _attempt_to_discard,
}


async def dirty_data_is_marked_before_it_is_acknowledged(rig: LayerRig) -> None:
    """A change that the layer keeps does not end before the mark is set; a clean layer closes with its mark cleared."""
    for seed, (name, change) in enumerate(_CHANGES.items()):
        async with rig.open() as layer:
            layer.set_writeback_rate(0)
            await _expect_marked(rig, layer, name, partial(change, layer, pattern(layer.size, seed)))
            await layer.writeback()
        expect(not rig.mark.is_set, f"{name}: closed with everything written back, and the mark is still set")


async def _expect_marked(rig: LayerRig, layer: Layer, name: str, change: Callable[[], Awaitable[None]]) -> None:
    ended = False

    async def run() -> None:
        nonlocal ended
        await change()
        ended = True

    async with trio.open_nursery() as nursery:
        with rig.mark.held():
            nursery.start_soon(run)
            await settle()
            early = ended and layer.status().dirty_bytes > 0 and not rig.mark.is_set
    expect(not early, f"{name} was acknowledged before the mark was set")
    dirty = layer.status().dirty_bytes > 0
    expect(rig.mark.is_set or not dirty, f"{name}: dirty, and the mark is not set")
    expect(rig.plugin.writes_back or not dirty, f"{name}: dirty, and the plugin does not say writes_back")


async def a_mark_that_cannot_be_set_leaves_the_layer_clean(rig: LayerRig) -> None:
    """A change fails, or goes to the level below; once the mark can be set again, so can be changed."""
    async with rig.open() as layer:
        rig.mark.failure = OSError(errno.EIO, "the record cannot be written")
        for seed, (name, change) in enumerate(_CHANGES.items()):
            with contextlib.suppress(OSError, FusecacheError):
                await change(layer, pattern(layer.size, seed))
            expect(not layer.status().dirty_bytes, f"{name}: dirty without a mark")
        rig.mark.failure = None
        data = pattern(layer.size, 40)
        await put(layer, 0, data)
        expect_bytes(await content(layer), data)


async def the_mark_is_cleared_over_a_clean_layer_only(rig: LayerRig) -> None:
    """Not before all is durable below; and it stays when a dirty layer closes, until all is below."""
    faults: list[str] = []
    for seed in range(3):
        async with rig.open() as layer:
            rig.mark.on_clear = partial(_note_clearing, rig, layer, faults)
            data = pattern(layer.size, seed)
            await put(layer, 0, data)
            if seed == 1:
                await layer.writeback()
                await put(layer, 0, data)
            layer.set_writeback_rate(0)
            dirty = layer.status().dirty_bytes > 0
        expect(rig.mark.is_set or not dirty or await content(rig.bare) == data, "closed dirty, and the mark is not set")
    async with rig.open() as layer:
        rig.mark.on_clear = partial(_note_clearing, rig, layer, faults)
        await layer.writeback()
    if faults:
        raise Broken(faults[0])
    expect(not rig.mark.is_set, "closed with everything written back, and the mark is still set")


def _note_clearing(rig: LayerRig, layer: Layer, faults: list[str]) -> None:
    if layer.status().dirty_bytes:
        faults.append(f"the mark was cleared over a dirty layer: {layer.status()}")
    if rig.below.unflushed:
        faults.append("the mark was cleared while changes below were not flushed")


async def what_no_mark_vouches_for_is_not_used(rig: LayerRig) -> None:
    """Opened with its mark not set, a layer drops what its files hold: others may have changed the image since."""
    async with rig.open() as layer:
        layer.set_writeback_rate(0)
        await put(layer, 0, pattern(layer.size, 1))
        await layer.flush()
    others = pattern(rig.bare.size, 2)
    rig.mark.is_set = False
    await put(rig.bare, 0, others)
    await rig.bare.flush()
    async with rig.open() as layer:
        expect(not layer.status().dirty_bytes, "dirty after it was opened with its mark not set")
        expect_bytes(await content(layer), others)
        await layer.writeback()
        expect_bytes(await content(rig.bare), others)


DIRTY_CHECKS: Final[Sequence[Callable[[LayerRig], Awaitable[None]]]] = (
    dirty_data_is_marked_before_it_is_acknowledged,
    a_mark_that_cannot_be_set_leaves_the_layer_clean,
    the_mark_is_cleared_over_a_clean_layer_only,
    what_no_mark_vouches_for_is_not_used,
)
