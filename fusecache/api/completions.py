"""Results of other threads, brought to the event loop with one wake-up.

Owns the queue between threads that finish work (a backend's own threads, a library's callbacks) and the trio thread
that asked for it. It must not know what the work is.

Any number of results that are ready together cost one wake-up and no task. The loop may also collect results itself
while it spins (:meth:`Completions.drain`); then no wake-up is sent at all.
"""

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
    :meth:`post` once for it, or once for several pieces of work that ended together; the callback then runs on the
    loop's thread, inside :meth:`drain`.

    Attributes:
        fd: readable while results wait and nobody drains.
        outstanding: how many results are expected and not yet drained. While it is zero no thread of ours needs the
            interpreter.
        brief: how many of those will take microseconds if no device has to be waited for: worth a short wait for them
            alone.
    """

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.outstanding = 0
        self.brief = 0
        self._ready: deque[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = deque()
        self._signal = True
        self._held_back: list[Callable[[], None]] | None = None

    def expect(self, *, brief: bool = False) -> None:
        """Announce one later result. Loop's thread only."""
        self.outstanding += 1
        self.brief += brief

    def post(self, callback: Callable[..., None], *args: Any, count: int = 1, brief: int = 0) -> None:
        """Have ``callback(*args)`` called on the loop's thread, soon. Any thread; never blocks.

        Args:
            count: how many expected results this stands for.
            brief: how many of those were expected to be brief.
        """
        self._ready.append((count, brief, callback, args))
        # The order matters: append, then look. acknowledge() does the opposite: allow the signal, then empty the queue.
        if self._signal:
            self._signal = False
            os.eventfd_write(self.fd, 1)

    def drain(self) -> int:
        """Run the callbacks of all results that are ready and return how many. Loop's thread only.

        An exception out of a callback is logged and goes no further.
        """
        ready = self._ready
        drained = 0
        while ready:
            count, brief, callback, args = ready.popleft()
            self.outstanding -= count
            self.brief -= brief
            drained += count
            try:
                callback(*args)
            except Exception:
                log.exception("a completion callback failed")
        return drained

    def acknowledge(self) -> int:
        """Clear the wake-up, then :meth:`drain`. For whoever found :attr:`fd` readable."""
        try:  # noqa: SIM105 - on the hot path, where suppress() costs a microsecond
            os.eventfd_read(self.fd)
        except BlockingIOError:
            pass
        self._signal = True
        return self.drain()

    def before_wait(self, start: Callable[[], None]) -> None:
        """Call *start*, at once or when the loop has nothing more to do. Loop's thread only.

        For waking threads: one that is woken while the loop is busy only fights it for the interpreter.
        """
        if self._held_back is None:
            start()
        else:
            self._held_back.append(start)

    def hold_back(self) -> None:
        """Keep what is given to :meth:`before_wait` until :meth:`let_go`, which must come before any await."""
        if self._held_back is None:
            self._held_back = []

    def let_go(self) -> None:
        """Call what was kept."""
        held_back, self._held_back = self._held_back, None
        if held_back:
            for start in held_back:
                start()

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
