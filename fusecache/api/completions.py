"""Results of other threads, brought to the event loop with one wake-up.

Owns the queue between threads that finish work (a backend's own threads, a library's callbacks) and the trio thread
that asked for it. It must not know what the work is.

Any number of results that are ready together cost one wake-up and no task. The loop may also collect results itself
while it spins (:meth:`Completions.drain`); then no wake-up is sent at all.
"""

import contextlib
import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import trio

log = logging.getLogger(__name__)


class Completions:
    """The one queue of a process from its threads to its event loop.

    Protocol: the submitter calls :meth:`expect` on the loop's thread when it hands work to a thread; the thread calls
    :meth:`post` exactly once for it; the callback then runs on the loop's thread, inside :meth:`drain`.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        """Readable while results wait and nobody drains."""
        self.outstanding = 0
        """How many results are expected and not yet drained. While it is zero no thread of ours needs the
        interpreter."""
        self._ready: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._signal = True

    def expect(self) -> None:
        """Announce one later :meth:`post`. Loop's thread only."""
        self.outstanding += 1

    def post(self, callback: Callable[..., None], *args: Any) -> None:
        """Have ``callback(*args)`` called on the loop's thread, soon. Any thread; never blocks; must follow an
        :meth:`expect`."""
        self._ready.append((callback, args))
        # The order matters: append, then look. drain() does the opposite: allow the signal, then empty the queue.
        if self._signal:
            self._signal = False
            os.eventfd_write(self.fd, 1)

    def drain(self) -> int:
        """Run the callbacks of all results that are ready and return how many. Loop's thread only.

        An exception out of a callback is logged and goes no further.
        """
        ready = self._ready
        count = 0
        while ready:
            callback, args = ready.popleft()
            self.outstanding -= 1
            count += 1
            try:
                callback(*args)
            except Exception:
                log.exception("a completion callback failed")
        return count

    def acknowledge(self) -> int:
        """Clear the wake-up, then :meth:`drain`. For whoever found :attr:`fd` readable."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        self._signal = True
        return self.drain()

    async def run(self) -> None:
        """Deliver results until cancelled. One task per event loop runs this."""
        while True:
            await trio.lowlevel.wait_readable(self.fd)
            self.acknowledge()

    async def call(self, submit: Callable[[Callable[[BaseException | None, Any], None]], None]) -> Any:
        """Run one piece of thread work as an await: *submit* receives the ``finish(error, result)`` that the callback
        must call.

        Cancellation waits for the end: the work cannot be taken back, and its buffers are in use until then.
        """
        done = trio.Event()
        outcome: list[Any] = []

        def finish(error: BaseException | None, result: Any) -> None:
            outcome.extend((error, result))
            done.set()

        submit(finish)
        with trio.CancelScope(shield=True):
            await done.wait()
        error, result = outcome
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Free the descriptor. Nothing may be outstanding."""
        os.close(self.fd)
