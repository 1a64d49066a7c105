"""A volume in front of another: the base of the kit's gates, faults and records.

Owns the forwarding of every method, spelled out, through two hooks. It must not know what a hook is for.
"""

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar, cast

import trio

from fusecache.api.ranges import Extent
from fusecache.api.volume import Attempt, Buffers, Done, ReadDone, ReadOutcome, Volume
from fusecache.testing.requests import Request

T = TypeVar("T")

Finish: TypeAlias = Callable[[BaseException | None, Any], None]
"""Receives the end of any attempt: the error, or None and the result."""


class InterposedVolume(Volume):
    """Forwards every request to *below* through :meth:`_through` or :meth:`_attempt`."""

    def __init__(self, below: Volume) -> None:
        self.below = below
        self.size = below.size
        self.alignment = below.alignment
        self.preferred_io = below.preferred_io
        self.read_only = below.read_only

    @abstractmethod
    async def _through(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        """Carry out an asynchronous request by awaiting *call*, at most once."""

    @abstractmethod
    def _attempt(
        self,
        request: Request,
        attempt: Callable[[Finish], Any],
        call: Callable[[], Awaitable[Any]],
        finish: Finish,
    ) -> Any:
        """Carry out an attempt: make *attempt* with a ``done``, or answer PENDING and :meth:`_run_later` *call*."""

    def _run_later(self, call: Callable[[], Awaitable[Any]], finish: Finish) -> None:
        """Run *call* in a task of its own and give its end to *finish*."""

        async def run() -> None:
            try:
                result = await call()
            except Exception as error:
                finish(error, ())
            else:
                finish(None, result)

        trio.lowlevel.spawn_system_task(run)

    async def read(self, offset: int, length: int) -> Buffers:
        return await self._through(Request("read", offset, length), partial(self.below.read, offset, length))

    async def write(self, offset: int, data: memoryview) -> None:
        await self._through(Request("write", offset, len(data)), partial(self.below.write, offset, data))

    async def write_zeroes(self, offset: int, length: int) -> None:
        await self._through(Request("write_zeroes", offset, length), partial(self.below.write_zeroes, offset, length))

    async def discard(self, offset: int, length: int) -> None:
        await self._through(Request("discard", offset, length), partial(self.below.discard, offset, length))

    async def flush(self) -> None:
        await self._through(Request("flush"), self.below.flush)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._through(Request("extents", offset, length), partial(self.below.extents, offset, length))

    async def resize(self, size: int) -> None:
        try:
            await self._through(Request("resize", 0, size), partial(self.below.resize, size))
        finally:
            self.size = self.below.size

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        outcome = self._attempt(
            Request("read", offset, length),
            partial(self.below.try_read, offset, length),
            partial(self.below.read, offset, length),
            done,
        )
        return cast(ReadOutcome, outcome)

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        return self._attempt_change(
            Request("write", offset, len(data)),
            partial(self.below.try_write, offset, data),
            partial(self.below.write, offset, data),
            done,
        )

    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        return self._attempt_change(
            Request("write_zeroes", offset, length),
            partial(self.below.try_write_zeroes, offset, length),
            partial(self.below.write_zeroes, offset, length),
            done,
        )

    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        return self._attempt_change(
            Request("discard", offset, length),
            partial(self.below.try_discard, offset, length),
            partial(self.below.discard, offset, length),
            done,
        )

    def try_flush(self, done: Done) -> Attempt:
        return self._attempt_change(Request("flush"), self.below.try_flush, self.below.flush, done)

    def _attempt_change(
        self,
        request: Request,
        attempt: Callable[[Done], Attempt],
        call: Callable[[], Awaitable[None]],
        done: Done,
    ) -> Attempt:
        outcome = self._attempt(
            request,
            lambda finish: attempt(lambda error: finish(error, None)),
            call,
            lambda error, _: done(error),
        )
        return cast(Attempt, outcome)
