"""Reads that are not answered by one piece of the log, or not at once.

Owns how an answer is put together from the log, from holes and from the level below. It must not know how anything is
written.

**Never stale.** The range guard above keeps changes of a range away while it is read. What the log has is copied
first, before anything is awaited, or pinned: clean data give way only to appends, and those happen on the loop. Only
then the gaps are read below; nothing can appear in them meanwhile.
"""

from collections.abc import Sequence

import trio

from fusecache.api import Buffer, Buffers, ReadDone, Volume, joined
from fusecache_rwl.index import GAP, ZERO
from fusecache_rwl.log import Log


def read_on_thread(pool: Log, position: int, length: int, done: ReadDone) -> None:
    """Read one piece of the log that is not in memory; its place is not used again before ``done`` was called."""
    space = pool.space
    pin = space.pin(position)

    def ended(error: BaseException | None, data: bytes) -> None:
        space.unpin(pin)
        pool.changed()
        if error is None and pool.failure is not None:
            # What was read may not be what was written.
            error = pool.refusal()
        done(error, () if error is not None else (data,))

    try:
        pool.medium.read(position, length, ended)
    except BaseException:
        space.unpin(pin)
        raise


async def read(pool: Log, below: Volume, offset: int, length: int) -> Buffers:
    """Return exactly *length* bytes from *offset*. A cancellation has no effect.

    Raises:
        FusecacheError, OSError: with EIO when a piece cannot be had, and when the log has failed.
    """
    runs = pool.index.lookup(offset, length)
    if pool.failure is not None and any(where >= 0 for _, _, where in runs):
        raise pool.refusal()
    pieces: list[Buffer | None] = [None] * len(runs)
    later: list[tuple[int, int, int, int]] = []
    for number, (at, size, where) in enumerate(runs):
        if where == ZERO:
            pieces[number] = bytes(size)
        elif where != GAP and (piece := pool.medium.read_now(where, size)) is not None:
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
        with trio.CancelScope(shield=True):
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
