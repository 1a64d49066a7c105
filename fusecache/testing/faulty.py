"""A volume that fails, dawdles or hangs where the test says so.

Owns when a fault strikes. It must not know who survives it.
"""

import errno
import math
import os
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import trio

from fusecache.api.ranges import Span, overlaps
from fusecache.api.volume import PENDING, Volume
from fusecache.testing.interposed import Finish, InterposedVolume
from fusecache.testing.requests import OPERATIONS, RANGED, Operation, Request

T = TypeVar("T")

HANG = math.inf
"""A delay without end; only a cancellation ends it."""


def _io_error() -> Exception:
    return OSError(errno.EIO, os.strerror(errno.EIO))


@dataclass(eq=False)
class Fault:
    """What strikes which requests.

    Attributes:
        operations: those it strikes.
        error: raised in place of the request; None lets the request go on after the delay.
        span: strikes only requests that touch it; None is the whole volume.
        skip: how many matching requests pass unharmed at first.
        count: how many are struck after those; None is no limit.
        delay: seconds of trio's clock before the error, or before the request; :data:`HANG` never ends.
        hits: how many have been struck.
    """

    operations: Collection[Operation] = OPERATIONS
    error: Exception | None = field(default_factory=_io_error)
    span: Span | None = None
    skip: int = 0
    count: int | None = None
    delay: float = 0.0
    hits: int = 0

    def matches(self, request: Request) -> bool:
        """Say whether *request* is one of those the fault is about."""
        if request.operation not in self.operations:
            return False
        if self.span is None or request.operation not in RANGED:
            return True
        return overlaps(self.span, Span(request.offset, request.end))

    def strikes(self) -> bool:
        """Count one matching request and say whether it is struck."""
        if self.skip:
            self.skip -= 1
            return False
        if self.count is not None and self.hits >= self.count:
            return False
        self.hits += 1
        return True


class FaultyVolume(InterposedVolume):
    """Strikes requests with the faults injected, the first that matches and strikes; others pass untouched.

    An attempt that is struck without delay raises; any other that a fault is about is PENDING.
    """

    def __init__(self, below: Volume) -> None:
        super().__init__(below)
        self.faults: list[Fault] = []

    def inject(self, fault: Fault) -> Fault:
        """Add a fault and return it."""
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """Forget all faults. Requests that hang already go on hanging."""
        self.faults.clear()

    async def _through(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        fault = self._struck_by(request)
        if fault is None:
            return await call()
        return await _suffer(fault, call)

    def _attempt(
        self,
        request: Request,
        attempt: Callable[[Finish], Any],
        call: Callable[[], Awaitable[Any]],
        finish: Finish,
    ) -> Any:
        if not any(fault.matches(request) for fault in self.faults):
            return attempt(finish)
        fault = self._struck_by(request)
        if fault is not None and fault.error is not None and not fault.delay:
            raise fault.error
        # Never tried below: an attempt declined there would come again and be counted twice.
        self._run_later(call if fault is None else partial(_suffer, fault, call), finish)
        return PENDING

    def _struck_by(self, request: Request) -> Fault | None:
        return next((fault for fault in self.faults if fault.matches(request) and fault.strikes()), None)


async def _suffer(fault: Fault, call: Callable[[], Awaitable[T]]) -> T:
    await trio.sleep(fault.delay)
    if fault.error is not None:
        raise fault.error
    return await call()
