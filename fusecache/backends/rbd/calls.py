"""Blocking calls of the bindings, whose callers may give them up.

Owns what becomes of a call that nobody waits for any more: one that has not begun is never made, and what one that has
begun brings too late is undone. It must not know what is called.
"""

import logging
import math
import threading
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import trio

from fusecache.api import FusecacheError
from fusecache.api.errors import VolumeClosed
from fusecache.backends.workers import Lane

log = logging.getLogger(__name__)

PATIENCE: Final = 3.0
"""How long a cancellation, or the end of a client, waits for what cannot be taken back, in seconds."""

Undo: TypeAlias = Callable[[Any], object]

Keep: TypeAlias = Callable[[], Callable[[], None]]
"""Keeps alive what a call needs, until the function it returned is called, on any thread and maybe twice."""


async def on_thread(
    lane: Lane,
    work: Callable[..., Any],
    *args: Any,
    keep: Keep,
    within: float = math.inf,
    patience: float = 0.0,
    undo: Undo | None = None,
) -> Any:
    """Run ``work(*args)`` on a thread of *lane* and return its result, or raise what it raised.

    It returns, and the cancellation is left to the caller's next await, where the call ended just before it was given
    up: so a result is either returned or undone.

    Args:
        keep: what it keeps is let go when the thread is done with the call, and with undoing it.
        within: seconds after which the call is given up.
        patience: seconds that a cancellation waits for a call that has begun.
        undo: called on the thread with the result of a call that ended after it was given up.

    Raises:
        FusecacheError: EIO, given up after *within*.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    release = keep()
    call = _Call(work, args, undo, release)
    ended = trio.Event()
    outcome: list[Any] = []

    def finish(error: BaseException | None, result: Any) -> None:
        outcome.extend((error, result))
        ended.set()

    try:
        lane.fetch(finish, call.run)
    except VolumeClosed:
        release()
        raise
    try:
        with trio.move_on_after(within):
            await ended.wait()
        if not ended.is_set() and call.give_up():
            raise FusecacheError(f"the cluster did not answer within {within:g} s")
    except trio.Cancelled:
        if not call.withdraw():
            with trio.CancelScope(shield=True, deadline=trio.current_time() + patience):
                await ended.wait()
        if not ended.is_set() and call.give_up():
            raise
    with trio.CancelScope(shield=True):
        await ended.wait()
    error, result = outcome
    if error is not None:
        raise error
    return result


class _Call:
    """A call between the loop, which may give it up, and the thread that makes it."""

    def __init__(
        self, work: Callable[..., Any], args: tuple[Any, ...], undo: Undo | None, release: Callable[[], None]
    ) -> None:
        self._release = release
        self._work = work
        self._args = args
        self._undo = undo
        self._lock = threading.Lock()  # guards the three flags
        self._wanted = True
        self._begun = False
        self._ended = False

    def run(self) -> Any:
        """Make the call, unless it was withdrawn; on the thread."""
        try:
            return self._make()
        finally:
            self._release()

    def _make(self) -> Any:
        with self._lock:
            if not self._wanted:
                return None
            self._begun = True
        try:
            result = self._work(*self._args)
        except Exception as error:
            if not self._wanted:
                log.warning("a call to the cluster that nobody waited for failed: %s", error)
            raise
        with self._lock:
            self._ended = True
            late = not self._wanted
        if late and self._undo is not None:
            try:
                self._undo(result)
            except Exception:
                log.exception("what came too late from the cluster could not be undone")
        return result

    def withdraw(self) -> bool:
        """See to it that a call that has not begun is never made; return whether that is so."""
        with self._lock:
            self._wanted = self._begun
            return not self._begun

    def give_up(self) -> bool:
        """Have the result undone when it comes; return False where it is already on its way to the loop."""
        with self._lock:
            self._wanted = self._ended
            return not self._ended
