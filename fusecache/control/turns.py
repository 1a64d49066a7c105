"""Long work on the event loop, done in steps.

Owns how long the loop may be kept from other tasks. It must not know the work.
"""

import time
from collections.abc import Iterable
from typing import Final, TypeVar

import trio

T = TypeVar("T")

_TURN_NS: Final = 500_000
"""Half a millisecond: some tens of requests, but more than a turn of the other tasks costs."""


async def in_turns(steps: Iterable[T]) -> list[T]:
    """Take everything of *steps*, and let other tasks have their turn after each half of a millisecond.

    What is read at two steps may be of two times. A cancellation ends it between two steps.
    """
    now = time.perf_counter_ns
    taken: list[T] = []
    until = now() + _TURN_NS
    for one in steps:
        taken.append(one)
        if now() > until:
            await trio.lowlevel.checkpoint()
            until = now() + _TURN_NS
    return taken
