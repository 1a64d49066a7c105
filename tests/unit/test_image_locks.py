"""Images whose lock was taken away, and images that have none: what is refused, and what the kernel may keep."""

import json
import os

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusecache.api.errors import FusecacheError, VolumeReadOnly
from fusecache.images.files import FilePolicy, ImageFile, ImageNode
from fusecache.images.image import Image
from fusecache.testing.faulty import Fault, FaultyVolume
from fusecache.testing.memory import MemoryVolume
from tests.support.controlled import World
from tests.support.images import Call, Shelf, read, shelf, write

POLICY = FilePolicy(uid=1000, gid=100, resize=True)
NOTE = "the lock was taken away"


async def opened(images: Shelf, flags: int = os.O_RDWR) -> ImageFile:
    file = await ImageNode(images.registry, await images.registry.lookup("disk"), POLICY).open(flags)
    assert isinstance(file, ImageFile)
    return file


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """Set to take the lock of the first image that is open then; the others keep theirs."""
    event = trio.Event()
    watched: list[MemoryVolume] = []

    async def until_lost(volume: MemoryVolume) -> None:
        watched.append(volume)
        await event.wait()
        if volume is not watched[0]:
            await trio.sleep_forever()
        volume.note = NOTE

    monkeypatch.setattr(MemoryVolume, "until_lost", until_lost)
    return event


async def test_nothing_is_changed_any_more_once_the_lock_is_lost(taken: trio.Event) -> None:
    async with shelf("disk") as images:
        file = await opened(images)
        await write(file, 0, b"before").result()
        taken.set()
        await wait_all_tasks_blocked()
        image = images.registry.all_open()[0]
        for change in (
            lambda done: file.write(0, memoryview(b"after"), done),
            lambda done: file.zero(0, 10, done),
            lambda done: file.discard(0, 10, done),
            lambda done: file.allocate(0, 8192, done, keep_size=False),
        ):
            with pytest.raises(VolumeReadOnly, match="its lock was taken away"):
                await Call(change).result()
        with pytest.raises(VolumeReadOnly):
            await image.resize(8192)
        with pytest.raises(VolumeReadOnly):
            await opened(images)
        assert images.backend.images["disk"].content.read(0, 6) == b"before"


async def test_the_kernels_pages_are_dropped_and_no_longer_kept(taken: trio.Event) -> None:
    changed: list[Image] = []
    async with shelf("disk", content_changed=changed.append) as images:
        file = await opened(images)
        await read(file, 0, 10).result()
        assert (await opened(images)).keep_cache
        taken.set()
        await wait_all_tasks_blocked()
        assert len(changed) == 1
        await read(file, 0, 10).result()
        later = await opened(images, os.O_RDONLY)
        await read(later, 0, 10).result()
        last = await opened(images, os.O_RDONLY)
        assert (last.keep_cache, last.direct) == (False, True)


async def test_the_lock_is_taken_anew_by_the_first_opener_after_the_last_close(
    taken: trio.Event, autojump_clock: MockClock
) -> None:
    async with shelf("disk", release_after=5.0) as images:
        file, other = await opened(images), await opened(images)
        taken.set()
        await wait_all_tasks_blocked()
        file.close()
        await wait_all_tasks_blocked()
        assert not images.closed
        other.close()
        # At once, though the old one has not gone yet.
        again = await opened(images)
        assert images.closed == ["disk"]
        await write(again, 0, b"after").result()
        again.close()


async def test_an_unused_image_that_loses_its_lock_is_closed_at_once(
    taken: trio.Event, autojump_clock: MockClock
) -> None:
    async with shelf("disk", release_after=1e6) as images:
        (await opened(images)).close()
        await wait_all_tasks_blocked()
        assert not images.closed
        taken.set()
        await wait_all_tasks_blocked()
        assert images.closed == ["disk"]


async def test_closing_without_the_lock_is_no_failure(taken: trio.Event) -> None:
    async with shelf("disk") as images:
        file = await opened(images)
        image = images.registry.all_open()[0]
        faulty = FaultyVolume(image.stack.image)
        faulty.faults.append(Fault(["flush"], FusecacheError("lost")))
        image.top.flush = faulty.flush  # type: ignore[method-assign]
        taken.set()
        await wait_all_tasks_blocked()
        file.close()
        await wait_all_tasks_blocked()
        assert (images.closed, images.events) == (["disk"], [])


async def test_the_status_says_what_is_not_as_usual(taken: trio.Event, nursery: trio.Nursery) -> None:
    world = World(nursery)
    async with world.opened():
        (before,) = json.loads(await world.read("status.json"))["images"]
        assert (before["state"], before["note"]) == ("clean", "")
        taken.set()
        await wait_all_tasks_blocked()
        (after,) = json.loads(await world.read("status.json"))["images"]
        assert (after["state"], after["note"]) == ("failed", NOTE)
        for report in ("status", "images/disk/status"):
            assert (await world.read(report)).endswith(f"disk: {NOTE}\n")


async def test_of_an_image_that_others_may_change_the_kernel_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryVolume, "cacheable", False)
    async with shelf("disk") as images:
        for _ in range(2):
            file = await opened(images)
            await read(file, 0, 10).result()
            # Not parallel: an older kernel need not keep it from being direct, as nobody has pages of it.
            assert (file.direct, file.keep_cache, file.parallel) == (True, False, False)
