"""Reads that are not answered by one piece of the log, or not at once.

Owns how an answer is put together from the log, from holes and from the level below. It must not know how anything is
written.

**Never stale.** The range guard above keeps changes of a range away while it is read. What the log has is copied
first, before anything is awaited, or pinned: clean data give way only to appends, and those happen on the loop. Only
then the gaps are read below; nothing can appear in them meanwhile.

**When the log has failed** nothing of it is returned unchecked (:mod:`fusecache_rwl.proof`). What was clean has become
a gap. What was being read from the log at that moment is read again.
"""

from collections.abc import Sequence

import trio

from fusecache.api import Buffer, Buffers, FusecacheError, ReadDone, Volume, joined
from fusecache_rwl.failures import RecordDamaged
from fusecache_rwl.index import GAP, ZERO
from fusecache_rwl.log import Log
from fusecache_rwl.proof import Proven


def read_on_thread(pool: Log, position: int, length: int, done: ReadDone) -> None:
    """Read one piece of the log that is not in memory, or is to be proven; its place is not used again before ``done``
    was called."""
    space = pool.space
    pin = space.pin(position)

    def told(error: BaseException | None, data: bytes) -> None:
        space.unpin(pin)
        pool.changed()
        done(error, () if error is not None else (data,))

    def ended(error: BaseException | None, data: bytes) -> None:
        if error is not None or pool.failure is None:
            told(error, data)
            return
        # What was read may not be what was written.
        try:
            Proven(pool).start(position, length, told)
        except FusecacheError as refused:
            told(refused, b"")

    try:
        if pool.failure is None:
            pool.medium.read(position, length, ended)
        else:
            Proven(pool).start(position, length, told)
    except BaseException:
        space.unpin(pin)
        raise


async def read(pool: Log, below: Volume, offset: int, length: int) -> Buffers:
    """Return exactly *length* bytes from *offset*. A cancellation has no effect.

    Raises:
        FusecacheError, OSError: with EIO when a piece cannot be had, or cannot be proven in a log that has failed.
    """
    working = pool.failure is None
    try:
        return await _read(pool, below, offset, length)
    except RecordDamaged:
        if not working:
            raise
    # The log has failed meanwhile. What it found clean is a gap by now.
    return await _read(pool, below, offset, length)


async def _read(pool: Log, below: Volume, offset: int, length: int) -> Buffers:
    runs = pool.index.lookup(offset, length)
    pieces: list[Buffer | None] = [None] * len(runs)
    later: list[tuple[int, int, int, int]] = []
    for number, (at, size, where) in enumerate(runs):
        if where == ZERO:
            pieces[number] = bytes(size)
        elif where != GAP and pool.failure is None and (piece := pool.medium.read_now(where, size)) is not None:
            pieces[number] = bytes(piece)
        else:
            later.append((number, at, size, where))
    if later:
        await _fetch(pool, below, later, pieces)
    return [piece for piece in pieces if piece is not None]


async def _fetch(
    pool: Log, below: Volume, later: Sequence[tuple[int, int, int, int]], pieces: list[Buffer | None]
) -> None:
    failures: list[BaseException] = []

    async def gap(number: int, at: int, size: int) -> None:
        try:
            pieces[number] = joined(await below.read(at, size))
        except Exception as error:
            failures.append(error)

    async def stored(number: int, size: int, ended: trio.Event, outcome: list[object]) -> None:
        await ended.wait()
        error, buffers = outcome
        if isinstance(error, BaseException):
            failures.append(error)
        else:
            assert isinstance(buffers, Sequence)
            pieces[number] = joined(buffers)

    async with trio.open_nursery() as nursery:
        # All pins are set before the first await.
        for number, _, size, where in later:
            if where != GAP:
                nursery.start_soon(stored, number, size, *_begin(pool, where, size))
        for number, at, size, where in later:
            if where == GAP:
                nursery.start_soon(gap, number, at, size)
    if failures:
        raise failures[0]


def _begin(pool: Log, position: int, length: int) -> tuple[trio.Event, list[object]]:
    ended = trio.Event()
    outcome: list[object] = []

    def done(error: BaseException | None, buffers: Buffers) -> None:
        outcome.extend((error, buffers))
        ended.set()

    read_on_thread(pool, position, length, done)
    return ended, outcome
