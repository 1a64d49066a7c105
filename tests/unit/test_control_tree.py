"""The files of the control directory: which there are, whose they are, how they behave."""

import errno
import logging
import os
import stat
from collections.abc import Iterator

import pytest
import trio

from fusecache.api.errors import ImageNotFound, NotPermitted
from fusecache.api.layer import LayerStatus
from fusecache.control.files import Ownership
from fusecache.images.node import DirectoryNode, FileNode
from tests.support.controlled import OWNER, HeldLayer, World

COMMANDS = {
    "flush",
    "images/disk/flush",
    "images/disk/discard",
    "images/disk/snapshot",
    "images/disk/layers/0/writeback_rate",
}
REPORTS = {
    "status",
    "status.json",
    "metrics",
    "events",
    "last_error",
    "images/disk/status",
    "images/disk/status.json",
    "images/disk/last_error",
    "images/disk/layers/0/plugin",
    "images/disk/layers/0/state",
    "images/disk/layers/0/dirty_bytes",
    "images/disk/layers/0/size_bytes",
    "images/disk/layers/0/config",
}


async def walk(directory: DirectoryNode, path: str = "") -> dict[str, FileNode | DirectoryNode]:
    found: dict[str, FileNode | DirectoryNode] = {}
    for name, node in await directory.entries():
        assert isinstance(node, FileNode | DirectoryNode)
        assert (await directory.lookup(name)).inode == node.inode
        found[path + name] = node
        if isinstance(node, DirectoryNode):
            found |= await walk(node, f"{path}{name}/")
    return found


async def test_the_tree_is_the_documented_one(nursery: trio.Nursery) -> None:
    found = await walk(World(nursery).tree.root)
    assert {path for path, node in found.items() if isinstance(node, FileNode)} == COMMANDS | REPORTS
    assert {path for path, node in found.items() if isinstance(node, DirectoryNode)} == {
        "images",
        "images/disk",
        "images/disk/layers",
        "images/disk/layers/0",
    }


async def test_entries_are_sorted(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("b", "c", "a"), indexes=(0, 1))
    for path in ("", "images", "images/b", "images/b/layers", "images/b/layers/1"):
        node = await world.node(path)
        assert isinstance(node, DirectoryNode)
        names = [name for name, _ in await node.entries()]
        assert names == sorted(names)


async def test_commands_are_the_owners_and_reports_are_everybodys(nursery: trio.Nursery) -> None:
    for path, node in (await walk(World(nursery).tree.root)).items():
        attributes = await node.attributes()
        wanted = stat.S_IFDIR | 0o555 if isinstance(node, DirectoryNode) else stat.S_IFREG | 0o444
        if path in COMMANDS:
            wanted = stat.S_IFREG | 0o600
        assert attributes.mode == wanted, path
        assert (attributes.uid, attributes.gid, attributes.size) == (OWNER.uid, OWNER.gid, 0)
        assert attributes.inode == node.inode


async def test_the_control_group_may_use_commands(nursery: trio.Nursery) -> None:
    world = World(nursery, owner=Ownership(uid=1000, gid=100, control_gid=6))
    for path, node in (await walk(world.tree.root)).items():
        attributes = await node.attributes()
        if path in COMMANDS:
            assert (stat.S_IMODE(attributes.mode), attributes.gid) == (0o660, 6)
        else:
            assert attributes.gid == 100


async def test_every_file_has_its_own_inode_and_commands_leave_room_for_lookups(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("disk", "other"), indexes=(0, 1))
    found = await walk(world.tree.root)
    assert len({node.inode >> 16 if path in COMMANDS else node.inode for path, node in found.items()}) == len(found)
    for path in COMMANDS:
        node = found[path]
        assert isinstance(node, FileNode)
        assert node.fresh_lookups
        assert node.inode & 0xFFFF == 0
        assert (await node.attributes()).timeout == 0


async def test_inodes_outlive_a_rename_of_the_image(nursery: trio.Nursery) -> None:
    world = World(nursery)
    before = await walk(world.tree.root)
    await world.registry.rename("disk", "other")
    after = await walk(world.tree.root)
    for path, node in before.items():
        assert after[path.replace("images/disk", "images/other")].inode == node.inode


async def test_an_image_shows_as_soon_as_it_is_there_and_no_longer(nursery: trio.Nursery) -> None:
    world = World(nursery)
    await world.backend.create("new", 512)
    node = await world.node("images/new")
    assert (await node.attributes()).timeout == 0
    await world.backend.remove("new")
    with pytest.raises(ImageNotFound):
        await world.node("images/new")


@pytest.mark.parametrize("path", ["nothing", "images/nothing", "images/disk/nothing", "images/disk/layers/1", ".."])
async def test_what_is_not_there_is_enoent(nursery: trio.Nursery, path: str) -> None:
    with pytest.raises(ImageNotFound):
        await World(nursery).node(path)


async def test_layers_are_the_open_stacks_when_it_is_open(nursery: trio.Nursery) -> None:
    world = World(nursery, options={"media": "ssd", "size": 20, "deep": True})
    path = "images/disk/layers/0"
    config = 'index = 0\nplugin = "held"\nmedia = "ssd"\nsize = 20\ndeep = true\n'
    assert await world.read(f"{path}/config") == config
    assert await world.read(f"{path}/size_bytes") == "0\n"
    async with world.opened() as (layer,):
        layer.dirty = 100
        assert await world.read(f"{path}/plugin") == "held\n"
        assert await world.read(f"{path}/state") == "dirty\n"
        assert await world.read(f"{path}/dirty_bytes") == "100\n"
        assert await world.read(f"{path}/size_bytes") == "1048576\n"
        assert await world.read(f"{path}/config") == config


async def test_a_report_stays_what_it_was_when_it_was_opened(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.dirty = 123456
        file = await world.open("images/disk/layers/0/dirty_bytes")
        layer.dirty = 7
        assert file.direct
        assert file.end == len("123456\n")
        assert file.read(0, 3, lambda *_: None) == (b"123",)
        assert file.read(3, 4, lambda *_: None) == (b"456\n",)
        file.close()


async def test_reports_are_not_written_and_truncation_has_no_effect(nursery: trio.Nursery) -> None:
    world = World(nursery)
    for path in COMMANDS | REPORTS:
        node, file = await world.node(path), await world.open(path)
        await node.resize(0)
        await file.resize(0)
    with pytest.raises(NotPermitted):
        (await world.open("status")).write(0, memoryview(b"x"), lambda _: None)


async def test_commands_take_writes_at_any_offset(nursery: trio.Nursery) -> None:
    file = await World(nursery).open("images/disk/flush", os.O_RDWR)
    assert file.interruptible_writes
    assert file.clip(file.end, 4) == 4
    assert file.clip(1 << 40, 4) == 4


async def test_a_report_that_fails_is_eio_and_logged_and_nothing_else(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> Iterator[str]:
        yield ""
        raise ZeroDivisionError("in the metrics")

    world = World(nursery, metrics=fail)
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="report failed") as failed:
        await world.open("metrics")
    assert failed.value.errno == errno.EIO
    assert "ZeroDivisionError: in the metrics" in caplog.text
    assert "disk" in await world.read("status")


async def test_a_layer_that_cannot_tell_its_status_is_failed_and_takes_commands(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(layer: HeldLayer) -> LayerStatus:
        raise ZeroDivisionError("in the plugin")

    world = World(nursery)
    async with world.opened():
        monkeypatch.setattr(HeldLayer, "status", fail)
        with caplog.at_level(logging.ERROR):
            assert await world.read("images/disk/layers/0/state") == "failed\n"
        assert "ZeroDivisionError: in the plugin" in caplog.text
        assert await world.write("images/disk/layers/0/writeback_rate", "0") == 0
        assert await world.write("flush", "all") == 0


async def test_events_are_read_a_line_each(nursery: trio.Nursery) -> None:
    world = World(nursery)
    world.events.emit("mounted", "one\ntwo")
    world.events.emit("ended", "three")
    first, second = (await world.read("events")).splitlines()
    assert first.endswith(" mounted one\\ntwo")
    assert second.endswith(" ended three")


async def test_nothing_is_created_removed_or_renamed(nursery: trio.Nursery) -> None:
    world = World(nursery)
    for path in ("", "images", "images/disk", "images/disk/layers"):
        node = await world.node(path)
        assert isinstance(node, DirectoryNode)
        with pytest.raises(NotPermitted):
            await node.create("new", os.O_RDWR)
        with pytest.raises(NotPermitted):
            await node.unlink("flush")
        with pytest.raises(NotPermitted):
            await node.rename("flush", "other")
