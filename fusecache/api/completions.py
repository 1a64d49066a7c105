"""Results of work done elsewhere, brought to the event loop with one wake-up.

Owns the queue between whoever finishes work (a backend's own threads, a library's callbacks, the kernel) and the trio
thread that asked for it. It must not know what the work is.

Any number of results that are ready together cost one wake-up and no task. While the loop polls
(:meth:`Completions.start_polling`) it collects them itself and no wake-up is sent at all.
"""

import ctypes
import logging
import os
import select
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import trio
import trio.testing

log = logging.getLogger(__name__)

_STEPS: Final = 4
_MOMENT: Final = 1
"""Milliseconds."""
_PATIENCE: Final = 1e-3
"""Seconds that other tasks may go on before results are looked for as usual."""
# Mostly there is nothing to read, and the exception that os.eventfd_read() raises then costs more than all else here.
# Not CDLL: it does not wait, and giving up the interpreter's lock invites others to take it.
_read: Final = ctypes.PyDLL(None).read
_read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_COUNTER: Final = 8
"""Bytes that an eventfd is read with."""


class Source(Protocol):
    """Where results appear without a thread of ours, such as memory that the kernel writes to.

    Each new result makes :attr:`Completions.fd` readable: through a descriptor of the source's, or because whoever
    brings it writes to :attr:`Completions.signal_fd`, an eventfd.
    """

    def collect(self) -> int:
        """Run the callbacks of all results that are ready; return how many. Loop's thread only."""


class AtWork(Protocol):
    """Who wants to know whether there is something to do, and keeps idle CPUs awake meanwhile.

    Attributes:
        held: they are awake now.
    """

    @property
    def held(self) -> bool: ...

    def begin(self) -> None:
        """From now on, for one reason more."""

    def end(self) -> None:
        """For one reason less."""


class Completions:
    """The one queue of a process from everything that finishes work to its event loop.

    Protocol for threads: the submitter calls :meth:`expect` on the loop's thread when it hands work over; the thread
    calls :meth:`post` once for it, or once for several pieces of work that ended together; the callback then runs on
    the loop's thread, inside :meth:`drain`.

    Attributes:
        fd: readable while results wait and nobody polls. An epoll descriptor.
        signal_fd: an eventfd that makes *fd* readable.
        outstanding: how many results are expected and not yet drained.
        detached: how many of those come from a :class:`Source`. Where these are all, no thread of ours needs the
            interpreter, and the loop may spin.
    """

    def __init__(self) -> None:
        self.signal_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self.signal_fd, select.EPOLLIN)
        self.fd = self._epoll.fileno()
        self.outstanding = 0
        self.detached = 0
        self._ready: deque[tuple[int, Callable[..., None], tuple[Any, ...]]] = deque()
        self._sources: list[Source] = []
        self._polling = False
        self._signal = True
        self._held_back: list[Callable[[], None]] = []
        self._at_work: AtWork | None = None
        self._anything = select.poll()
        self._anything.register(self.fd, select.POLLIN)
        self._counter = (ctypes.c_char * _COUNTER)()

    @property
    def cpus_are_awake(self) -> bool:
        """Idle CPUs take up work at once, and need not be woken."""
        return self._at_work is not None and self._at_work.held

    def add_source(self, source: Source, fd: int | None = None) -> None:
        """Collect from *source* as well, until :meth:`remove_source`. It counts its own results in and out.

        Args:
            fd: readable until the source's results have been collected; None where *signal_fd* is written to.
        """
        self._sources.append(source)
        if fd is not None:
            self._epoll.register(fd, select.EPOLLIN)

    def remove_source(self, source: Source, fd: int | None = None) -> None:
        """Forget *source*, and its descriptor, which is still open."""
        self._sources.remove(source)
        if fd is not None:
            self._epoll.unregister(fd)

    def expect(self) -> None:
        """Announce one later result of a thread. Loop's thread only."""
        self.outstanding += 1

    def post(self, callback: Callable[..., None], *args: Any, count: int = 1) -> None:
        """Have ``callback(*args)`` called on the loop's thread, soon. Any thread; never blocks.

        Args:
            count: how many expected results this stands for.
        """
        self._ready.append((count, callback, args))
        # The order matters: append, then look. The loop does the opposite: allow the signal, then empty the queue.
        if self._signal:
            self._signal = False
            os.eventfd_write(self.signal_fd, 1)

    def drain(self) -> int:
        """Run the callbacks of all results that are ready and return how many. Loop's thread only.

        An exception out of a callback is logged and goes no further.
        """
        drained = 0
        for source in self._sources:
            drained += source.collect()
        ready = self._ready
        while ready:
            count, callback, args = ready.popleft()
            self.outstanding -= count
            drained += count
            try:
                callback(*args)
            except Exception:
                log.exception("a completion callback failed")
        return drained

    def acknowledge(self) -> int:
        """Clear the wake-up, then :meth:`drain`. For whoever found :attr:`fd` readable."""
        self._clear()
        self._signal = not self._polling
        return self.drain()

    def _clear(self) -> None:
        _read(self.signal_fd, self._counter, _COUNTER)

    def before_wait(self, start: Callable[[], None]) -> None:
        """Call *start* when the loop has nothing more to do: at once unless it polls. Loop's thread only.

        For handing over together what comes up together.
        """
        if self._polling:
            self._held_back.append(start)
        else:
            start()

    def start_polling(self) -> None:
        """The caller collects results by :meth:`drain` from now on, and calls :meth:`hand_over` often."""
        self._polling = True
        self._signal = False

    def hand_over(self) -> None:
        """Call what was given to :meth:`before_wait`."""
        if self._held_back:
            held_back, self._held_back = self._held_back, []
            for start in held_back:
                start()

    def stop_polling(self) -> int:
        """The caller is about to wait: hand over, have results make :attr:`fd` readable again, and drain.

        Returns how many were drained; if any, there may be more to do than to wait.
        """
        self.hand_over()
        if not self._polling:
            return 0
        self._polling = False
        # Sources have signalled all the while. What comes after this signals anew; what came before is drained now.
        self._clear()
        self._signal = True
        return self.drain()

    @contextmanager
    def minding(self, *fds: int) -> Iterator[None]:
        """End the polls of :meth:`run`, in this context, when one of *fds* is readable: tasks wait for these."""
        for fd in fds:
            self._anything.register(fd, select.POLLIN)
        try:
            yield
        finally:
            for fd in fds:
                self._anything.unregister(fd)

    @contextmanager
    def telling(self, at_work: AtWork) -> Iterator[None]:
        """Tell *at_work*, in this context, of results and what follows from them."""
        self._at_work = at_work
        try:
            yield
        finally:
            self._at_work = None

    async def run(self) -> None:
        """Deliver results until cancelled. One task per event loop runs this.

        While one result follows another, as they do of write-back, it polls for some milliseconds before it sleeps:
        going to sleep in trio and coming back takes longer than many a result.
        """
        while True:
            await trio.lowlevel.wait_readable(self.fd)
            at_work = self._at_work
            if at_work is not None:
                at_work.begin()
            try:
                self.acknowledge()
                await self._outlast()
            finally:
                if at_work is not None:
                    at_work.end()

    async def _outlast(self) -> None:
        steps = _STEPS
        while steps and not self._polling:
            # Tasks go first, and the work that they begin next is what is waited for.
            with trio.move_on_after(_PATIENCE) as turns:
                await trio.testing.wait_all_tasks_blocked()
            if turns.cancelled_caught or self._polling or not self.outstanding:
                return
            ready = self._anything.poll(_MOMENT)
            if any(fd != self.fd for fd, _ in ready):
                return
            steps -= 1
            if ready:
                self.acknowledge()
                steps = _STEPS

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
        """Free the descriptors. What a thread that was left behind still posts is never delivered."""
        # Their numbers may soon be somebody else's.
        self._signal = False
        self._epoll.close()
        os.close(self.signal_fd)
