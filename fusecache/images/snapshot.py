"""Making a snapshot of an open image, and writing an image back before a change that needs all of it below.

Owns what is written back when, and how long changes are held back for it. It must not know control commands, nor how a
backend makes snapshots.

A snapshot holds at least every change that was acknowledged before it was asked for, and is the image as it was at one
instant: at that instant no change was under way and no layer was dirty. Of a process killed, or power lost, after each
step:

====  ==========================================  ======================================================================
step                                              what is true
====  ==========================================  ======================================================================
1     all is written back, and nobody waits       no snapshot; what is not below is in the layers, as ever
2     new changes wait; those that were begun     the same
      have ended and been answered
3     what came since is written back, and        no snapshot; all that was ever acknowledged is durable in the backend
      durable below
4     the backend makes the snapshot              the snapshot, whole, or none; nobody was told
5     changes go on, and the result is told       the snapshot
====  ==========================================  ======================================================================

A write-back that fails ends it before step 4.

**How long changes wait.** Step 1 is repeated while that leaves much less to be written back. Steps 2 and 3 take a
second at the most; then those who wait get through, and it is tried again. So a writer that outruns the write-back is
slowed down to what it has under way at once for each second of write-back. Where many tries do not suffice, the next
ones are twice as long. Where nothing was moved at all the backend is away, and step 1 comes again, which waits for it
and holds nobody up. Step 4 takes as long as the backend gives itself
(:meth:`fusecache.api.BackendImage.make_snapshot`); that it answers is seen before step 2. Reads and flushes never wait.
"""

import itertools
import math
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from fusecache.stack.assemble import Stack

_LITTLE: Final = 0.1
"""Seconds: what is written back in less is not worth another time."""

_HOLD: Final = 1.0
"""Seconds that changes are held back at once; twice as many after each so many tries:"""
_TRIES: Final = 16


async def make_snapshot(stack: Stack, name: str, changes_held: Callable[[], AbstractAsyncContextManager[None]]) -> None:
    """Write everything back and have the backend make the snapshot *name*.

    A cancellation leaves the snapshot made or not; see :meth:`fusecache.api.BackendImage.make_snapshot`.

    Args:
        changes_held: entered when no change is under way, and none begins until it is left.

    Raises:
        FusecacheError, OSError: what the backend's ``make_snapshot`` raises, or what a write-back failed with; there
            is no snapshot.
    """
    # What is refused anyway costs no write-back.
    await stack.image.check_snapshot(name)
    await written_back(stack)
    for tried in itertools.count():
        # A backend that does not answer is found out before anybody waits for it.
        await stack.image.info()
        before = _moved(stack)
        with trio.move_on_after(_HOLD * 2 ** (tried // _TRIES)) as patience:
            async with changes_held():
                await stack.writeback()
                # What the backend has been asked for cannot be taken back.
                patience.deadline = math.inf
                await stack.image.make_snapshot(name)
                return
        if _moved(stack) == before:
            await written_back(stack)


async def written_back(stack: Stack) -> None:
    """Write everything back, again and again while that leaves much less; nobody is held up.

    Raises:
        FusecacheError, OSError: what a write-back failed with; what is not written back is still dirty.
    """
    took = math.inf
    again = True
    while again:
        begin, last = trio.current_time(), took
        await stack.writeback()
        took = trio.current_time() - begin
        again = is_worth_another(took, last)


def is_worth_another(took: float, last: float) -> bool:
    """Say whether another write-back would leave much less than one of *took* seconds did, after one of *last*.

    What came while it went on takes as much less time as it took less than the one before. Pure.
    """
    return took > _LITTLE and took < last / 2


def _moved(stack: Stack) -> int:
    """Return how many bytes were written back since the image was opened."""
    return sum(layer.layer.status().writeback_bytes for layer in stack.layers)
