"""Every check of attempts catches a volume that breaks its promise."""

import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import pytest
import trio

from fusecache.api import DECLINED, DONE, PENDING, Attempt, Done, ReadDone, ReadOutcome, Volume
from fusecache.testing import MemoryVolume, check_volume
from fusecache.testing import attempt_checks as checks
from fusecache.testing.harness import keep
from tests.contract.broken import opened

SIZE: Final = 32768 + 517


def soon(call: Callable[[], object]) -> None:
    """Have *call* called at the loop's next turn."""
    trio.lowlevel.current_trio_token().run_sync_soon(call)


class DoneWithoutEffect(MemoryVolume):
    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        return DONE


class CallsDoneTwice(MemoryVolume):
    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.content.write(offset, data)
        soon(partial(done, None))
        soon(partial(done, None))
        return PENDING


class CallsDoneFromInside(MemoryVolume):
    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.content.write(offset, data)
        done(None)
        return PENDING


class CallsDoneAfterDone(MemoryVolume):
    def try_flush(self, done: Done) -> Attempt:
        soon(partial(done, None))
        return DONE


class CallsDoneOnAThread(MemoryVolume):
    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        self.content.write(offset, bytes(length))
        thread = threading.Thread(target=done, args=(None,))
        thread.start()
        thread.join()
        return PENDING


class NeverCallsDone(MemoryVolume):
    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        return PENDING


class ReturnsNothing(MemoryVolume):
    def try_flush(self, done: Done) -> Attempt:
        return None  # type: ignore[return-value]


class DeclinesTooLate(MemoryVolume):
    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.content.write(offset, data[:1])
        return DECLINED


class SpillsOneByte(MemoryVolume):
    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        self.content.punch(offset, min(length + 1, self.size - offset))
        return DONE


class SharesItsStorage(MemoryVolume):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.shared = bytearray(size)

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        self.shared[:] = self.content.read(0, self.size)
        view = memoryview(self.shared)[offset : offset + length]
        soon(partial(done, None, [view]))
        return PENDING


class CopiesTooLate(MemoryVolume):
    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.late = partial(self.content.write, offset, data)
        return DONE

    async def flush(self) -> None:
        self.late()


class OneSlotForAll(MemoryVolume):
    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.slot = offset, data
        soon(lambda: (self.content.write(*self.slot), done(None)))  # type: ignore[func-returns-value]
        return PENDING


class OnePlaceForBoth(MemoryVolume):
    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.place = offset
        soon(lambda: (self.content.write(self.place, data), done(None)))  # type: ignore[func-returns-value]
        return PENDING

    async def write(self, offset: int, data: memoryview) -> None:
        self.place = offset
        await super().write(offset, data)


BROKEN: Final[Sequence[tuple[Callable[[Volume], Awaitable[None]], type[MemoryVolume], str]]] = (
    (checks.attempts_read_and_change_like_the_asynchronous_methods, DoneWithoutEffect, "byte"),
    (checks.done_is_called_once_after_pending_and_never_otherwise, CallsDoneTwice, "try_write: done was called 2"),
    (checks.done_is_called_once_after_pending_and_never_otherwise, CallsDoneFromInside, "try_write: .* from inside"),
    (checks.done_is_called_once_after_pending_and_never_otherwise, CallsDoneAfterDone, "try_flush: done was called 1"),
    (checks.done_is_called_once_after_pending_and_never_otherwise, CallsDoneOnAThread, "try_write_zeroes: .* thread"),
    (checks.done_is_called_once_after_pending_and_never_otherwise, NeverCallsDone, "try_read: done was called 0"),
    (checks.done_is_called_once_after_pending_and_never_otherwise, ReturnsNothing, "try_flush: .* returned None"),
    (checks.a_declined_attempt_has_no_effect, DeclinesTooLate, "try_write returned DECLINED"),
    (checks.an_attempt_stays_inside_its_range, SpillsOneByte, "try_discard of"),
    (checks.pending_read_buffers_belong_to_the_caller, SharesItsStorage, "byte 0"),
    (checks.the_data_of_an_attempt_may_be_changed_after_its_end, CopiesTooLate, "byte 0"),
    (checks.attempts_that_do_not_overlap_run_together, OneSlotForAll, "byte 0"),
    (checks.attempts_and_asynchronous_requests_run_together, OnePlaceForBoth, "byte"),
)


@pytest.mark.parametrize(("check", "broken", "found"), BROKEN, ids=[broken.__name__ for _, broken, _ in BROKEN])
async def test_a_check_catches_a_broken_volume(
    check: Callable[[Volume], Awaitable[None]],
    broken: type[MemoryVolume],
    found: str,
    autojump_clock: trio.testing.MockClock,
) -> None:
    promise = check.__name__.replace("_", " ")
    with pytest.raises(AssertionError, match=f"^{promise}: {found}"):
        await keep(check, partial(opened, broken, SIZE))


@pytest.mark.parametrize("broken", [broken for _, broken, _ in BROKEN])
async def test_check_volume_lets_no_broken_volume_pass(
    broken: type[MemoryVolume], autojump_clock: trio.testing.MockClock
) -> None:
    with pytest.raises(AssertionError, match=r"\(size \d+\): "):
        await check_volume(partial(opened, broken))


def test_every_check_is_seen_to_fail() -> None:
    assert {check for check, _, _ in BROKEN} == set(checks.ATTEMPT_CHECKS)
