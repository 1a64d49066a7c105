"""Requests to an open image: who waits for whom, when the reply is out, and what an error leaves behind."""

import errno

import pytest
import trio

from fusecache.api import PENDING, Attempt, Buffers, Done, ReadDone, ReadOutcome
from fusecache.api.errors import ImageGone, OutOfRange, VolumeClosed, errno_of
from fusecache.images.image import Image
from fusecache.images.requests import ImageFailed, Request
from fusecache.testing.faulty import Fault, FaultyVolume
from fusecache.testing.gated import GatedVolume
from fusecache.testing.harness import settle
from fusecache.testing.memory import MemoryVolume
from fusecache.testing.requests import CHANGES, AttemptMode
from fusecache.testing.watched import WatchedVolume
from tests.support.images import Call, is_idle, opened, read, write

SIZE = 10_000
MODES: tuple[AttemptMode, ...] = ("done", "pending", "declined")
CHANGES_OF_IMAGE = ("write", "write_zeroes", "discard")


def change(image: Image, operation: str, offset: int, length: int, log: list[str] | None = None) -> Call:
    """Begin a request that changes ``[offset, offset + length)``."""
    argument = memoryview(b"x" * length) if operation == "write" else length

    def note() -> None:
        if log is not None:
            log.append(f"{operation} {offset}")

    return Call(lambda done: getattr(image, operation)(offset, argument, done), note)


class Parked(MemoryVolume):
    """Leaves every attempt PENDING until the test calls its ``done``."""

    def __init__(self, size: int = SIZE, *, alignment: int = 1) -> None:
        super().__init__(size, alignment=alignment)
        self.changes: list[Done] = []
        self.reads: list[ReadDone] = []

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        self.reads.append(done)
        return PENDING

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.changes.append(done)
        return PENDING


@pytest.mark.parametrize("attempts", ["pending", "declined"])
@pytest.mark.parametrize("second", ["read", "write", "write_zeroes", "discard"])
@pytest.mark.parametrize("first", CHANGES_OF_IMAGE)
async def test_a_request_starts_after_the_reply_to_the_one_it_overlaps(first: str, second: str, attempts: str) -> None:
    gate = GatedVolume(MemoryVolume(SIZE), {*CHANGES, "read"}, attempts=attempts)  # type: ignore[arg-type]
    started_at_reply: list[int] = []
    async with opened(WatchedVolume(gate)) as image:
        argument = memoryview(bytes(100)) if first == "write" else 100
        Call(
            lambda done: getattr(image, first)(0, argument, done),
            on_end=lambda: started_at_reply.append(len(gate.held)),
        )
        later = read(image, 50, 100) if second == "read" else change(image, second, 99, 100)
        await gate.wait_held(1)
        await settle()
        assert [held.request.operation for held in gate.held] == [first]
        gate.held[0].let_go()
        await gate.wait_held(1)
        await settle()
        assert started_at_reply == [0]
        assert [held.request.operation for held in gate.held] == [second]
        assert not later.replies
        gate.open()
        await later.result()
        assert is_idle(image.guard)


async def test_requests_that_do_not_overlap_are_under_way_together() -> None:
    gate = GatedVolume(MemoryVolume(SIZE))
    async with opened(WatchedVolume(gate)) as image:
        calls = [change(image, operation, at * 100, 100) for at, operation in enumerate(CHANGES_OF_IMAGE * 3)]
        await gate.wait_held(9)
        gate.open()
        for call in calls:
            await call.result()


async def test_reads_share_and_a_write_waits_for_all_of_them() -> None:
    gate = GatedVolume(MemoryVolume(SIZE), {"read"})
    order: list[str] = []
    async with opened(WatchedVolume(gate)) as image:
        readers = [read(image, 0, 100, lambda: order.append("read")) for _ in range(3)]
        writer = change(image, "write", 50, 10, order)
        late = read(image, 0, 100, lambda: order.append("late"))
        await gate.wait_held(3)
        gate.open()
        await writer.result()
        assert order[:4] == ["read", "read", "read", "write 50"]
        assert [await reader.result() for reader in readers] == [bytes(100)] * 3
        assert await late.result() == bytes(50) + b"x" * 10 + bytes(40)


@pytest.mark.parametrize("alignment", [1, 512])
async def test_what_is_answered_at_once_holds_nothing(alignment: int) -> None:
    async with opened(MemoryVolume(SIZE // 512 * 512, alignment=alignment, attempts="done")) as image:
        assert write(image, 512, b"a" * 1024).at_once
        during = read(image, 0, 512, lambda: None)
        assert during.at_once
        assert all(change(image, operation, 0, 512).at_once for operation in CHANGES_OF_IMAGE)
        assert Call(image.flush).at_once
        assert is_idle(image.guard)
        assert not [held for held in (image._spare_read, image._spare_write) if held.end]


@pytest.mark.parametrize("attempts", ["pending", "declined"])
async def test_what_goes_on_holds_its_range_until_it_ends(attempts: AttemptMode) -> None:
    async with opened(MemoryVolume(SIZE, attempts=attempts)) as image:
        writing, reading = write(image, 0, b"a" * 10), read(image, 20, 10)
        assert not writing.at_once
        assert not reading.at_once
        assert image.guard.active == 2
        await writing.result()
        await reading.result()
        assert is_idle(image.guard)


async def test_a_request_that_becomes_pending_with_nothing_in_flight_holds_its_range() -> None:
    volume = Parked()
    async with opened(WatchedVolume(volume)) as image:
        first = write(image, 0, b"a" * 10)
        second = write(image, 5, b"b" * 10)
        third = write(image, 100, b"c" * 10)
        assert image.guard.active == 3
        assert len(volume.changes) == 2
        volume.changes[1](None)
        assert (first.replies, second.replies, third.replies) == (0, 0, 1)
        volume.changes[0](None)
        assert (first.replies, second.replies) == (1, 0)
        volume.changes[2](None)
        assert second.replies == 1
        assert is_idle(image.guard)


async def test_pending_reads_end_in_any_order_each_with_its_own_bytes() -> None:
    volume = Parked()
    async with opened(volume) as image:
        calls = [read(image, at * 10, 10) for at in range(4)]
        for at in (2, 0, 3, 1):
            volume.reads[at](None, [bytes([at]) * 10])
        assert [await call.result() for call in calls] == [bytes([at]) * 10 for at in range(4)]
        assert is_idle(image.guard)


async def test_a_range_is_released_even_where_the_reply_fails() -> None:
    volume = Parked()
    async with opened(volume) as image:

        def broken(error: BaseException | None, buffers: Buffers = ()) -> None:
            raise RuntimeError("no reply")

        image.write(0, memoryview(b"a"), broken)
        image.read(10, 1, broken)
        with pytest.raises(RuntimeError, match="no reply"):
            volume.changes[0](None)
        with pytest.raises(RuntimeError, match="no reply"):
            volume.reads[0](None, [b"a"])
        assert is_idle(image.guard)


@pytest.mark.parametrize("attempts", MODES)
@pytest.mark.parametrize("operation", ["read", *CHANGES_OF_IMAGE])
async def test_an_error_of_the_stack_reaches_the_caller_and_leaves_the_range_free(
    operation: str, attempts: AttemptMode
) -> None:
    faulty = FaultyVolume(MemoryVolume(SIZE, attempts=attempts))
    fault = faulty.inject(Fault({operation}, ImageGone("gone"), count=1))  # type: ignore[arg-type]
    async with opened(faulty) as image:

        def begin() -> Call:
            return read(image, 0, 10) if operation == "read" else change(image, operation, 0, 10)

        with pytest.raises(ImageGone):
            await begin().result()
        assert fault.hits == 1
        assert is_idle(image.guard)
        await begin().result()


@pytest.mark.parametrize("operation", ["read", *CHANGES_OF_IMAGE])
@pytest.mark.parametrize("delay", [0.0, 1.0])
async def test_an_error_after_waiting_is_told_and_the_next_in_line_goes_on(
    operation: str, delay: float, autojump_clock: trio.testing.MockClock
) -> None:
    gate = GatedVolume(MemoryVolume(SIZE), {"write"})
    faulty = FaultyVolume(gate)
    async with opened(faulty) as image:
        first = write(image, 0, b"a" * 10)
        faulty.inject(Fault({operation}, ImageGone("gone"), count=1, delay=delay))  # type: ignore[arg-type]
        waiting = read(image, 0, 10) if operation == "read" else change(image, operation, 0, 10)
        behind = write(image, 5, b"b" * 10)
        gate.open()
        await first.result()
        with pytest.raises(ImageGone):
            await waiting.result()
        await behind.result()
        assert is_idle(image.guard)


async def test_an_error_nobody_expected_ends_its_request_alone() -> None:
    faulty = FaultyVolume(MemoryVolume(SIZE))
    faulty.inject(Fault({"write"}, ZeroDivisionError(), count=1))
    async with opened(faulty) as image:
        with pytest.raises(ZeroDivisionError):
            await write(image, 0, b"a").result()
        await write(image, 0, b"a").result()


@pytest.mark.parametrize("operation", ["read", *CHANGES_OF_IMAGE])
async def test_a_request_past_the_end_is_refused_and_leaves_nothing(operation: str) -> None:
    async with opened(MemoryVolume(SIZE, alignment=512, attempts="pending")) as image:
        with pytest.raises(OutOfRange):
            await (read(image, SIZE, 10) if operation == "read" else change(image, operation, SIZE - 1, 2)).result()
        assert is_idle(image.guard)


@pytest.mark.parametrize("attempts", MODES)
async def test_a_flush_waits_for_nothing_that_is_in_flight(attempts: AttemptMode) -> None:
    gate = GatedVolume(MemoryVolume(SIZE, attempts=attempts), {"write"})
    watched = WatchedVolume(gate)
    async with opened(watched) as image:
        writing = write(image, 0, b"a" * SIZE)
        flush = Call(image.flush)
        assert flush.at_once == (attempts == "done")
        await flush.result()
        assert not writing.replies
        assert image.guard.active == 1
        gate.open()
        await writing.result()
        assert watched.unflushed
        assert is_idle(image.guard)


@pytest.mark.parametrize("attempts", MODES)
async def test_a_failed_flush_is_told(attempts: AttemptMode) -> None:
    faulty = FaultyVolume(MemoryVolume(SIZE, attempts=attempts))
    faulty.inject(Fault({"flush"}, count=1))
    async with opened(faulty) as image:
        with pytest.raises(OSError, match="Input/output error"):
            await Call(image.flush).result()
        await Call(image.flush).result()


ALL_REQUESTS = {
    "read": lambda image: read(image, 0, 10),
    "write": lambda image: write(image, 0, b"a"),
    "write_zeroes": lambda image: change(image, "write_zeroes", 0, 10),
    "discard": lambda image: change(image, "discard", 0, 10),
    "flush": lambda image: Call(image.flush),
}


@pytest.mark.parametrize("request_kind", ALL_REQUESTS)
async def test_every_request_to_a_failed_image_is_answered_with_the_reason(request_kind: str) -> None:
    async with opened(MemoryVolume(SIZE, attempts="done")) as image:
        cause = RuntimeError("the pool file is gone")
        image.fail(cause)
        image.close()
        with pytest.raises(ImageFailed, match=r"image 'disk': its stack failed: .*the pool file is gone") as caught:
            ALL_REQUESTS[request_kind](image)
        assert errno_of(caught.value) == errno.EIO
        assert caught.value.__cause__ is cause


async def test_a_closed_image_answers_nothing_but_errors() -> None:
    async with opened(MemoryVolume(SIZE)) as image:
        image.close()
        for begin in (image.resize, image.writeback):
            with pytest.raises(ImageFailed, match="has been closed"):
                await begin(0)
        with pytest.raises(ImageFailed):
            await image.seek(0, hole=True)
        with pytest.raises(ImageFailed):
            await image.invalidate(0, dirty=False)


async def test_a_stack_that_ends_answers_every_request_once() -> None:
    gate = GatedVolume(MemoryVolume(SIZE, alignment=512), {"read", "write", "flush"}, attempts="declined")
    async with opened(gate) as image:
        calls = [
            write(image, 0, b"a" * 512),
            write(image, 100, b"a" * 512),
            write(image, 0, b"b" * 512),
            read(image, 5000, 10),
            read(image, 5, 10),
            Call(image.flush),
        ]
        await gate.wait_held(3)
    for call in calls:
        assert call.replies == 1
        assert call.error is not None
    assert isinstance(calls[0].error, VolumeClosed)
    assert is_idle(image.guard)


async def test_the_time_of_change_moves_with_changes_only() -> None:
    async with opened(MemoryVolume(SIZE, attempts="done")) as image:
        read(image, 0, 10)
        Call(image.flush)
        assert image.mtime_ns == 0
        for operation in CHANGES_OF_IMAGE:
            before = image.mtime_ns
            change(image, operation, 0, 10)
            assert image.mtime_ns > before
        assert image.mtime_ns == image.mtime_ns


async def test_an_image_says_what_it_is() -> None:
    volume = Parked()
    async with opened(volume) as image:
        write(image, 0, b"a")
        assert repr(image) == "<Image 'disk', 0 openers, 1 requests>"
        assert isinstance(image._spare_write, Request)
        assert (image.size, image.read_only, image.layers, image.missing) == (SIZE, False, (), ())
        volume.changes[0](None)
