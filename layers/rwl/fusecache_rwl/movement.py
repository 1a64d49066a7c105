"""The moves of one generation: from the log to the level below, several at once.

Owns how a move is read and written. It must not know which generation is next, nor when it counts as written back.

Every record is checked when it is read (:mod:`fusecache_rwl.proof`). One that is not what was written fails the log,
and nothing of its move goes below.

A crash, or a cancellation, leaves some of the moves below, in part or whole; all of them are still in the log.
"""

from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final, Protocol

import trio

from fusecache.api import DECLINED, DONE, Done, FusecacheError, Volume
from fusecache_rwl.failures import RecordDamaged
from fusecache_rwl.format import RecordType
from fusecache_rwl.log import Log
from fusecache_rwl.merge import Move
from fusecache_rwl.proof import Proven

_SLICE: Final = 256 << 20
"""Bytes of a discard or zeroes that go down at one go."""
_MOST: Final = 32 << 20
"""Bytes of data under way at once, whatever the depth: they are copies."""


class Pace(Protocol):
    """What whoever orders the moves says of how fast they go.

    Attributes:
        stopped: no further move is to begin.
    """

    @property
    def stopped(self) -> bool: ...

    async def pace(self, length: int) -> None:
        """Account for *length* bytes of data moved, and wait as long as it takes to keep to the rate."""


class Movement:
    """The moves of one generation under way."""

    def __init__(self, pool: Log, below: Volume, owner: Pace, nursery: trio.Nursery) -> None:
        self._log = pool
        self._proven = Proven(pool)
        self._below = below
        self._owner = owner
        self._nursery = nursery
        self._under_way = 0
        self._bytes = 0
        self._tasks: set[trio.CancelScope] = set()
        self._changed = trio.Event()
        self._failure: BaseException | None = None
        self._complete = True

    async def carry_out(self, moves: Iterable[Move | None], depth: int) -> bool:
        """Write all *moves* below, up to *depth* at once and about 32 MiB; return whether all were. Waits for those it
        began.

        Raises:
            FusecacheError, OSError: the first failure.
        """
        try:
            for move in moves:
                if move is None:
                    await trio.lowlevel.checkpoint()
                    continue
                while (self._under_way >= depth or self._bytes >= _MOST) and self._failure is None:
                    await self._wait()
                if self._failure is not None or self._owner.stopped:
                    self._complete = False
                    break
                await self._begin(move)
                if move.kind is RecordType.DATA:
                    await self._owner.pace(move.length)
            while self._under_way:
                await self._wait()
        finally:
            await self._end_tasks()
        if self._failure is not None:
            raise self._failure
        return self._complete

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        with trio.CancelScope(shield=True):
            while self._tasks:
                await self._wait()

    async def _wait(self) -> None:
        self._changed = trio.Event()
        await self._changed.wait()

    async def _begin(self, move: Move) -> None:
        self._under_way += 1
        if move.kind is not RecordType.DATA:
            self._start(self._ended, self._clear, move)
            return
        self._bytes += move.length
        ended = partial(self._data_ended, move.length)
        data = await self._gather(move, ended)
        if data is None:
            return
        try:
            outcome = self._below.try_write(move.offset, data, ended)
        except Exception as error:
            ended(error)
            return
        if outcome is DONE:
            ended(None)
            # Others run, too, where nothing ever waits.
            await trio.lowlevel.checkpoint()
        elif outcome is DECLINED:
            self._start(ended, self._write, move, data)

    def _ended(self, error: BaseException | None) -> None:
        self._under_way -= 1
        if error is not None and self._failure is None:
            self._failure = error
        self._changed.set()

    def _data_ended(self, length: int, error: BaseException | None) -> None:
        self._bytes -= length
        self._ended(error)

    def _start(self, ended: Done, work: Callable[..., Awaitable[None]], *args: object) -> None:
        task = trio.CancelScope()
        self._tasks.add(task)
        self._nursery.start_soon(self._run, task, ended, work, *args)

    async def _run(
        self, task: trio.CancelScope, ended: Done, work: Callable[..., Awaitable[None]], *args: object
    ) -> None:
        failure: Exception | None = None
        try:
            with task:
                await work(*args)
        except Exception as error:
            failure = error
        except BaseException:
            self._complete = False
            raise
        finally:
            self._tasks.discard(task)
            ended(failure)

    async def _write(self, move: Move, data: memoryview) -> None:
        await self._below.write(move.offset, data)

    async def _clear(self, move: Move) -> None:
        at, end = move.offset, move.offset + move.length
        clear = self._below.discard if move.kind is RecordType.DISCARD else self._below.write_zeroes
        while at < end:
            if self._owner.stopped:
                self._complete = False
                return
            length = min(_SLICE - at % _SLICE, end - at)
            await clear(at, length)
            at += length

    async def _gather(self, move: Move, ended: Done) -> memoryview | None:
        """Copy a move's data out of the log, each record checked, into memory that attempts may keep; None after an
        error."""
        data = bytearray(move.length)
        at = 0
        try:
            for length, position in move.pieces:
                piece = self._proven.read_now(position, length)
                data[at : at + length] = await self._proven.read(position, length) if piece is None else piece
                at += length
        except RecordDamaged as error:
            self._log.fail(error)
            ended(error)
            return None
        except (OSError, FusecacheError) as error:
            ended(error)
            return None
        return memoryview(data)
