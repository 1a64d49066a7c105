"""When to wait for the next request by spinning, and when to sleep.

Owns the policy only; the channel does the waiting. Pure.

Waking a halted CPU costs tens of microseconds, more than a request. A bounded spin before sleeping saves that while
requests follow each other closely. A spin that finds nothing doubles the number of sleeps without a spin, up to a
limit, so that a mount without load does not burn the CPU; one that finds something starts over.
"""

import os
from typing import Final

_MAX_PENALTY: Final = 256


class Spin:
    """The policy.

    Attributes:
        seconds: how long one spin may last; 0 where it never pays: switched off, or a single CPU.
    """

    __slots__ = ("_penalty", "_skip", "nanoseconds", "seconds")

    def __init__(self, seconds: float, cpus: int | None = None) -> None:
        cpus = len(os.sched_getaffinity(0)) if cpus is None else cpus
        self.seconds = seconds if cpus > 1 else 0.0
        self.nanoseconds = int(self.seconds * 1e9)
        self._skip = 0
        self._penalty = 1

    def allowed(self) -> bool:
        """Say whether to spin before this sleep."""
        if self._skip:
            self._skip -= 1
            return False
        return self.nanoseconds > 0

    def hit(self) -> None:
        """The spin found a request."""
        self._penalty = 1

    def missed(self) -> None:
        """The spin found nothing."""
        self._skip = self._penalty
        self._penalty = min(self._penalty * 2, _MAX_PENALTY)
