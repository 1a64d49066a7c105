"""What last_error tells, and until when."""

import errno

import trio

from tests.support.controlled import World


async def test_a_success_of_the_same_control_file_ends_a_last_error(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.failure = OSError(errno.EIO, "the pool is broken")
        assert await world.write("images/disk/discard", "7") == errno.EINVAL
        assert await world.write("images/disk/flush", "all") == errno.EIO
        assert await world.write("images/disk/layers/0/writeback_rate", "max") == 0
        assert "the pool is broken" in await world.read("images/disk/last_error")
        layer.failure = None
        assert await world.write("images/disk/flush", "all") == 0
        assert "found layer 7" in await world.read("images/disk/last_error")
        assert await world.write("images/disk/discard", "0") == 0
        assert await world.read("images/disk/last_error") == ""


async def test_a_flush_of_all_ends_what_was_told_of_flushes_of_each_image(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.failure = OSError(errno.EIO, "the pool is broken")
        assert await world.write("flush", "all") == errno.EIO
        assert "image 'disk': [Errno 5] the pool is broken" in await world.read("last_error")
        assert "the pool is broken" in await world.read("images/disk/last_error")
        layer.failure = None
        assert await world.write("flush", "all") == 0
        assert await world.read("last_error") == await world.read("images/disk/last_error") == ""


async def test_an_open_that_succeeds_ends_what_was_told_of_one_that_failed(nursery: trio.Nursery) -> None:
    world = World(nursery)
    info = await world.backend.lookup("disk")
    world.tree.runner.record_open_failure(info, OSError(errno.EIO, "the pool is broken"))
    assert await world.read("images/disk/last_error") == "open: [Errno 5] the pool is broken\n"
    world.tree.runner.record_opened(info)
    assert await world.read("images/disk/last_error") == ""
