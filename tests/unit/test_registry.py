"""The registry opens each image once, keeps it as long as somebody uses it, and lets one fail without the others."""

import errno

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusecache.api.backend import ImageInfo
from fusecache.api.errors import ImageBusy, ImageNotFound, VolumeClosed, errno_of
from fusecache.images.image import Image
from fusecache.images.requests import ImageFailed
from fusecache.testing.faulty import HANG, Fault, FaultyVolume
from tests.support.images import Shelf, read, shelf, write


async def acquired(registry_of: Shelf, name: str, into: list[Image | Exception]) -> None:
    """Acquire, and note the image or the error."""
    try:
        into.append(await registry_of.registry.acquire(name))
    except Exception as error:
        into.append(error)


async def test_users_who_come_together_share_one_opening() -> None:
    async with shelf("disk", "other") as images, trio.open_nursery() as nursery:
        images.gate = trio.Event()
        found: list[Image | Exception] = []
        for name in ("disk", "disk", "other", "disk"):
            nursery.start_soon(acquired, images, name, found)
        await wait_all_tasks_blocked()
        assert sorted(images.begun) == ["disk", "other"]
        assert not found
        images.gate.set()
        await wait_all_tasks_blocked()
        assert len(found) == 4
        assert len(set(map(id, found))) == 2
        assert len(images.registry.all_open()) == 2


async def test_an_image_is_announced_before_anybody_uses_it() -> None:
    announced: list[Image] = []
    async with shelf("disk", on_open=announced.append) as images, images.registry.using("disk") as image:
        assert announced == [image]
        assert images.registry.opened("disk") is image


async def test_an_error_of_opening_reaches_all_who_wait_and_leaves_nothing() -> None:
    told: list[tuple[str, str]] = []

    def on_failure(info: ImageInfo, error: Exception) -> None:
        told.append((info.name, str(error)))

    async with shelf("disk", on_open_failed=on_failure) as images, trio.open_nursery() as nursery:
        images.gate = trio.Event()
        images.failures = [ImageBusy("held by another host")]
        found: list[Image | Exception] = []
        for _ in range(3):
            nursery.start_soon(acquired, images, "disk", found)
        await wait_all_tasks_blocked()
        images.gate.set()
        await wait_all_tasks_blocked()
        assert [str(error) for error in found] == ["held by another host"] * 3
        assert (images.registry.all_open(), images.events) == ([], ["open-failed"])
        assert told == [("disk", "held by another host")]
        async with images.registry.using("disk"):
            assert images.begun == ["disk", "disk"]


async def test_what_is_not_there_is_not_opened() -> None:
    async with shelf("disk") as images:
        for name in ("none", ".control"):
            with pytest.raises(ImageNotFound):
                await images.registry.acquire(name)
        assert not images.begun


async def test_an_image_stays_open_for_a_while_after_its_last_user(autojump_clock: MockClock) -> None:
    async with shelf("disk", release_after=5.0) as images:
        started = trio.current_time()
        async with images.registry.using("disk") as image:
            await trio.sleep(100)
        assert not images.closed
        await trio.sleep(4.9)
        async with images.registry.using("disk") as again:
            assert again is image
        await trio.sleep(4.9)
        assert not images.closed
        await trio.sleep(0.2)
        assert images.closed == ["disk"]
        assert trio.current_time() - started == pytest.approx(110, abs=0.5)
        async with images.registry.using("disk") as reopened:
            assert reopened is not image
        with pytest.raises(ImageFailed, match="has been closed"):
            read(image, 0, 1)


async def test_a_user_who_stays_beyond_the_time_keeps_the_image_open(autojump_clock: MockClock) -> None:
    async with shelf("disk", release_after=5.0) as images:
        async with images.registry.using("disk"):
            pass
        await trio.sleep(4)
        async with images.registry.using("disk"):
            await trio.sleep(10)
            assert not images.closed
        await trio.sleep(6)
        assert images.closed == ["disk"]


async def test_an_image_without_delay_closes_with_its_last_user() -> None:
    async with shelf("disk") as images:
        first = await images.registry.acquire("disk")
        second = await images.registry.acquire("disk")
        images.registry.release(first)
        await wait_all_tasks_blocked()
        assert not images.closed
        images.registry.release(second)
        await wait_all_tasks_blocked()
        assert images.closed == ["disk"]


async def test_what_was_written_is_flushed_before_an_image_closes() -> None:
    async with shelf("disk") as images:
        async with images.registry.using("disk") as image:
            await write(image, 0, b"a").result()
            assert images.volumes["disk"].unflushed
        await wait_all_tasks_blocked()
        assert images.closed == ["disk"]
        assert not images.volumes["disk"].unflushed


async def test_a_read_only_image_is_not_flushed() -> None:
    async with shelf("disk") as images:
        images.read_only = True
        async with images.registry.using("disk") as image:
            assert image.read_only
        await wait_all_tasks_blocked()
        assert not images.volumes["disk"].ended


async def test_a_user_who_comes_while_an_image_closes_waits_and_gets_a_new_one(nursery: trio.Nursery) -> None:
    async with shelf("disk") as images:
        async with images.registry.using("disk") as image:
            closing = trio.Event()
            image.top.flush = closing.wait  # type: ignore[method-assign]
        await wait_all_tasks_blocked()
        assert images.registry.opened("disk") is None
        found: list[Image | Exception] = []
        nursery.start_soon(acquired, images, "disk", found)
        await wait_all_tasks_blocked()
        assert (found, images.begun) == ([], ["disk"])
        closing.set()
        await wait_all_tasks_blocked()
        assert images.closed == ["disk"]
        assert isinstance(found[0], Image)
        assert found[0] is not image


async def test_a_user_who_gives_up_during_the_opening_leaves_nothing() -> None:
    async with shelf("disk") as images:
        images.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(images.registry.acquire, "disk")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        images.gate.set()
        await wait_all_tasks_blocked()
        assert (images.begun, images.closed, images.registry.all_open()) == (["disk"], ["disk"], [])


async def test_one_user_who_gives_up_does_not_take_the_image_from_another() -> None:
    async with shelf("disk") as images, trio.open_nursery() as nursery:
        images.gate = trio.Event()
        found: list[Image | Exception] = []
        nursery.start_soon(acquired, images, "disk", found)
        with trio.CancelScope() as impatient:
            nursery.start_soon(wait_and_cancel, impatient)
            await images.registry.acquire("disk")
        images.gate.set()
        await wait_all_tasks_blocked()
        assert len(found) == 1
        assert not images.closed


async def wait_and_cancel(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_an_opening_that_is_given_up_by_the_registry_is_an_error_for_those_who_wait() -> None:
    found: list[Image | Exception] = []
    async with trio.open_nursery() as users, trio.open_nursery() as hosts:
        images = Shelf(hosts, "disk")
        images.gate = trio.Event()
        users.start_soon(acquired, images, "disk", found)
        await wait_all_tasks_blocked()
        hosts.cancel_scope.cancel()
    assert [type(error) for error in found] == [VolumeClosed]


async def crash() -> None:
    raise RuntimeError("the write-back died")


async def test_a_task_that_dies_takes_down_its_image_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async with shelf("disk", "other") as images:
        image, other = await images.registry.acquire("disk"), await images.registry.acquire("other")
        images.nurseries["disk"].start_soon(crash)
        await wait_all_tasks_blocked()
        assert (images.closed, images.events) == (["disk"], ["image-failed"])
        assert "the write-back died" in caplog.text
        with pytest.raises(ImageFailed, match="the write-back died") as caught:
            read(image, 0, 1)
        assert errno_of(caught.value) == errno.EIO
        await write(other, 0, b"a").result()
        again = await images.registry.acquire("disk")
        assert again is not image
        await write(again, 0, b"a").result()
        # Whoever used the failed image lets go of it some time, and takes nothing from the new one.
        images.registry.release(image)
        await wait_all_tasks_blocked()
        assert images.closed == ["disk"]
        assert images.registry.opened("disk") is again


async def test_an_image_in_whose_failed_stack_something_hangs_is_busy_until_that_ends(
    autojump_clock: MockClock,
) -> None:
    async with shelf("disk") as images:
        image = await images.registry.acquire("disk")
        go = trio.Event()
        try:
            image.nursery.start_soon(hang, go)
            images.nurseries["disk"].start_soon(crash)
            await wait_all_tasks_blocked()
            images.registry.release(image)
            with pytest.raises(ImageBusy, match="something in it hangs"):
                await images.registry.acquire("disk")
            with pytest.raises(ImageBusy, match="something in it hangs"):
                await images.registry.remove("disk")
        finally:
            go.set()
        async with images.registry.using("disk") as fresh:
            assert fresh is not image
        assert images.events == ["image-failed"]


async def hang(go: trio.Event) -> None:
    with trio.CancelScope(shield=True):
        await go.wait()


async def test_a_failed_flush_at_the_end_is_reported_and_the_image_closes(caplog: pytest.LogCaptureFixture) -> None:
    async with shelf("disk") as images:
        async with images.registry.using("disk") as image:
            faulty = FaultyVolume(images.volumes["disk"])
            faulty.inject(Fault({"flush"}))
            image.top.flush = faulty.flush  # type: ignore[method-assign]
        await wait_all_tasks_blocked()
        assert (images.closed, images.events) == (["disk"], ["image-failed"])
        async with images.registry.using("disk"):
            pass


async def test_closing_flushes_and_closes_every_image_used_or_not() -> None:
    async with shelf("disk", "other", release_after=HANG) as images:
        image = await images.registry.acquire("disk")
        await write(image, 0, b"a").result()
        async with images.registry.using("other") as other:
            await write(other, 0, b"a").result()
        await images.registry.close()
        assert sorted(images.closed) == ["disk", "other"]
        assert not any(volume.unflushed for volume in images.volumes.values())
        with pytest.raises(ImageFailed):
            read(image, 0, 1)
        with pytest.raises(VolumeClosed, match="the mount is ending"):
            await images.registry.acquire("disk")
        images.registry.release(image)


async def test_closing_gives_up_an_image_whose_opening_hangs(nursery: trio.Nursery) -> None:
    async with shelf("disk") as images:
        images.gate = trio.Event()
        found: list[Image | Exception] = []
        nursery.start_soon(acquired, images, "disk", found)
        await wait_all_tasks_blocked()
        nursery.start_soon(images.registry.close)
        await wait_all_tasks_blocked()
        assert [str(error) for error in found] == ["image 'disk': the mount is ending"]
        assert images.begun == ["disk"]
        assert not images.closed
