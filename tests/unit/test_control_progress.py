"""How far a write-back has come, as people read it."""

import re

import trio
import trio.testing

from tests.support.controlled import World


async def test_reading_flush_tells_how_far_it_has_come(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    world = World(nursery, names=("disk", "other"))
    async with world.opened() as (layer,), world.opened("other"):
        layer.dirty, layer.moved = 1000, 5000
        layer.gate = trio.Event()
        assert await world.read("images/disk/flush") == "idle\n"
        write = await world.start("images/disk/flush", "all")
        await layer.started.wait()
        assert await world.read("images/disk/flush") == "1000B left, 0/s, ? s left\n"
        mock_clock.jump(2)
        layer.dirty, layer.moved = 700, 5300
        for path in ("images/disk/flush", "flush"):
            assert await world.read(path) == "700B left, 150B/s, 5 s left\n"
        assert await world.read("images/other/flush") == "idle\n"
        layer.gate.set()
        await write.result()
        assert await world.read("flush") == "idle\n"


async def test_what_does_not_move_has_no_rate(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    world = World(nursery, names=("disk", "other"))
    async with world.opened() as (layer,), world.opened("other") as (other,):
        layer.dirty = other.dirty = 1 << 20
        layer.gate = other.gate = trio.Event()
        write = await world.start("flush", "all")
        await trio.sleep(3.5)
        layer.dirty, layer.moved = 1 << 19, 1 << 19
        await trio.sleep(2)
        # Nobody has asked meanwhile.
        assert re.fullmatch(r"512KiB left, 9\d\.\dKiB/s, 6 s left\n", await world.read("images/disk/flush"))
        assert await world.read("images/other/flush") == "1MiB left, nothing has moved for 6 s\n"
        await trio.sleep(19)
        for path, left in (("images/disk/flush", "512KiB"), ("flush", "1.5MiB")):
            assert await world.read(path) == f"{left} left, nothing has moved for 20 s\n"
        layer.dirty, layer.moved = 1 << 18, 3 << 18
        await trio.sleep(1)
        # A rate of late, not since the command began.
        assert (await world.read("images/disk/flush")).startswith("256KiB left, 2")
        layer.gate.set()
        assert await write.result() == 0
    assert await world.read("flush") == "idle\n"
