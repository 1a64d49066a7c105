"""Creating, renaming and removing images through the registry; what is shown and what is not."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api.errors import ImageBusy, ImageExists, ImageNotFound
from fusecache.testing.faulty import HANG
from tests.support.images import shelf

CONTROL = ".control"


async def test_a_new_image_is_empty_and_used_by_its_creator() -> None:
    async with shelf() as images:
        image = await images.registry.create("new")
        assert (image.name, image.size) == ("new", 0)
        with pytest.raises(ImageExists):
            await images.registry.create("new")
        await wait_all_tasks_blocked()
        assert not images.closed
        images.registry.release(image)
        await wait_all_tasks_blocked()
        assert images.closed == ["new"]


async def test_an_open_image_keeps_working_under_its_new_name() -> None:
    async with shelf("disk", "other") as images, images.registry.using("disk") as image:
        with pytest.raises(ImageExists):
            await images.registry.rename("disk", "other")
        with pytest.raises(ImageNotFound):
            await images.registry.rename("none", "new")
        assert image.name == "disk"
        await images.registry.rename("disk", "new")
        assert image.name == "new"
        assert images.registry.opened("disk") is None
        async with images.registry.using("new") as again:
            assert again is image
        with pytest.raises(ImageNotFound):
            await images.registry.acquire("disk")


async def test_a_rename_behind_our_back_is_noticed() -> None:
    async with shelf("disk") as images, images.registry.using("disk") as image:
        await images.backend.rename("disk", "new")
        assert (await images.registry.lookup("new")).name == "new"
        assert image.name == "new"
        assert images.registry.opened_as(image.info.key) is image


async def test_a_name_is_the_image_s_that_was_seen_under_it_last() -> None:
    async with shelf("disk") as images, images.registry.using("disk") as first:
        await images.backend.rename("disk", "away")
        await images.backend.create("disk", 4096)
        async with images.registry.using("disk") as second:
            assert images.registry.opened("disk") is second
            await images.registry.lookup("away")
            assert images.registry.opened("away") is first
            assert images.registry.opened("disk") is second
        await wait_all_tasks_blocked()
        assert images.registry.opened("disk") is None
        assert images.registry.opened("away") is first
    assert images.registry.opened("away") is None


@pytest.mark.parametrize("call", ["opened", "release"])
async def test_finding_one_of_many_open_images_takes_no_longer_than_finding_one_of_few(call: str) -> None:
    names = [f"disk-{number}" for number in range(200)]
    async with shelf(*names, release_after=HANG) as images:
        opened = [await images.registry.acquire(name) for name in names]
        few = steps(getattr(images.registry, call), names[0] if call == "opened" else opened[0])
        many = steps(getattr(images.registry, call), names[-1] if call == "opened" else opened[-1])
        assert many == few


def steps(call: Callable[[Any], Any], argument: Any) -> int:
    """Return how many lines a call runs."""
    count = 0

    def trace(frame: FrameType, event: str, value: Any) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call(argument)
    finally:
        sys.settrace(before)
    return count


async def test_an_image_in_use_is_not_removed() -> None:
    async with shelf("disk") as images:
        async with images.registry.using("disk"):
            with pytest.raises(ImageBusy, match="'disk' is open"):
                await images.registry.remove("disk")
        assert "disk" in images.backend.images


async def test_an_image_that_is_only_kept_open_is_closed_and_removed() -> None:
    async with shelf("disk", release_after=HANG) as images:
        async with images.registry.using("disk"):
            pass
        await images.registry.remove("disk")
        assert images.closed == ["disk"]
        assert not images.backend.images
        with pytest.raises(ImageNotFound):
            await images.registry.remove("disk")


async def test_an_image_that_is_not_open_is_removed_without_being_opened() -> None:
    async with shelf("disk") as images:
        await images.registry.remove("disk")
        assert (images.begun, images.backend.images) == ([], {})


async def test_the_control_directorys_name_is_never_an_image(nursery: trio.Nursery) -> None:
    async with shelf("disk", CONTROL) as images:
        for _ in range(2):
            assert [info.name for info in await images.registry.list()] == ["disk"]
        assert images.events == ["image-hidden"]
        with pytest.raises(ImageNotFound):
            await images.registry.lookup(CONTROL)
        with pytest.raises(ImageNotFound):
            await images.registry.remove(CONTROL)
        with pytest.raises(ImageBusy):
            await images.registry.create(CONTROL)
        for old, new in ((CONTROL, "new"), ("disk", CONTROL)):
            with pytest.raises(ImageBusy):
                await images.registry.rename(old, new)
        assert sorted(images.backend.images) == [CONTROL, "disk"]
