"""Losses of power that are too rare to be met at random."""

from collections.abc import Sequence

import trio

from fusecache_rwl.format import HEADER_SIZE, RING_OFFSET
from layers.rwl.tests.support.run import Run, content_after_crash
from layers.rwl.tests.support.steps import UNIT, Ask
from layers.rwl.tests.support.timeline import SECTOR
from layers.rwl.tests.support.world import LayerKind, World, pool

DATA = 40 * UNIT
IN_A_SECTOR = SECTOR // HEADER_SIZE
"""Records without data that fill a sector."""


def zero(first: int, count: int) -> Sequence[Ask]:
    """Zero *count* blocks from *first* on, each with a record of its own."""
    return [Ask("write_zeroes", block * UNIT, UNIT, True) for block in range(first, first + count)]


def lost(world: World, at: int, before: bytes) -> World:
    """Return *world* after a loss of power that took all that was stored in the pool's sector at *at*."""
    contents = {name: bytes(device.content) for name, device in world.devices.items()}
    found = contents[pool(0)]
    contents[pool(0)] = found[:at] + before[at : at + SECTOR] + found[at + SECTOR :]
    return world.after(contents)


def test_a_valid_record_behind_a_torn_one_is_not_taken_when_another_fills_the_place_before_it() -> None:
    """Torn 10, valid 11 that nobody was told of, then a new 10: the old 11 must not come back."""
    world = World.new(DATA, [LayerKind("ssd", 128 << 10, "flush", paused=True)])
    empty = world.timeline.initial[pool(0)]
    # With these records and the sync point the log ends at the end of a sector.
    position = HEADER_SIZE + DATA + HEADER_SIZE
    filling = -position % SECTOR // HEADER_SIZE
    torn = RING_OFFSET + position + filling * HEADER_SIZE
    begun = [Ask("write", 0, DATA, True), *zero(0, filling), Ask("flush", 0, UNIT, True)]
    trio.run(Run(world).play, [*begun, *zero(8, 2 * IN_A_SECTOR)])
    world = lost(world, torn, empty)
    behind = world.timeline.initial[pool(0)]
    assert any(behind[torn + SECTOR : torn + 2 * SECTOR]), "there is no old record behind the torn ones"

    shown = trio.run(content_after_crash, lost(world, torn, behind))
    run = Run(world, shown)
    trio.run(run.play, zero(32, IN_A_SECTOR))
    # The sector was stored; the zeroes to the end of its page were not.
    found = trio.run(content_after_crash, lost(world, torn + SECTOR, behind))
    run.history.expect_prefix(found, world.timeline.now, flushed_only=True)
    assert not any(found[32 * UNIT :]), "the new records are not there, so nothing was tried"
