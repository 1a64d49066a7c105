"""Whether the threads of a client interrupt others when they wake up.

Owns their scheduling policy (``sched(7)``). It must not know what they do.

Each message wakes two threads of librados. Where they interrupt whoever runs, most often one that sends or answers
messages itself, each wakes for a single message. Where they come next, but not at once (``SCHED_BATCH``), they find
several: that takes a sixth less CPU for a read of 4 KiB. A CPU that has nothing to do takes them at once all the
same; but where programs compute on all CPUs, a read that comes alone waits for twice as long. So the policy follows
how many are under way.
"""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

_EACH: Final = 256
"""Requests from one look to the next."""
_MANY: Final = 4
"""Requests under way from which on waking together pays."""


class Wakeups:
    """The policy of one client's threads. Loop's thread only.

    Attributes:
        together: they interrupt nobody, and find several messages when they wake up.
    """

    __slots__ = ("_left", "_threads", "together")

    def __init__(self) -> None:
        self._threads: tuple[int, ...] = ()
        self._left = 1
        self.together = True

    def adopt(self, threads: Iterable[int]) -> None:
        """Take over those that :func:`threads_of` has found. They must live until others, or none, are adopted."""
        self._threads = tuple(threads)
        self._left = 1
        self.together = True

    def note(self, under_way: int) -> None:
        """To be called for each request, with how many others are under way."""
        self._left -= 1
        if not self._left:
            self._left = _EACH
            if self.together != (under_way >= _MANY):
                self.together = not self.together
                for thread in self._threads:
                    _set(thread, os.SCHED_BATCH if self.together else os.SCHED_OTHER)


def threads_of(make: Callable[[], T]) -> tuple[T, set[int]]:
    """Return what ``make()`` returns and the threads that it has made; these interrupt nobody from now on. Any thread.

    No threads are returned, and none changed, where this thread's policy is not the usual one: what somebody has
    chosen for the whole process stays.
    """
    # New threads inherit the policy of their maker, which nobody else here has: that tells them from those of others.
    if os.sched_getscheduler(0) != os.SCHED_OTHER or not _set(0, os.SCHED_BATCH):
        return make(), set()
    try:
        before = gentle_threads()
        made = make()
        return made, gentle_threads() - before
    finally:
        _set(0, os.SCHED_OTHER)


def gentle_threads() -> set[int]:
    """Return the threads of this process that interrupt nobody."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        # It may end meanwhile.
        with suppress(OSError):
            if os.sched_getscheduler(int(task.name)) == os.SCHED_BATCH:
                found.add(int(task.name))
    return found


def _set(thread: int, policy: int) -> bool:
    try:
        os.sched_setscheduler(thread, policy, os.sched_param(0))
    except OSError:
        # A container may not allow it. It is about speed only.
        return False
    return True
