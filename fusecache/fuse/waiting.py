"""How the channel waits for the next request, or for a result.

Owns which way of waiting suits what is awaited, from the quickest to the cheapest. It must not know requests.

1. **Spinning**, where the kernel or its threads do the work: see :mod:`fusecache.fuse.spin`. For longer where a single
   result is awaited, as of a disk that syncs: who waits for it does nothing else meanwhile, and a CPU that has gone to
   sleep takes a third of that time to wake up.
2. **Blocking in poll()** for a moment where threads of ours do it, which need the CPU or the interpreter that a spin
   would keep from them, and where a spin was in vain. Going to sleep in trio and coming back takes longer than all else
   we do for a request, and what a cluster needs is often less than that moment. Not while trio has tasks to run, as far
   as it tells: of those that it has taken up together with the channel it does not, and they wait for that moment.
3. **Outlasting**: some moments more, before each of which every other task has its turn.
4. **Sleeping** in trio.
"""

import os
import select
import time
from typing import Final

import trio

from fusecache.api.completions import Completions
from fusecache.fuse.spin import Spin

_LONGER: Final = 8
"""Times the length of a spin that one for a single result may last, up to a millisecond."""
_STEPS: Final = 4
_MOMENT: Final = 1
"""Milliseconds."""
_LOOKS: Final = 4
"""Looks of a spin before it asks whether tasks can run."""
_SPUN: Final = 1
_BLOCKED: Final = 8


class Waiting:
    """The waiting of one channel.

    Args:
        fd: becomes readable with a request.
        relay: becomes readable with something that a task of trio's has to do.
    """

    def __init__(self, fd: int, relay: int, completions: Completions, spin: Spin) -> None:
        self._completions = completions
        self._ended = completions.fd
        self._spin = spin
        self._longer = Spin(max(spin.seconds, min(_LONGER * spin.seconds, 1e-3)))
        self._requests = select.poll()
        self._anything = select.poll()
        self._requests.register(fd, select.POLLIN)
        for one in (fd, completions.fd, relay):
            self._anything.register(one, select.POLLIN)
        self._relay = relay

    def linger(self, pending: bool) -> int:
        """Wait for a moment at most; return 0 when there is nothing to do.

        Otherwise how many requests the waiting counts for towards the next turn of other tasks.

        Args:
            pending: a request has not been answered yet.
        """
        completions = self._completions
        if completions.outstanding == completions.detached:
            if completions.drain():
                return _SPUN
            # Where only tasks of this loop and pyfuse3 are awaited, they need the loop.
            if pending and not completions.detached:
                return 0
            if completions.detached == 1:
                if self._find(self._longer):
                    # As long as if it had.
                    return _BLOCKED
            elif self._find(self._spin):
                return _SPUN
            if not completions.detached:
                return 0
        if completions.stop_polling():
            return _SPUN
        return _BLOCKED if self._block() else 0

    def _find(self, spin: Spin) -> bool:
        """Spin, if it may pay; say whether there is something to do."""
        if not spin.allowed():
            return False
        if self._poll_until(spin):
            spin.hit()
            return True
        return False

    def look_for_end(self) -> int:
        """Wait for the end of a request that came alone, before looking for another one; see :meth:`linger`.

        Its caller waits, and trying the descriptor costs a system call.
        """
        if self._completions.detached:
            return self._completions.drain()
        return self.linger(True)

    async def outlast(self, relayed: bool) -> bool:
        """Wait some milliseconds for results; True when there is something to do.

        To be called when nobody polls the completions. A cancellation leaves nothing undone.

        Args:
            relayed: pyfuse3 has something to do.
        """
        completions = self._completions
        if relayed:
            return False
        for _ in range(_STEPS):
            if not completions.outstanding:
                return False
            await trio.lowlevel.checkpoint()
            if self._block():
                return True
        return False

    def _block(self) -> bool:
        if _tasks_can_run():
            return False
        found = False
        for fd, _ in self._anything.poll(_MOMENT):
            if fd == self._ended:
                self._completions.acknowledge()
            found = found or fd != self._relay
        return found

    def _poll_until(self, spin: Spin) -> bool:
        poll, drain = self._requests.poll, self._completions.drain
        deadline = time.perf_counter_ns() + spin.nanoseconds
        looks = 0
        while not drain() and not poll(0):
            looks += 1
            # To ask takes as long as a look, and most spins end with the first few.
            if looks == _LOOKS and _tasks_can_run():
                return False
            if time.perf_counter_ns() > deadline:
                spin.missed()
                return False
            # Somebody we wait for may be waiting for this very CPU.
            os.sched_yield()
        return True


def _tasks_can_run() -> bool:
    return trio.lowlevel.current_statistics().tasks_runnable > 0
