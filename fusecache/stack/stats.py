"""The figures of one hop of a stack.

Owns what is counted, and how. It must not know the volumes, nor who shows the figures.
"""

import enum
from time import perf_counter_ns
from types import TracebackType
from typing import Final

LATENCY_BUCKETS: Final = 64
"""As many as a 64-bit count of nanoseconds has bit lengths: no latency falls outside."""


class Op(enum.IntEnum):
    """The operations that a link measures."""

    READ = 0
    WRITE = 1
    ZERO = 2
    DISCARD = 3
    FLUSH = 4


class OpStats:
    """The figures of one operation since the link was made.

    Attributes:
        bytes: bytes of the requests that succeeded.
        errors: requests that ended in an exception; a cancellation is none.
        latency: how many requests, failed ones included, took a time whose ``bit_length`` in nanoseconds is the
            index: bucket *n* holds ``[2**(n-1), 2**n)`` ns.
    """

    __slots__ = ("bytes", "errors", "latency")

    def __init__(self) -> None:
        self.bytes = 0
        self.errors = 0
        self.latency = [0] * LATENCY_BUCKETS

    @property
    def count(self) -> int:
        """Requests that ended, failed ones included; declined attempts and cancelled requests are not counted."""
        return sum(self.latency)

    def succeeded(self, length: int, start: int) -> None:
        """Account for a request of *length* bytes that began at ``perf_counter_ns`` *start* and succeeds now."""
        self.bytes += length
        self.latency[(perf_counter_ns() - start).bit_length()] += 1

    def failed(self, start: int) -> None:
        """Account for a request that began at ``perf_counter_ns`` *start* and fails now."""
        self.errors += 1
        self.latency[(perf_counter_ns() - start).bit_length()] += 1


class LinkStats:
    """The figures of one link.

    Attributes:
        in_flight: pending attempts and asynchronous calls that have not ended.
    """

    __slots__ = ("_operations", "in_flight")

    def __init__(self) -> None:
        self._operations = tuple(OpStats() for _ in Op)
        self.in_flight = 0

    def __getitem__(self, op: Op) -> OpStats:
        return self._operations[op]


class Timed:
    """Measures one asynchronous call; a cancelled one counts as neither success nor error."""

    __slots__ = ("_length", "_op", "_start", "_stats")

    def __init__(self, stats: LinkStats, op: OpStats, length: int) -> None:
        self._stats, self._op, self._length = stats, op, length

    def __enter__(self) -> None:
        self._stats.in_flight += 1
        self._start = perf_counter_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stats.in_flight -= 1
        if error is None:
            self._op.succeeded(self._length, self._start)
        elif isinstance(error, Exception):
            self._op.failed(self._start)
