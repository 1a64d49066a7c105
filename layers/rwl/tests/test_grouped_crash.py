"""A process that dies at any step of a group leaves what the table in ``fusecache_rwl.groups`` promises."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import trio

from fusecache_rwl.layer import RwlLayer
from fusecache_rwl.ledger import Group
from layers.rwl.tests.support.recorded_image import is_torn
from layers.rwl.tests.support.recording import legal_states
from layers.rwl.tests.support.run import content
from layers.rwl.tests.support.world import LayerKind, Open, World, mark, opened

BLOCK = 4096
BLOCKS = 4
RING = 128 << 10
GENERATIONS = 9
PATIENCE = 30.0
MEDIA = ("ssd", "pmem")


def made(media: str) -> World:
    """Return an image of zeroes under one layer that writes back only when asked, in groups of four blocks."""
    return World.new(BLOCKS * BLOCK, [LayerKind(media, RING, paused=True, order="grouped")])  # type: ignore[arg-type]


def states() -> Sequence[bytes]:
    """Return the image after each generation, which overwrite each other."""
    found = [bytes(BLOCKS * BLOCK)]
    for number in range(1, GENERATIONS + 1):
        at = number * 3 % BLOCKS * BLOCK
        found.append(found[-1][:at] + bytes([number]) * BLOCK + found[-1][at + BLOCK :])
    return found


STATES = states()


async def put(layer: RwlLayer, number: int) -> None:
    """Write the generation of that number."""
    await layer.write(number * 3 % BLOCKS * BLOCK, memoryview(bytes([number]) * BLOCK))
    await layer.flush()


def layer_of(stack: Open) -> RwlLayer:
    """Return the only layer."""
    layer = stack.top
    assert isinstance(layer, RwlLayer)
    return layer


async def work(world: World, die_in: int) -> int | None:
    """Write all generations, then write back and die after so many events.

    Returns:
        the instant at which the write-back began; None where it ended.
    """
    async with opened(world) as stack:
        for number in range(1, GENERATIONS + 1):
            await put(layer_of(stack), number)
        begun = world.timeline.now
        world.timeline.die_at = begun + die_in
        await layer_of(stack).writeback()
        return None if stack.alive else begun


@dataclass
class Found:
    """What a process found when it opened the stack.

    Attributes:
        group: the one in flight.
        written_back: the last generation that is below; the last of all where the layer is not marked as dirty.
    """

    group: Group | None
    written_back: int


async def settled(world: World, die_in: int | None = None) -> Found:
    """Open the stack, write more at once, and stay until the group in flight is below; or die before."""
    async with opened(world, die_in=die_in) as stack:
        layer = layer_of(stack)
        pool = layer._log
        written_back = pool.superblock.written_back if stack.marks[0].is_set else GENERATIONS
        found = Found(pool.ledger.group, written_back)
        assert layer.torn == (found.group is not None and stack.marks[0].is_torn)
        # A process before this one may have died in between the two writes below.
        assert await content(layer) in (STATES[-1], b"\xff" * BLOCK + STATES[-1][BLOCK:])
        await layer.write(0, memoryview(b"\xff" * BLOCK))
        await layer.flush()
        while stack.alive and (pool.ledger.group is not None or is_torn(world.devices[mark(0)].content)):
            await trio.lowlevel.checkpoint()
        await layer.write(0, memoryview(STATES[-1][:BLOCK]))
        await layer.flush()
        return found


async def check(world: World, die_in: int | None = None) -> Found:
    """Recover, dying on the way once if told so; exactly the group in flight goes below, and nothing else."""
    with trio.fail_after(PATIENCE):
        if die_in is not None:
            await settled(world, die_in)
        before, marked = world.image, is_torn(world.devices[mark(0)].content)
        found = await settled(world)
    assert not is_torn(world.devices[mark(0)].content)
    if found.group is None:
        assert world.image == before
        # The last generation goes alone, so that some of it may be there.
        last = found.written_back + (found.written_back == GENERATIONS - 1)
        assert all(byte in both for byte, *both in zip(before, STATES[found.written_back], STATES[last], strict=True))
    else:
        assert world.image == STATES[found.group.last]
        assert marked or before == STATES[found.group.first - 1]
        assert found.written_back < found.group.first
    return found


async def finish(world: World) -> None:
    """Write everything back."""
    async with opened(world) as stack:
        await layer_of(stack).writeback()
    assert world.image == STATES[-1]


@pytest.mark.parametrize("media", MEDIA)
def test_wherever_a_process_dies_the_next_one_carries_out_exactly_the_group_in_flight(media: str) -> None:
    groups = set()
    for die_in in range(1000):
        world = made(media)
        if trio.run(work, world, die_in) is None:
            break
        found = trio.run(check, world)
        groups.add(found.group)
        if not die_in % 5:
            trio.run(finish, world)
    else:
        raise AssertionError("the write-back never ends")
    assert groups == {None, Group(1, 4), Group(5, 8)}


@pytest.mark.parametrize("media", MEDIA)
def test_dying_while_the_group_is_carried_out_again_changes_nothing(media: str) -> None:
    world = next(world for die_in in range(1000) if in_the_second_group(world := made(media), die_in))
    contents = {name: bytes(device.content) for name, device in world.devices.items()}
    for die_in in range(40):
        assert trio.run(check, world.after(contents), die_in).group in (None, Group(5, 8))


def in_the_second_group(world: World, die_in: int) -> bool:
    """Write back and die after so many events; say whether that was in the middle of the second group."""
    trio.run(work, world, die_in)
    return is_torn(world.devices[mark(0)].content) and world.image not in STATES and world.image[:1] == b"\x08"


@pytest.mark.parametrize("media", MEDIA)
def test_after_a_loss_of_power_exactly_the_group_in_flight_goes_below(media: str, seed: int) -> None:
    world = made(media)
    begun = trio.run(work, world, next(n for n in range(1000) if trio.run(work, made(media), n) is None) - 1)
    assert begun is not None
    groups = set()
    for state in legal_states(world.timeline, random.Random(seed), 60, since=begun):
        groups.add(trio.run(check, world.after(state.contents)).group)
    assert groups == {None, Group(1, 4), Group(5, 8)}
