"""The status, as JSON and as text."""

import json
import logging
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from fusecache.api.backend import ImageInfo
from fusecache.api.errors import FusecacheError, ImageNotFound
from fusecache.api.layer import LayerState, LayerStatus
from fusecache.cli.status import image_row
from fusecache.control.view import LayerView, worst_state
from fusecache.stack.assemble import MissingLayer
from tests.support.controlled import World

LAYER_KEYS = {
    "index",
    "plugin",
    "state",
    "dirty_bytes",
    "used_bytes",
    "size_bytes",
    "oldest_dirty_seconds",
    "hits",
    "misses",
    "writes",
    "writeback_bytes",
    "errors",
    "replicas",
}


async def test_the_keys_are_the_documented_ones(nursery: trio.Nursery) -> None:
    status = json.loads(await World(nursery).read("status.json"))
    assert status.keys() == {"version", "pid", "mountpoint", "backend", "complete", "images", "commands"}
    assert (status["version"], status["pid"], status["mountpoint"]) == ("1.2.3", 42, "/mnt/images")
    (image,) = status["images"]
    assert image.keys() == {"name", "size", "open", "state", "note", "layers"}
    (layer,) = image["layers"]
    assert layer.keys() == LAYER_KEYS


async def test_open_and_closed_images_are_shown(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("b", "a"), indexes=(0, 1))
    async with world.opened("b") as (_, upper):
        upper.dirty, upper.moved = 100, 30
        closed, opened = json.loads(await world.read("status.json"))["images"]
    assert (closed["name"], closed["open"], closed["state"], closed["size"]) == ("a", False, "clean", 4096)
    assert (opened["name"], opened["open"], opened["state"]) == ("b", True, "dirty")
    assert [layer["index"] for layer in opened["layers"]] == [0, 1]
    assert (opened["layers"][1]["dirty_bytes"], opened["layers"][1]["writeback_bytes"]) == (100, 30)


async def test_an_images_own_object_is_the_same(nursery: trio.Nursery) -> None:
    world = World(nursery)

    async def check() -> None:
        own, all_images = await world.read("images/disk/status.json"), await world.read("status.json")
        assert [json.loads(own)] == json.loads(all_images)["images"]

    await check()
    async with world.opened() as (layer,):
        layer.dirty = 100
        await check()


async def test_requests_that_fail_at_a_layer_are_its_errors(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):

        async def fail(offset: int, length: int) -> None:
            raise FusecacheError("no")

        layer.write_zeroes = fail  # type: ignore[method-assign]
        image = world.registry.opened("disk")
        assert image is not None
        with pytest.raises(FusecacheError):
            await image.top.write_zeroes(0, 512)
        assert json.loads(await world.read("images/disk/status.json"))["layers"][0]["errors"] == 1


async def test_a_layer_that_is_left_out_is_missing(nursery: trio.Nursery) -> None:
    world = World(nursery, indexes=(0, 1), missing=(MissingLayer(1, "held", {}, "no module"),))
    async with world.opened():
        image = json.loads(await world.read("images/disk/status.json"))
    assert image["state"] == "missing"
    assert [layer["state"] for layer in image["layers"]] == ["clean", "missing"]


async def test_a_closed_image_that_is_gone_has_no_status(nursery: trio.Nursery) -> None:
    world = World(nursery)
    node = await world.node("images/disk/status.json")
    await world.backend.remove("disk")
    with pytest.raises(ImageNotFound):
        await node.open(0)  # type: ignore[attr-defined]


async def test_a_backend_that_hangs_delays_the_status_by_a_second(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(nursery, names=("a", "b"))
    listings = 0

    async def hang() -> Sequence[ImageInfo]:
        nonlocal listings
        listings += 1
        # Beyond the reach of a cancellation, as a thread in a system call is.
        with trio.CancelScope(shield=True):
            await released.wait()
        return ()

    async with world.opened("a"):
        released = trio.Event()
        monkeypatch.setattr(world.backend, "list", hang)
        begun = trio.current_time()
        for _ in range(3):
            status = json.loads(await world.read("status.json"))
            assert [image["name"] for image in status["images"]] == ["a"]
            assert status["complete"] is False
        assert trio.current_time() - begun == pytest.approx(3)
        assert listings == 1
        assert "does not answer" in await world.read("status")
        monkeypatch.undo()
        released.set()
        status = json.loads(await world.read("status.json"))
        assert [image["name"] for image in status["images"]] == ["a", "b"]
        assert status["complete"] is True


async def test_a_backend_that_fails_leaves_the_last_known_images(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> Sequence[ImageInfo]:
        raise OSError("the backend is away")

    world = World(nursery)
    await world.read("status.json")
    monkeypatch.setattr(world.backend, "list", fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            status = json.loads(await world.read("status.json"))
            assert [image["name"] for image in status["images"]] == ["disk"]
            assert status["complete"] is False
    # However often somebody asks.
    assert caplog.messages == ["the images cannot be listed: the backend is away"]


async def test_an_image_created_during_a_listing_is_in_the_next_status(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(nursery)
    listed = await world.registry.list()
    begun, released = trio.Event(), trio.Event()

    async def earlier() -> Sequence[ImageInfo]:
        begun.set()
        await released.wait()
        monkeypatch.undo()
        return listed

    monkeypatch.setattr(world.backend, "list", earlier)
    nursery.start_soon(world.read, "status.json")
    await begun.wait()
    await world.backend.create("new", 512)
    names: list[str] = []

    async def read() -> None:
        names.extend(image["name"] for image in json.loads(await world.read("status.json"))["images"])

    async with trio.open_nursery() as readers:
        readers.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        released.set()
    assert names == ["disk", "new"]


async def test_the_text_shows_images_and_their_layers_in_columns(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("disk", "with\nlines"), indexes=(0, 1))
    async with world.opened() as (_, upper):
        upper.dirty = 3 << 20
        text = await world.read("status")
        one = await world.read("images/disk/status")
    lines = text.splitlines()
    assert lines[:4] == ["version     1.2.3", "pid         42", "mountpoint  /mnt/images", "backend     memory"]
    head = next(line for line in lines if line.startswith("IMAGE"))
    (first, second) = lines[lines.index(head) + 1 :][:2]
    assert first.split()[:7] == ["disk", "4KiB", "yes", "dirty", "0", "held", "clean"]
    assert second.split()[:4] == ["1", "held", "dirty", "3MiB"]
    assert second.index("held") == first.index("held") == head.index("PLUGIN")
    assert any(line.startswith("with\\nlines") for line in lines)
    assert one.splitlines()[0].split() == head.split()


async def test_what_a_layer_has_to_say_is_in_the_images_note(nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened() as (layer,):
        layer.status = lambda: LayerStatus(note="the log is full")  # type: ignore[method-assign]
        assert json.loads(await world.read("images/disk/status.json"))["note"] == "layer 0: the log is full"
        assert "disk: layer 0: the log is full\n" in await world.read("status")


async def test_names_that_are_not_utf8_are_shown(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("bad\udc80",))
    assert "bad\\udc80" in await world.read("status")
    assert json.loads(await world.read("status.json"))["images"][0]["name"] == "bad\udc80"


def test_an_image_is_as_bad_as_its_worst_layer() -> None:
    views = [LayerView(i, "held", LayerStatus(state=state), None, {}) for i, state in enumerate(LayerState)]
    for count, state in enumerate(LayerState, 1):
        assert worst_state(views[:count]) is worst_state(views[:count][::-1]) is state
    assert worst_state(()) is LayerState.CLEAN


async def test_how_much_was_left_dirty_is_told_where_it_is_known(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("a", "b"), indexes=(0,))
    for noted, value, text, shown in ((True, 3 << 20, str(3 << 20), "3MiB"), (False, None, "unknown", "?")):
        world.leave_dirty("a", 3 << 20, noted=noted)
        left = json.loads(await world.read("images/a/status.json"))
        assert left["layers"][0]["dirty_bytes"] == value
        assert await world.read("images/a/layers/0/dirty_bytes") == f"{text}\n"
        assert shown in (await world.read("images/a/status")).split()
        assert image_row(left)[5] == shown


async def test_an_image_left_dirty_shows_the_layers_it_will_be_opened_with(nursery: trio.Nursery) -> None:
    world = World(nursery, names=("a", "b"), indexes=(0,))
    world.leave_dirty("a", 100, index=3)
    left, clean = json.loads(await world.read("status.json"))["images"]
    assert (left["open"], left["state"]) == (False, "dirty")
    assert [(layer["index"], layer["plugin"], layer["state"]) for layer in left["layers"]] == [(3, "held", "dirty")]
    assert (clean["state"], [layer["index"] for layer in clean["layers"]]) == ("clean", [0])
    assert json.loads(await world.read("images/a/status.json")) == left
    assert await world.read("images/a/layers/3/state") == "dirty\n"
    world.left.images.clear()
    assert json.loads(await world.read("images/a/status.json"))["state"] == "clean"


async def test_a_closed_images_layer_shows_at_once_what_has_become_of_it(nursery: trio.Nursery) -> None:
    world = World(nursery)
    assert await world.read("images/disk/layers/0/state") == "clean\n"
    world.leave_dirty("disk", 100)
    assert await world.read("images/disk/layers/0/state") == "dirty\n"
