"""An image whose stack came down: everybody is answered at once, and what ends later, if ever, harms nobody."""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import DONE, PENDING, Attempt, Buffers, Done, Extent, ImageInfo, ReadDone, ReadOutcome
from fusecache.api.errors import VolumeClosed, errno_of
from fusecache.images.files import FilePolicy, ImageFile
from fusecache.images.image import Image
from fusecache.images.node import GivenUp
from fusecache.images.requests import ImageFailed
from fusecache.testing.memory import MemoryVolume
from tests.support.images import is_idle, opened, shelf, stack_of

SIZE = 1 << 20


class Stuck(MemoryVolume):
    """Leaves every attempt PENDING until the test calls its ``done``, and what is no attempt in a shielded wait.

    Attributes:
        ends: ends the attempts, in the order in which they were begun.
        lent: data of the writes among them.
        go: set to let the shielded calls end.
        called: the shielded calls that were begun.
    """

    def __init__(self, *, alignment: int = 1) -> None:
        super().__init__(SIZE, alignment=alignment)
        self.ends: list[Callable[[], None]] = []
        self.lent: list[memoryview] = []
        self.go = trio.Event()
        self.called: list[str] = []

    def _begun(self, done: Done) -> Attempt:
        self.ends.append(lambda: done(None))
        return PENDING

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        self.ends.append(lambda: done(None, (bytes(length),)))
        return PENDING

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.lent.append(data)
        return self._begun(done)

    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        return self._begun(done)

    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        return self._begun(done)

    def try_flush(self, done: Done) -> Attempt:
        return self._begun(done)

    async def read(self, offset: int, length: int) -> Buffers:
        await self._hang("read")
        return await super().read(offset, length)

    async def flush(self) -> None:
        await self._hang("flush")

    async def extents(self, offset: int, length: int) -> list[Extent]:
        await self._hang("extents")
        return list(await super().extents(offset, length))

    async def resize(self, size: int) -> None:
        await self._hang("resize")
        await super().resize(size)

    async def _hang(self, call: str) -> None:
        self.called.append(call)
        with trio.CancelScope(shield=True):
            await self.go.wait()


@asynccontextmanager
async def stuck(*, alignment: int = 1) -> AsyncIterator[tuple[Image, Stuck]]:
    """Open an image over such a volume, with a nursery that may be cancelled without the test."""
    volume = Stuck(alignment=alignment)

    async def host(task_status: trio.TaskStatus[Image]) -> None:
        async with trio.open_nursery() as nursery:
            info = ImageInfo("disk", "key", SIZE)
            task_status.started(Image(stack_of(volume, nursery), info, lambda image: None))
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        image = await nursery.start(host)
        try:
            yield image, volume
        finally:
            volume.go.set()
            nursery.cancel_scope.cancel()


class Replies:
    """What one request was told, each time."""

    def __init__(self, begin: Callable[[Callable[..., None]], object]) -> None:
        self.told: list[BaseException | None] = []
        assert begin(self._done) is PENDING

    def _done(self, error: BaseException | None, buffers: Buffers = ()) -> None:
        assert not (error and buffers)
        self.told.append(error)

    def check_failed(self) -> None:
        """Check that it was answered once, with EIO."""
        assert len(self.told) == 1
        assert self.told[0] is not None
        assert errno_of(self.told[0]) == errno.EIO


REQUESTS: dict[str, Callable[[Image, int, Callable[..., None]], object]] = {
    "read": lambda image, at, done: image.read(at, 100, done),
    "write": lambda image, at, done: image.write(at, memoryview(bytearray(100)), done),
    "write_zeroes": lambda image, at, done: image.write_zeroes(at, 100, done),
    "discard": lambda image, at, done: image.discard(at, 100, done),
    "flush": lambda image, at, done: image.flush(done),
}


def begin(image: Image, request: str, at: int = 0) -> Replies:
    """Begin a request that does not end at once."""
    return Replies(lambda done: REQUESTS[request](image, at, done))


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
@pytest.mark.parametrize("request_", REQUESTS)
async def test_a_pending_request_is_answered_when_its_stack_comes_down(request_: str, beside: bool) -> None:
    async with stuck() as (image, _):
        if beside:
            begin(image, "read", SIZE // 2)
        replies = begin(image, request_)
        image.fail(RuntimeError("the write-back died"))
        replies.check_failed()
        assert isinstance(replies.told[0], GivenUp) == (request_ == "write")
        # The image fails once more when the cause is known; it is not told again.
        image.fail(RuntimeError("the cause"))
        replies.check_failed()


@pytest.mark.parametrize("request_", REQUESTS)
async def test_the_late_end_of_a_request_is_told_only_to_who_lent_data(request_: str) -> None:
    async with stuck() as (image, volume):
        replies = begin(image, request_)
        image.fail(RuntimeError("the write-back died"))
        refusals = image.guard.active - 1
        volume.ends[0]()
        assert replies.told[1:] == ([None] if request_ == "write" else [])
        assert image.guard.active == refusals
        assert not image.guard._chunks


async def test_a_request_that_waits_for_its_range_is_answered_and_never_begun() -> None:
    async with stuck() as (image, volume):
        first = begin(image, "write", 0)
        waiting = [begin(image, request, 50) for request in REQUESTS if request != "flush"] * 3
        image.fail(RuntimeError("the write-back died"))
        assert isinstance(first.told[0], GivenUp)
        for replies in waiting:
            replies.check_failed()
            assert isinstance(replies.told[0], ImageFailed), "nobody uses its data"
        volume.ends[0]()
        assert (len(volume.ends), len(volume.lent)) == (1, 1)
        assert first.told[1:] == [None]
        assert not image.guard._chunks


async def test_requests_in_asynchronous_methods_are_answered_though_these_do_not_end() -> None:
    async with stuck(alignment=512) as (image, volume):
        replies = [begin(image, "read", 1), begin(image, "write", 1025)]
        await wait_all_tasks_blocked()
        assert volume.called == ["read", "read"]
        image.fail(RuntimeError("the write-back died"))
        for each in replies:
            each.check_failed()
        image.nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert [len(each.told) for each in replies] == [1, 1]
        volume.go.set()
        await wait_all_tasks_blocked()
        assert [len(each.told) for each in replies] == [1, 2]
        assert not image.guard._chunks


AWAITED: dict[str, tuple[Callable[[Image], Awaitable[object]], str]] = {
    "seek": (lambda image: image.seek(0, hole=False), "extents"),
    "resize": (lambda image: image.resize(100), "resize"),
    "grow": (lambda image: image.grow(2 * SIZE), "resize"),
    "writeback": (lambda image: image.writeback(None), "flush"),
}


@pytest.mark.parametrize(("call", "reaches"), AWAITED.values(), ids=AWAITED)
@pytest.mark.parametrize("behind", [False, True], ids=["in the stack", "at the barrier"])
async def test_who_awaits_a_call_gets_the_failure_though_the_call_does_not_end(
    call: Callable[[Image], Awaitable[object]], reaches: str, behind: bool, nursery: trio.Nursery
) -> None:
    errors: list[BaseException] = []

    async def use(image: Image) -> None:
        try:
            await call(image)
        except ImageFailed as error:
            errors.append(error)

    async with stuck() as (image, volume):
        if behind:
            begin(image, "write")
        nursery.start_soon(use, image)
        await wait_all_tasks_blocked()
        # A write-back waits for no request, nor a seek for one that is no barrier.
        assert volume.called == ([] if behind and reaches == "resize" else [reaches])
        image.fail(RuntimeError("the write-back died"))
        image.nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert [errno_of(error) for error in errors] == [errno.EIO]
        assert image.guard.active - bool(volume.called) * (reaches != "flush") - behind == 1
        volume.go.set()
        await wait_all_tasks_blocked()
        assert not image.guard._wide


async def test_a_call_that_the_caller_gives_up_is_cancelled() -> None:
    async with opened(MemoryVolume(SIZE)) as image:
        async with image.barrier():
            with trio.move_on_after(0) as patience:
                await image.resize(100)
            assert patience.cancelled_caught
            await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        assert is_idle(image.guard)
        assert image.size == SIZE


async def test_a_call_into_a_stack_that_is_closed_under_it_fails_as_the_image_does() -> None:
    async with opened(MemoryVolume(SIZE)) as image:
        image.top.close()
        with pytest.raises(ImageFailed) as caught:
            await image.seek(0, hole=False)
        assert errno_of(caught.value) == errno.EIO


async def test_an_orderly_close_leaves_what_is_under_way_to_end() -> None:
    async with stuck() as (image, volume):
        replies = begin(image, "write")
        waits = begin(image, "write", 10)
        image.close()
        assert not replies.told
        volume.ends[0]()
        assert (replies.told, waits.told) == ([None], [])
        volume.ends[1]()
        assert waits.told == [None]


async def test_nothing_is_begun_in_an_image_that_failed() -> None:
    async with shelf() as images, stuck() as (image, volume):
        file = ImageFile(images.registry, image, 0, FilePolicy(0, 0, resize=True), creator=True)
        image.fail(VolumeClosed("closed"))
        image.nursery.cancel_scope.cancel()
        data = memoryview(bytes(100))
        calls: tuple[Callable[[], object], ...] = (
            lambda: file.read(0, 100, _unexpected),
            lambda: file.write(0, data, _unexpected),
            lambda: file.write(SIZE, data, _unexpected),
            lambda: file.allocate(0, 2 * SIZE, _unexpected, keep_size=False),
            lambda: file.zero(0, 100, _unexpected),
            lambda: file.discard(0, 100, _unexpected),
            lambda: file.flush(_unexpected),
        )
        for call in calls:
            with pytest.raises(ImageFailed):
                call()
        for awaited, _ in AWAITED.values():
            with pytest.raises(ImageFailed):
                await awaited(image)
        assert file.allocate(0, 100, _unexpected, keep_size=True) is DONE
        assert (volume.ends, volume.called) == ([], [])


def _unexpected(*_: object) -> None:
    raise AssertionError("told twice")


async def die() -> None:
    raise RuntimeError("the write-back died")


async def test_a_crash_answers_before_the_stack_is_closed_and_only_its_own_image(nursery: trio.Nursery) -> None:
    async with shelf("disk", "other") as images:
        image, other = await images.registry.acquire("disk"), await images.registry.acquire("other")
        volume = Stuck()
        for method in ("try_read", "try_write", "try_flush"):
            setattr(image.top, method, getattr(volume, method))
            setattr(other.top, method, getattr(volume, method))
        closing = trio.Event()

        async def close_slowly() -> None:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await closing.wait()

        image.nursery.start_soon(close_slowly)
        replies = [
            begin(image, request, at) for at, request in ((0, "write"), (50, "read"), (500, "read"), (0, "flush"))
        ]
        others = begin(other, "read")
        images.nurseries["disk"].start_soon(die)
        await wait_all_tasks_blocked()
        for each in replies:
            each.check_failed()
        assert not others.told
        assert images.registry.opened("disk") is None
        found: list[Image] = []

        async def open_again() -> None:
            found.append(await images.registry.acquire("disk"))

        nursery.start_soon(open_again)
        await wait_all_tasks_blocked()
        assert not found, "a new stack beside one that is not closed"
        closing.set()
        await wait_all_tasks_blocked()
        assert images.events == ["image-failed"]
        fresh = found[0]
        assert fresh is not image
        with pytest.raises(ImageFailed, match="the write-back died"):
            image.flush(_unexpected)
        for end in volume.ends:
            end()
        assert [len(each.told) for each in replies] == [2, 1, 1, 1]
        assert others.told == [None]
        assert is_idle(fresh.guard)
        assert is_idle(other.guard)
