"""What every conformance check is made of.

Owns how a broken promise is reported, how an operation is cancelled at each of its awaits, and how an attempt is
watched. It must not know which promises there are.

A check is an async function whose name is the promise it checks; it raises when the promise is broken.
"""

import itertools
import random
import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, TypeVar

import trio
import trio.testing

from fusecache.api.volume import DECLINED, DONE, PENDING, Attempt, Buffer, Buffers, Volume

TIMEOUT: Final = 30.0
"""Seconds of trio's clock after which a check is taken to hang."""
T = TypeVar("T")

_MOST_CHECKPOINTS: Final = 200


class Broken(AssertionError):
    """A promise of the contract is broken; the message names it and what was found."""


def expect(kept: bool, found: str) -> None:
    """Raise :class:`Broken` with *found* unless the promise is kept."""
    if not kept:
        raise Broken(found)


def expect_bytes(found: Buffer, expected: Buffer, offset: int = 0) -> None:
    """Compare bytes that were read from *offset*; the message names the first that differs."""
    expect(len(found) == len(expected), f"found {len(found)} bytes, expected {len(expected)}")
    if bytes(found) == bytes(expected):
        return
    at, (a, b) = next((i, pair) for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
    raise Broken(f"byte {offset + at} is {a:#04x}, expected {b:#04x}")


async def keep(
    check: Callable[[T], Awaitable[None]], make: Callable[[], AbstractAsyncContextManager[T]], circumstances: str = ""
) -> None:
    """Run one check on what *make* opens for it.

    Raises:
        Broken: the promise is broken; an exception that the check did not expect, or no end in time, counts as that.
    """
    promise = check.__name__.replace("_", " ") + (circumstances and f" ({circumstances})")
    try:
        with trio.fail_after(TIMEOUT):
            async with make() as subject:
                await check(subject)
    except Exception as error:
        cause = _first_cause(error)
        if isinstance(cause, trio.TooSlowError):
            detail = f"no end after {TIMEOUT:g} s"
        else:
            detail = str(cause) if isinstance(cause, Broken) else f"raised {cause!r}"
        raise Broken(f"{promise}: {detail}") from error


def _first_cause(error: BaseException) -> BaseException:
    """Look through groups for the one exception to report, a broken promise before any other."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [_first_cause(inner) for inner in error.exceptions]
    return next((cause for cause in causes if isinstance(cause, Broken)), causes[0])


def pattern(length: int, seed: int) -> bytes:
    """Return *length* bytes, none of them zero, that differ from one *seed* to the next."""
    return random.Random(seed).randbytes(length).replace(b"\0", b"\1")


async def settle() -> None:
    """Let everything run that can: until every task waits, for a thread or the clock at most."""
    await trio.testing.wait_all_tasks_blocked()


async def fetch(volume: Volume, offset: int, length: int) -> bytes:
    """Read with the asynchronous method and check what came back for its form."""
    return _one_piece(await volume.read(offset, length), length)


async def content(volume: Volume) -> bytes:
    """Read the whole volume."""
    return await fetch(volume, 0, volume.size) if volume.size else b""


async def put(volume: Volume, offset: int, data: bytes) -> None:
    """Write with the asynchronous method."""
    await volume.write(offset, memoryview(data))


def _one_piece(buffers: Buffers, length: int) -> bytes:
    for buffer in buffers:
        expect(isinstance(buffer, (bytes, bytearray, memoryview)), f"found a buffer of type {type(buffer).__name__}")
    data = b"".join(buffers)
    expect(len(data) == length, f"a read of {length} bytes returned {len(data)}")
    return data


class _Canceller(trio.abc.Instrument):
    """Cancels *scope* when *task* has reached its checkpoint number *step*, counted from one."""

    def __init__(self, task: trio.lowlevel.Task, scope: trio.CancelScope, step: int) -> None:
        self._task = task
        self._scope = scope
        self._left = step

    @property
    def fired(self) -> bool:
        return self._left <= 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task and self._left > 0:
            self._left -= 1
            if self.fired:
                self._scope.cancel()


async def _cancel_at(step: int, call: Callable[[], Awaitable[object]]) -> bool:
    """Run *call*, cancelled at its checkpoint number *step* (0: before it begins); False when it has fewer."""
    with trio.CancelScope() as scope:
        canceller = _Canceller(trio.lowlevel.current_task(), scope, step)
        if not step:
            scope.cancel()
        trio.lowlevel.add_instrument(canceller)
        try:
            await call()
        finally:
            trio.lowlevel.remove_instrument(canceller)
    return canceller.fired


async def cancelled_at_each_await(
    call: Callable[[], Awaitable[object]], look: Callable[[str], Awaitable[None]]
) -> None:
    """Run *call* again and again, cancelled before it begins, at its first await, at its second …, at last not at all.

    Awaits *look* after every run, with words for the message that say where it was cancelled.
    """
    for step in itertools.count():
        expect(step < _MOST_CHECKPOINTS, f"found more than {_MOST_CHECKPOINTS} awaits in one operation")
        fired = await _cancel_at(step, call)
        await look(f"cancelled at await {step}" if fired or not step else "not cancelled")
        if step and not fired:
            return


class AttemptWatch:
    """Makes one attempt and watches its end.

    Pass :meth:`done` for ``done`` and hand what the attempt returned to :meth:`returned`.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.error: BaseException | None = None
        self.buffers: Buffers = ()
        self._inside = True
        self._ended = trio.Event()
        self._thread = threading.get_ident()
        self._faults: list[str] = []

    def done(self, error: BaseException | None, buffers: Buffers = ()) -> None:
        """Receive the end of the attempt, and note what is wrong with how it comes."""
        self.calls += 1
        if threading.get_ident() != self._thread:
            self._faults.append("done was called on another thread than the loop's")
            return
        if self._inside:
            self._faults.append("done was called from inside the attempt")
        self.error, self.buffers = error, buffers
        self._ended.set()

    async def outcome(self, attempt: Callable[["AttemptWatch"], object], length: int | None = None) -> Attempt:
        """Make *attempt* and wait for its end; a read of *length* bytes leaves them in :attr:`buffers`.

        Raises what the attempt raised, or gave to ``done``.
        """
        try:
            outcome = self.begin(attempt, length)
        except Exception:
            await settle()
            expect(not self.calls, "the attempt raised and called done as well")
            raise
        return await self.end(outcome, length)

    def begin(self, attempt: Callable[["AttemptWatch"], object], length: int | None = None) -> Attempt:
        """Make *attempt* without waiting; a read that finished at once leaves a copy in :attr:`buffers`."""
        found = attempt(self)
        self._inside = False
        if found is PENDING or found is DECLINED:
            return PENDING if found is PENDING else DECLINED
        if length is None:
            expect(found is DONE, f"an attempt returned {found!r}, allowed: DONE, PENDING, DECLINED")
        else:
            expect(
                not isinstance(found, (Attempt, bytes, bytearray, memoryview)) and hasattr(found, "__iter__"),
                f"an attempt to read returned {found!r}, allowed: a sequence of buffers, PENDING, DECLINED",
            )
            self.buffers = [_one_piece(found, length)]  # type: ignore[arg-type]
        return DONE

    async def end(self, outcome: Attempt, length: int | None = None) -> Attempt:
        """Wait for the end of an attempt begun before, and see that ``done`` was called as promised."""
        if outcome is PENDING:
            with trio.move_on_after(TIMEOUT / 2):
                await self._ended.wait()
        await settle()
        self.verify(outcome)
        if self.error is not None:
            raise self.error
        if outcome is PENDING and length is not None:
            _one_piece(self.buffers, length)
        return outcome

    def verify(self, outcome: Attempt) -> None:
        """See that ``done`` was called once after PENDING and never otherwise, and how."""
        expect(not self._faults, "; ".join(self._faults))
        expected = 1 if outcome is PENDING else 0
        expect(self.calls == expected, f"done was called {self.calls} times after {outcome.name}, expected {expected}")
