"""Commands written to control files, from the write to its result."""

import errno
import json
import logging

import pytest
import trio
import trio.testing

from fusecache.api.errors import BadCommand, ImageBusy, LayerDirty, PluginMissing
from fusecache.stack.assemble import MissingLayer
from tests.support.controlled import World


async def test_a_flush_returns_when_all_is_written_back(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.dirty = 100
        layer.gate = trio.Event()
        write = await world.start("images/disk/flush", "all\n")
        await layer.started.wait()
        assert not write.ended.is_set()
        layer.gate.set()
        assert await write.result() == 0
        assert layer.dirty == 0


async def test_a_flush_of_a_layer_leaves_the_others_alone(nursery: trio.Nursery) -> None:
    world = World(nursery, indexes=(0, 1))
    async with world.opened() as (lower, upper):
        lower.dirty = upper.dirty = 100
        assert await world.write("images/disk/flush", "1") == 0
        assert (lower.dirty, upper.dirty) == (100, 0)


async def test_commands_work_on_an_image_that_is_not_open(nursery: trio.Nursery) -> None:
    world = World(nursery)
    for path, text in (("flush", "all"), ("flush", "0"), ("discard", "0"), ("discard", "0 dirty")):
        assert await world.write(f"images/disk/{path}", text) == 0


async def test_a_discard_of_a_dirty_layer_is_refused_and_says_why(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.dirty = 100
        assert await world.write("images/disk/discard", "0\n") == errno.EBUSY
        assert layer.dirty == 100
        assert "found 100 dirty bytes" in await world.read("images/disk/last_error")


@pytest.mark.parametrize("text", ["0 dirty", "0 dirty torn\n"])
async def test_a_dirty_discard_drops_dirty_data(nursery: trio.Nursery, text: str) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.dirty = 100
        assert await world.write("images/disk/discard", text) == 0
        assert layer.dirty == 0


async def test_a_mistake_changes_nothing_and_is_repeated_in_last_error(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.dirty = 100
        for path, text in (("flush", "ALL"), ("flush", "7"), ("discard", "7 dirty"), ("discard", "0 clean")):
            assert await world.write(f"images/disk/{path}", text) == errno.EINVAL
            last_error = await world.read("images/disk/last_error")
            assert text.split()[-1] in last_error or "layer 7" in last_error
            assert last_error.count("\n") == 1
        assert layer.dirty == 100
        assert not layer.started.is_set()


async def test_an_unknown_layer_of_an_image_that_is_not_open_is_a_mistake(nursery: trio.Nursery) -> None:
    world = World(nursery, indexes=(0, 2))
    assert await world.write("images/disk/flush", "1") == errno.EINVAL
    assert await world.read("images/disk/last_error") == "image 'disk': found layer 1, allowed: 0, 2\n"
    assert not world.registry.all_open()


async def test_a_mistake_in_the_flush_of_all_is_an_event(nursery: trio.Nursery) -> None:
    world = World(nursery)
    assert await world.write("flush", "everything") == errno.EINVAL
    assert "command-failed .control/flush: .control/flush: found 'everything'" in await world.read("events")
    assert "found 'everything'" in await world.read("last_error")
    assert await world.write("flush", "all") == 0
    assert await world.read("last_error") == ""


async def test_a_snapshot_is_made_once_of_an_image_that_is_open_or_not(nursery: trio.Nursery) -> None:
    world = World(nursery)
    assert await world.write("images/disk/snapshot", "a/b") == errno.EINVAL
    assert await world.write("images/disk/snapshot", "closed") == 0
    async with world.opened() as (layer,):
        layer.dirty = 100
        assert await world.write("images/disk/snapshot", "open\n") == 0
        assert layer.dirty == 0
        assert await world.write("images/disk/snapshot", "closed") == errno.EEXIST
        assert "snapshot 'closed'" in await world.read("images/disk/last_error")
    assert {info.name for info in await world.backend.snapshots("disk")} == {"disk@closed", "disk@open"}


async def test_a_snapshot_is_not_made_where_write_back_fails(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.failure = OSError(errno.EIO, "the pool is broken")
        assert await world.write("images/disk/snapshot", "before") == errno.EIO
    assert "snapshot before: [Errno 5] the pool is broken" in await world.read("images/disk/last_error")
    assert not await world.backend.snapshots("disk")


async def test_reading_snapshot_tells_how_far_its_write_back_has_come(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.dirty, layer.gate = 100, trio.Event()
        write = await world.start("images/disk/snapshot", "before")
        await layer.started.wait()
        assert (await world.read("images/disk/snapshot")).startswith("100B left")
        assert await world.read("images/disk/flush") == "idle\n"
        layer.gate.set()
        assert await write.result() == 0
    assert await world.read("images/disk/snapshot") == "idle\n"


async def test_a_layer_that_is_left_out_takes_no_commands(nursery: trio.Nursery) -> None:
    world = World(nursery, indexes=(0, 1), missing=(MissingLayer(1, "held", {}, "no module of that name"),))
    async with world.opened():
        for path, text in (("flush", "1"), ("discard", "1"), ("layers/1/writeback_rate", "0")):
            assert await world.write(f"images/disk/{path}", text) == errno.ENODEV
            assert "no module of that name" in await world.read("images/disk/last_error")


async def test_an_image_removed_behind_a_writer_is_enoent(nursery: trio.Nursery) -> None:
    world = World(nursery)
    file = await world.node("images/disk/flush")
    await world.backend.remove("disk")
    ended: list[BaseException | None] = []
    opened = await file.open(1)  # type: ignore[attr-defined]
    opened.write(0, memoryview(b"all"), ended.append)
    await trio.testing.wait_all_tasks_blocked()
    assert isinstance(ended[0], Exception)
    assert getattr(ended[0], "errno", None) == errno.ENOENT


async def test_a_long_command_goes_on_after_its_writer_was_told(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.dirty = 100
        layer.gate = trio.Event()
        begun = trio.current_time()
        assert await world.write("images/disk/flush", "all") == errno.EINPROGRESS
        assert trio.current_time() - begun == pytest.approx(30)
        (command,) = json.loads(await world.read("status.json"))["commands"]
        assert (command["command"], command["image"]) == ("flush all", "disk")
        layer.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert layer.dirty == 0
        assert json.loads(await world.read("status.json"))["commands"] == []


async def test_a_late_failure_is_kept_for_who_asks(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.gate = trio.Event()
        layer.failure = OSError(errno.ENOSPC, "the backend is full")
        assert await world.write("images/disk/flush", "all") == errno.EINPROGRESS
        layer.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        assert "the backend is full" in await world.read("images/disk/last_error")
        assert "command-failed disk/flush: flush all: " in await world.read("events")


async def test_an_unexpected_failure_is_eio_and_logged(nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.failure = ZeroDivisionError("in the plugin")
        with caplog.at_level(logging.ERROR):
            write = await world.start("images/disk/flush", "all")
            await write.ended.wait()
        assert isinstance(write.error, ZeroDivisionError)
        assert any(record.exc_info and record.exc_info[1] is layer.failure for record in caplog.records)


async def test_the_flush_of_all_reaches_every_open_image_and_names_those_that_fail(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("a", "b", "c"))
    async with world.opened("a") as (good,), world.opened("b") as (bad,):
        good.dirty = bad.dirty = 100
        bad.failure = OSError(errno.ENOSPC, "the backend is full")
        assert await world.write("flush", "all\n") == errno.ENOSPC
        assert (good.dirty, bad.dirty) == (0, 100)
        assert "the backend is full" in await world.read("images/b/last_error")
        assert await world.read("images/a/last_error") == ""
        bad.failure = None
        assert await world.write("flush", "all\n") == 0
        assert bad.dirty == 0


async def test_the_flush_of_all_reaches_an_open_image_that_lost_its_name(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.dirty = 100
        del world.backend.images["disk"]
        assert await world.write("flush", "all\n") == 0
        assert layer.dirty == 0


async def test_the_flush_of_all_tells_an_open_image_from_one_that_took_its_name(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.dirty = 100
        del world.backend.images["disk"]
        await world.backend.create("disk", 512)
        assert await world.write("flush", "all\n") == 0
        assert layer.dirty == 0


async def test_equal_commands_each_run(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.gate = trio.Event()
        writes = [await world.start("images/disk/flush", "all") for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        assert len(json.loads(await world.read("status.json"))["commands"]) == 3
        layer.gate.set()
        assert [await write.result() for write in writes] == [0, 0, 0]


async def test_the_end_of_the_mount_answers_who_waits() -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        async with world.opened() as (layer,):
            layer.gate = trio.Event()
            write = await world.start("images/disk/flush", "all")
            await layer.started.wait()
            nursery.cancel_scope.cancel()
    assert await write.result() == errno.EINTR


async def test_a_rate_is_read_back_as_it_was_set(nursery: trio.Nursery) -> None:
    world = World(nursery)
    path = "images/disk/layers/0/writeback_rate"
    async with world.opened() as (layer,):
        assert await world.read(path) == "max\n"
        for text, rate in (("0\n", 0), ("52428800", 50 << 20), ("max", None), ("1.5GiB", 3 << 29)):
            assert await world.write(path, text) == 0
            assert layer.writeback_rate == rate
        assert await world.read(path) == "1536MiB\n"


async def test_a_rate_set_while_the_image_is_closed_holds_when_it_opens(nursery: trio.Nursery) -> None:
    world = World(nursery)
    path = "images/disk/layers/0/writeback_rate"
    assert await world.write(path, "0") == 0
    assert not world.registry.all_open()
    assert await world.read(path) == "0\n"
    async with world.opened() as (layer,):
        assert layer.writeback_rate == 0


async def test_the_configured_rate_shows_while_the_image_is_closed(nursery: trio.Nursery) -> None:
    world = World(nursery, options={"writeback_rate": "10MiB"})
    assert await world.read("images/disk/layers/0/writeback_rate") == "10MiB\n"


async def test_the_flush_of_all_reaches_images_that_an_earlier_mount_left_dirty(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("a", "b", "c"))
    world.leave_dirty("b", 100)
    assert await world.write("flush", "all\n") == 0
    assert world.held_dirty == {}
    assert world.opened_names == ["b"]
    assert await world.read("flush") == "idle\n"


async def test_the_flush_of_all_names_an_image_left_dirty_that_does_not_open(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("a", "b"))
    world.leave_dirty("b", 100)
    world.open_failure = PluginMissing("no module of that name")
    assert await world.write("flush", "all\n") == errno.ENODEV
    assert "command-failed .control/flush: flush all: image 'b': no module" in await world.read("events")
    assert "no module of that name" in await world.read("images/b/last_error")


async def test_the_flush_of_all_passes_over_what_another_mount_has_open_and_nothing_else(
    nursery: trio.Nursery,
) -> None:
    world = World(nursery)
    world.leave_dirty("disk", 100)
    world.open_failure = ImageBusy("it is open")
    assert await world.write("flush", "all\n") == errno.EBUSY
    world.left.elsewhere = True
    assert await world.write("flush", "all\n") == 0


async def test_the_flush_of_all_fails_where_nobody_knows_what_was_left_dirty(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.dirty = 100
        world.left.failure = OSError(errno.ETIMEDOUT, "the backend is away")
        assert await world.write("flush", "all\n") == errno.ETIMEDOUT
        assert layer.dirty == 0


async def test_a_discard_does_not_open_an_image(nursery: trio.Nursery) -> None:
    world = World(nursery, indexes=(0, 1))
    for text in ("0", "1 dirty\n", "7 dirty torn"):
        assert await world.write("images/disk/discard", text) == 0
    assert world.dropped == [("disk", 0, False, False), ("disk", 1, True, False), ("disk", 7, True, True)]
    assert world.opened_names == []


async def test_a_discard_that_is_refused_says_why(nursery: trio.Nursery) -> None:
    world = World(nursery)
    for failure, number in (
        (LayerDirty("layer 0 is dirty"), errno.EBUSY),
        (BadCommand("found layer 7, allowed: 0"), errno.EINVAL),
    ):
        world.drop_failure = failure
        assert await world.write("images/disk/discard", "7") == number
        assert str(failure) in await world.read("images/disk/last_error")
    refused, failed = [line.split(" ")[1] for line in (await world.read("events")).splitlines()]
    assert (refused, failed) == ("command-refused", "command-failed")


async def test_a_flush_knows_the_layers_of_the_stack_that_was_left_dirty(nursery: trio.Nursery) -> None:
    world = World(nursery, indexes=(0, 3))
    world.leave_dirty("disk", 100, index=3)
    assert await world.write("images/disk/flush", "0") == errno.EINVAL
    assert await world.write("images/disk/flush", "3") == 0
