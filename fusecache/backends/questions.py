"""Calls that only look, and whose answer may come too late.

Owns what becomes of a call that nobody waits for any more. It must not know what is asked.
"""

from collections.abc import Callable
from typing import Any

import trio

from fusecache.backends.workers import Lane


async def ask(lane: Lane, look: Callable[..., Any], *args: Any) -> Any:
    """Run ``look(*args)``, which changes nothing, on a thread and return its result, or raise what it raised.

    Unlike :meth:`Lane.call`, a cancellation does not wait for a call that hangs: its answer is dropped, and a call
    that has not begun by then is never made.
    """
    ended = trio.Event()
    outcome: list[Any] = []
    wanted = True

    def answer() -> Any:
        return look(*args) if wanted else None

    def finish(error: BaseException | None, result: Any) -> None:
        outcome.extend((error, result))
        ended.set()

    lane.fetch(finish, answer)
    try:
        await ended.wait()
    except trio.Cancelled:
        wanted = False
        raise
    error, result = outcome
    if error is not None:
        raise error
    return result
