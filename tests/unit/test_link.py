"""A link passes good requests on and refuses bad ones; what a volume gets wrong never gets past it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import trio

from fusecache.api.errors import ContractViolation, Misaligned, OutOfRange, VolumeClosed, VolumeReadOnly
from fusecache.api.ranges import Extent, ExtentKind
from fusecache.api.volume import DECLINED, DONE, PENDING, Attempt, Buffers, Done, ReadDone, ReadOutcome, joined
from fusecache.stack.link import Link
from fusecache.testing.memory import MemoryVolume
from fusecache.testing.requests import AttemptMode

SIZE = 10_000
"""Not a multiple of 512, as images may be."""

Call = Callable[[Link, int, int], object]


def unexpected(*args: object) -> None:
    raise AssertionError(f"done was called: {args}")


class Broken(MemoryVolume):
    """Answers whatever the test says."""

    outcome: Any = DONE
    buffers: Any = ()
    told: Sequence[Extent] = ()

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.received: list[Any] = []

    async def read(self, offset: int, length: int) -> Buffers:
        await trio.lowlevel.checkpoint()
        return self.buffers  # type: ignore[no-any-return]

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        await trio.lowlevel.checkpoint()
        return self.told

    async def resize(self, size: int) -> None:
        await trio.lowlevel.checkpoint()

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        self.received.append(done)
        return self.outcome  # type: ignore[no-any-return]

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.received.append(done)
        return self.outcome  # type: ignore[no-any-return]

    def try_flush(self, done: Done) -> Attempt:
        done(None)
        return PENDING


ATTEMPTS: dict[str, Call] = {
    "try_read": lambda link, offset, length: link.try_read(offset, length, unexpected),
    "try_write": lambda link, offset, length: link.try_write(offset, memoryview(bytes(length)), unexpected),
    "try_write_zeroes": lambda link, offset, length: link.try_write_zeroes(offset, length, unexpected),
    "try_discard": lambda link, offset, length: link.try_discard(offset, length, unexpected),
}
METHODS: dict[str, Call] = {
    "read": lambda link, offset, length: link.read(offset, length),
    "write": lambda link, offset, length: link.write(offset, memoryview(bytes(length))),
    "write_zeroes": lambda link, offset, length: link.write_zeroes(offset, length),
    "discard": lambda link, offset, length: link.discard(offset, length),
    "extents": lambda link, offset, length: link.extents(offset, length),
}
RANGED = ATTEMPTS | METHODS
NOT_CHANGING = {"try_read", "read", "extents"}


async def perform(operation: str, link: Link, offset: int, length: int) -> object:
    result = RANGED[operation](link, offset, length)
    return await result if isinstance(result, Awaitable) else result


@pytest.mark.parametrize("operation", RANGED)
@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, SIZE + 1), (SIZE, 1), (4096, SIZE)])
async def test_a_request_outside_the_volume_is_refused_with_its_numbers(
    operation: str, offset: int, length: int
) -> None:
    link = Link(MemoryVolume(SIZE, attempts="done"))
    with pytest.raises(OutOfRange, match=rf"found {length} bytes at {offset}, .* \[0, {SIZE}\)"):
        await perform(operation, link, offset, length)


@pytest.mark.parametrize("operation", RANGED)
async def test_an_empty_request_is_refused(operation: str) -> None:
    with pytest.raises(OutOfRange, match="at least one byte"):
        await perform(operation, Link(MemoryVolume(SIZE, attempts="done")), 512, 0)


@pytest.mark.parametrize("operation", RANGED)
@pytest.mark.parametrize(("offset", "length"), [(1, 512), (512, 513), (511, SIZE - 511)])
async def test_an_unaligned_request_is_refused(operation: str, offset: int, length: int) -> None:
    with pytest.raises(Misaligned, match="multiples of 512"):
        await perform(operation, Link(MemoryVolume(SIZE, alignment=512, attempts="done")), offset, length)


@pytest.mark.parametrize("operation", RANGED)
@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (0, 512), (9728, SIZE - 9728)])
async def test_a_request_that_ends_at_the_size_is_aligned(operation: str, offset: int, length: int) -> None:
    await perform(operation, Link(MemoryVolume(SIZE, alignment=512, attempts="done")), offset, length)


@pytest.mark.parametrize("operation", RANGED)
async def test_a_read_only_volume_is_not_changed(operation: str) -> None:
    link = Link(MemoryVolume(SIZE, attempts="done", read_only=True))
    assert link.read_only
    if operation in NOT_CHANGING:
        await perform(operation, link, 0, 512)
    else:
        with pytest.raises(VolumeReadOnly, match="512 bytes at 0"):
            await perform(operation, link, 0, 512)
    with pytest.raises(VolumeReadOnly):
        await link.resize(1)
    await link.flush()
    assert link.try_flush(unexpected) is DONE


@pytest.mark.parametrize("operation", RANGED)
async def test_a_closed_link_refuses_everything_and_keeps_its_size(operation: str) -> None:
    link = Link(MemoryVolume(SIZE, attempts="done"))
    link.close()
    assert link.size == SIZE
    with pytest.raises(VolumeClosed):
        await perform(operation, link, 0, 512)
    with pytest.raises(VolumeClosed):
        await link.flush()
    with pytest.raises(VolumeClosed):
        link.try_flush(unexpected)
    with pytest.raises(VolumeClosed):
        await link.resize(1)


@pytest.mark.parametrize("attempts", ["done", "pending", "declined"])
async def test_a_link_adds_nothing_and_takes_nothing_away(attempts: AttemptMode) -> None:
    volume = MemoryVolume(SIZE, attempts=attempts)
    link = Link(volume)
    assert (link.size, link.alignment, link.preferred_io) == (SIZE, 1, volume.preferred_io)
    await link.write(10, memoryview(b"asynchronous"))
    assert joined(await link.read(10, 12)) == b"asynchronous"
    ended = trio.Event()
    outcome = link.try_write(30, memoryview(b"attempt"), lambda error: ended.set())
    assert outcome.value == attempts
    if outcome is PENDING:
        await ended.wait()
    assert volume.content.read(30, 7) == (b"attempt" if attempts != "declined" else bytes(7))
    await link.write_zeroes(10, 4)
    await link.discard(14, 4)
    assert volume.content.read(10, 12) == bytes(8) + b"nous"
    assert await link.extents(0, SIZE) == await volume.extents(0, SIZE)


async def test_a_resize_moves_the_limits() -> None:
    link = Link(MemoryVolume(SIZE, attempts="done"))
    await link.resize(512)
    assert link.size == 512
    with pytest.raises(OutOfRange):
        link.try_read(0, 513, unexpected)
    await link.resize(1024)
    assert link.try_write(1000, memoryview(bytes(24)), unexpected) is DONE
    with pytest.raises(OutOfRange, match="found size -1"):
        await link.resize(-1)


async def test_a_resize_that_did_not_happen_is_an_error() -> None:
    with pytest.raises(ContractViolation, match=f"has size {SIZE} after a resize to 1"):
        await Link(Broken()).resize(1)


@pytest.mark.parametrize("buffers", [[], [b"abc"], [b"abc", b"de"], b"abcd", None, DONE, 7])
async def test_a_read_of_another_length_is_an_error(buffers: object) -> None:
    volume = Broken()
    volume.buffers = volume.outcome = buffers
    link = Link(volume)
    with pytest.raises(ContractViolation, match="4 bytes"):
        await link.read(0, 4)
    with pytest.raises(ContractViolation):
        link.try_read(0, 4, unexpected)


async def test_a_read_may_come_in_several_buffers() -> None:
    volume = Broken()
    volume.buffers = volume.outcome = [b"ab", bytearray(b"c"), memoryview(b"d")]
    assert joined(await Link(volume).read(0, 4)) == b"abcd"
    assert Link(volume).try_read(0, 4, unexpected) is volume.outcome


@pytest.mark.parametrize("outcome", [None, True, "done", [b"abcd"]])
def test_an_attempt_without_a_proper_outcome_is_an_error(outcome: object) -> None:
    volume = Broken()
    volume.outcome = outcome
    with pytest.raises(ContractViolation, match="allowed: DONE, PENDING or DECLINED"):
        Link(volume).try_write(0, memoryview(b"abcd"), unexpected)


@pytest.mark.parametrize(
    "told",
    [
        [],
        [Extent(0, 99, ExtentKind.DATA)],
        [Extent(0, 101, ExtentKind.DATA)],
        [Extent(1, 99, ExtentKind.DATA)],
        [Extent(0, 50, ExtentKind.DATA), Extent(51, 49, ExtentKind.HOLE)],
        [Extent(0, 60, ExtentKind.DATA), Extent(50, 50, ExtentKind.HOLE)],
        [Extent(0, 0, ExtentKind.DATA), Extent(0, 100, ExtentKind.HOLE)],
        [Extent(0, 100, "data")],  # type: ignore[arg-type]
    ],
)
async def test_extents_that_do_not_cover_the_range_exactly_are_an_error(told: Sequence[Extent]) -> None:
    volume = Broken()
    volume.told = told
    with pytest.raises(ContractViolation):
        await Link(volume).extents(0, 100)


def test_a_pending_write_ends_exactly_once() -> None:
    volume, ends = Broken(), list[BaseException | None]()
    volume.outcome = PENDING
    assert Link(volume).try_write(0, memoryview(b"abcd"), ends.append) is PENDING
    assert ends == []
    volume.received[0](None)
    assert ends == [None]
    with pytest.raises(ContractViolation, match="twice"):
        volume.received[0](None)
    assert ends == [None]


def test_a_pending_read_of_another_length_ends_in_an_error() -> None:
    volume, ends = Broken(), list[tuple[BaseException | None, Buffers]]()
    volume.outcome = PENDING
    link = Link(volume)
    for _ in range(3):
        assert link.try_read(0, 4, lambda error, buffers: ends.append((error, buffers))) is PENDING
    volume.received[0](None, [b"abc"])
    volume.received[1](None, [b"ab", b"cd"])
    failure = OSError("gone")
    volume.received[2](failure, ())
    assert isinstance(ends[0][0], ContractViolation)
    assert [buffers for _, buffers in ends] == [(), [b"ab", b"cd"], ()]
    assert [error for error, _ in ends[1:]] == [None, failure]


@pytest.mark.parametrize("outcome", [DONE, DECLINED])
def test_a_late_call_for_a_finished_attempt_completes_nothing_else(outcome: Attempt) -> None:
    volume, ends = Broken(), list[BaseException | None]()
    link = Link(volume)
    volume.outcome = outcome
    assert link.try_write(0, memoryview(b"abcd"), unexpected) is outcome
    volume.outcome = PENDING
    assert link.try_write(0, memoryview(b"abcd"), ends.append) is PENDING
    with pytest.raises(ContractViolation, match="not PENDING"):
        volume.received[0](None)
    assert ends == []
    volume.received[1](None)
    assert ends == [None]


def test_a_call_from_inside_the_attempt_is_an_error() -> None:
    with pytest.raises(ContractViolation, match="from inside the attempt"):
        Link(Broken()).try_flush(unexpected)


def test_a_call_from_inside_the_attempt_whose_error_was_hidden_is_one_still() -> None:
    class Hiding(Broken):
        def try_flush(self, done: Done) -> Attempt:
            with pytest.raises(ContractViolation):
                done(None)
            return PENDING

    link = Link(Hiding())
    with pytest.raises(ContractViolation, match="from inside an attempt"):
        link.try_flush(unexpected)
    assert link.stats.in_flight == 0


def test_what_a_volume_raises_passes_through_untouched() -> None:
    class Raising(Broken):
        def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
            raise failure

    failure = OSError("gone")
    with pytest.raises(OSError, match="gone") as caught:
        Link(Raising()).try_write(0, memoryview(b"abcd"), unexpected)
    assert caught.value is failure


def test_a_link_shows_its_state() -> None:
    link = Link(MemoryVolume(SIZE), "layer 0 (rwl)")
    assert repr(link) == "<Link to layer 0 (rwl), open, size 10000, 0 in flight>"
    link.close()
    assert repr(link) == "<Link to layer 0 (rwl), closed, size 10000, 0 in flight>"
