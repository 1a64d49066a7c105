"""The one seam between volumes: every hop of a stack goes through a :class:`Link`.

Owns the checks of the volume contract, on caller and callee alike, and the measurement of each hop. It must not know
what the volumes are, nor who stacks them.

An attempt that is DONE is the hot path: it allocates one small object, and its branches are those of a good request.
Whatever may be wrong is first noticed by one comparison and then explained by a slow method.
"""

from collections.abc import Sequence
from time import perf_counter_ns
from typing import Any, NoReturn, cast

from fusecache.api.errors import ContractViolation, Misaligned, OutOfRange, VolumeClosed, VolumeReadOnly
from fusecache.api.ranges import Extent, ExtentKind, is_aligned
from fusecache.api.volume import (
    DECLINED,
    DONE,
    PENDING,
    Attempt,
    Buffers,
    Done,
    ReadDone,
    ReadOutcome,
    Volume,
)
from fusecache.stack.stats import LinkStats, Op, OpStats, Timed

__all__ = ["Link", "LinkStats", "Op", "OpStats"]


class _Pending:
    """The ``done`` a volume receives with one attempt; armed once the attempt turns out to be PENDING.

    Each attempt has its own, so that a volume which calls one late, or twice, completes no other request.
    """

    # Class attributes, not set in __init__: an attempt that is DONE pays for the bare allocation only.
    called = False
    link: "Link | None" = None
    op: OpStats
    length: int
    start: int
    done: Any

    def arm(self, link: "Link", op: OpStats, length: int, start: int, done: Any) -> None:
        """Start to wait for the call; *done* is told the end.

        Raises:
            ContractViolation: the call has come already, from inside the attempt.
        """
        if self.called:
            op.failed(start)
            raise ContractViolation(f"{link}: done was called from inside an attempt that then was PENDING")
        self.link, self.op, self.length, self.start, self.done = link, op, length, start, done
        link.stats.in_flight += 1

    def __call__(self, error: BaseException | None) -> None:
        link = self.link
        if error is not None or link is None or self.called:
            self._end(error)
        else:
            # What _end() does, without the calls.
            self.called = True
            link.stats.in_flight -= 1
            op = self.op
            op.bytes += self.length
            op.latency[(perf_counter_ns() - self.start).bit_length()] += 1
        self.done(error)

    def _end(self, error: BaseException | None) -> None:
        """Account for the end of the request.

        Raises:
            ContractViolation: the attempt was not PENDING, or its end was told before.
        """
        again, self.called = self.called, True
        link = self.link
        if link is None:
            raise ContractViolation("done was called for an attempt that was not PENDING, or from inside the attempt")
        if again:
            raise ContractViolation(f"{link}: done was called twice for one attempt")
        link.stats.in_flight -= 1
        if error is None:
            self.op.succeeded(self.length, self.start)
        else:
            self.op.failed(self.start)


class _PendingRead(_Pending):
    """The same for an attempt to read."""

    def __call__(self, error: BaseException | None, buffers: Buffers = ()) -> None:
        if error is None and self.link is not None and (total := _total(buffers)) != self.length:
            error, buffers = ContractViolation(f"{self.link}: a read of {self.length} bytes returned {total}"), ()
        self._end(error)
        self.done(error, buffers)


class Link(Volume):
    """The checked, measured hop to one volume; itself a volume with the same semantics.

    On top of what the volume raises, every method raises:
        VolumeClosed: the link has been closed.
        OutOfRange: the request does not lie inside ``[0, size)`` or is empty.
        Misaligned: the request does not keep to ``alignment``.
        VolumeReadOnly: the request would change a read-only volume.
        ContractViolation: the volume answered what the contract forbids: a read of another length, extents that do
            not cover the range, an attempt without a proper outcome. A broken answer is never passed on.

    Refused requests do not reach the volume and are not in the figures. ``done`` of an attempt is the link's own;
    calling it twice, or for an attempt that is not PENDING, raises ContractViolation in the volume that calls it.

    Attributes:
        name: says in messages which hop this is.
        stats: the hop's figures.
    """

    def __init__(self, volume: Volume, name: str | None = None) -> None:
        self.name = type(volume).__name__ if name is None else name
        self.stats = LinkStats()
        self.alignment = volume.alignment
        self.preferred_io = volume.preferred_io
        self.read_only = volume.read_only
        self._volume = volume
        self._open = True
        self._adopt_size()
        self._mask = volume.alignment - 1
        self._reads, self._writes, self._zeroes, self._discards, self._flushes = (self.stats[op] for op in Op)
        self._try_read = volume.try_read
        self._try_write = volume.try_write
        self._try_flush = volume.try_flush

    def __repr__(self) -> str:
        state = "open" if self._open else "closed"
        return f"<Link to {self.name}, {state}, size {self.size}, {self.stats.in_flight} in flight>"

    def close(self) -> None:
        """Refuse every later call. What is in flight ends as it would have; the volume itself stays as it is."""
        self._open = False
        self._adopt_size()

    # ---- attempts ----

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        """Attempt :meth:`read`; return the buffers when finished at once."""
        if offset < 0 or length < 1 or offset + length > self._read_limit or (offset | length) & self._mask:
            self._check(offset, length)
        pending = _PendingRead()
        start = perf_counter_ns()
        try:
            outcome = self._try_read(offset, length, pending)
        except BaseException:
            self._reads.failed(start)
            raise
        if outcome is PENDING or outcome is DECLINED:
            return cast(ReadOutcome, self._unfinished(outcome, pending, self._reads, length, start, done))
        took = perf_counter_ns() - start
        reads = self._reads
        try:
            good = len(outcome) == 1 and len(outcome[0]) == length
        except TypeError:
            good = False
        if not good:
            self._check_buffers(outcome, length, start)
        reads.bytes += length
        reads.latency[took.bit_length()] += 1
        return outcome

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        """Attempt :meth:`write`."""
        length = data.nbytes
        if offset < 0 or length < 1 or offset + length > self._write_limit or (offset | length) & self._mask:
            self._check_change(offset, length)
        pending = _Pending()
        start = perf_counter_ns()
        try:
            outcome = self._try_write(offset, data, pending)
        except BaseException:
            self._writes.failed(start)
            raise
        if outcome is DONE:
            took = perf_counter_ns() - start
            writes = self._writes
            writes.bytes += length
            writes.latency[took.bit_length()] += 1
            return outcome
        if outcome is PENDING and not pending.called:
            # What arm() does, without the calls.
            pending.link, pending.op, pending.length, pending.start, pending.done = (
                self,
                self._writes,
                length,
                start,
                done,
            )
            self.stats.in_flight += 1
            return outcome
        return self._unfinished(outcome, pending, self._writes, length, start, done)

    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        """Attempt :meth:`write_zeroes`."""
        self._check_change(offset, length)
        return self._attempt(self._zeroes, length, done, self._volume.try_write_zeroes, offset, length)

    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        """Attempt :meth:`discard`."""
        self._check_change(offset, length)
        return self._attempt(self._discards, length, done, self._volume.try_discard, offset, length)

    def try_flush(self, done: Done) -> Attempt:
        """Attempt :meth:`flush`."""
        if not self._open:
            self._check_open()
        pending = _Pending()
        start = perf_counter_ns()
        try:
            outcome = self._try_flush(pending)
        except BaseException:
            self._flushes.failed(start)
            raise
        if outcome is DONE:
            self._flushes.latency[(perf_counter_ns() - start).bit_length()] += 1
            return outcome
        return self._unfinished(outcome, pending, self._flushes, 0, start, done)

    # ---- asynchronous methods ----

    async def read(self, offset: int, length: int) -> Buffers:
        """Return buffers that together hold exactly *length* bytes from *offset*. A cancellation has no effect."""
        self._check(offset, length)
        with Timed(self.stats, self._reads, length):
            buffers = await self._volume.read(offset, length)
            if _total(buffers) != length:
                self._wrong_length(buffers, length)
            return buffers

    async def write(self, offset: int, data: memoryview) -> None:
        """Write all of *data* at *offset*. A cancellation leaves the range with old and new bytes in any mixture."""
        self._check_change(offset, data.nbytes)
        with Timed(self.stats, self._writes, data.nbytes):
            await self._volume.write(offset, data)

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zeroes, keeping its space. A cancellation may leave it done in part."""
        self._check_change(offset, length)
        with Timed(self.stats, self._zeroes, length):
            await self._volume.write_zeroes(offset, length)

    async def discard(self, offset: int, length: int) -> None:
        """Make the range read as zeroes and free its space. A cancellation may leave it done in part."""
        self._check_change(offset, length)
        with Timed(self.stats, self._discards, length):
            await self._volume.discard(offset, length)

    async def flush(self) -> None:
        """Return when everything acknowledged before the call survives loss of power."""
        self._check_open()
        with Timed(self.stats, self._flushes, 0):
            await self._volume.flush()

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Describe exactly ``[offset, offset + length)``. Not measured."""
        self._check(offset, length)
        extents = await self._volume.extents(offset, length)
        at = offset
        for extent in extents:
            if extent.offset != at or extent.length < 1 or not isinstance(extent.kind, ExtentKind):
                raise ContractViolation(f"{self}: expected an extent from {at}, found {extent}")
            at = extent.end
        if at != offset + length:
            raise ContractViolation(f"{self}: extents of {length} bytes at {offset} end at {at}")
        return extents

    async def resize(self, size: int) -> None:
        """Set the length. After an error or a cancellation :attr:`size` is whatever the volume has. Not measured."""
        self._check_open()
        if self.read_only:
            raise VolumeReadOnly(f"{self}: cannot be resized, it is read-only")
        if size < 0:
            raise OutOfRange(f"{self}: found size {size}, allowed: 0 or more")
        try:
            await self._volume.resize(size)
        finally:
            self._adopt_size()
        if self.size != size:
            raise ContractViolation(f"{self}: has size {self.size} after a resize to {size}")

    # ---- checks ----

    def _adopt_size(self) -> None:
        """Take over the volume's size, and the limits that make the fast checks fail where a request is refused."""
        self.size = self._volume.size
        self._read_limit = self.size if self._open else -1
        self._write_limit = -1 if self.read_only else self._read_limit

    def _check_open(self) -> None:
        if not self._open:
            raise VolumeClosed(f"{self}: no request is allowed any more")

    def _check(self, offset: int, length: int) -> None:
        self._check_open()
        size = self.size
        if offset < 0 or length < 1 or offset + length > size:
            raise OutOfRange(f"{self}: found {length} bytes at {offset}, allowed: at least one byte inside [0, {size})")
        if not is_aligned(offset, length, self.alignment, size):
            raise Misaligned(f"{self}: found {length} bytes at {offset}, allowed: multiples of {self.alignment}")

    def _check_change(self, offset: int, length: int) -> None:
        self._check(offset, length)
        if self.read_only:
            raise VolumeReadOnly(f"{self}: found a change of {length} bytes at {offset}, allowed: reads and flushes")

    def _check_buffers(self, outcome: Any, length: int, start: int) -> None:
        if _total(outcome) != length:
            self._reads.failed(start)
            self._wrong_length(outcome, length)

    def _wrong_length(self, outcome: Any, length: int) -> NoReturn:
        total = _total(outcome)
        found = f"{total} bytes" if total >= 0 else f"{outcome!r}, which is no sequence of buffers"
        raise ContractViolation(f"{self}: a read of {length} bytes returned {found}")

    def _attempt(self, op: OpStats, length: int, done: Any, method: Any, *args: Any) -> Attempt:
        """Make an attempt that is off the hottest path."""
        pending = _Pending()
        start = perf_counter_ns()
        try:
            outcome: object = method(*args, pending)
        except BaseException:
            op.failed(start)
            raise
        if outcome is DONE:
            op.succeeded(length, start)
            return DONE
        return self._unfinished(outcome, pending, op, length, start, done)

    def _unfinished(
        self, outcome: object, pending: _Pending, op: OpStats, length: int, start: int, done: Any
    ) -> Attempt:
        """Deal with an attempt that did not finish at once."""
        if outcome is PENDING:
            pending.arm(self, op, length, start, done)
            return PENDING
        if outcome is DECLINED:
            return DECLINED
        op.failed(start)
        raise ContractViolation(f"{self}: an attempt returned {outcome!r}, allowed: DONE, PENDING or DECLINED")


def _total(buffers: Any) -> int:
    """Return how many bytes *buffers* hold together; -1 where it is no sequence of buffers."""
    try:
        return sum(memoryview(buffer).nbytes for buffer in buffers)
    except TypeError:
        return -1
