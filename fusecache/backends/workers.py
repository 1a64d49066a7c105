"""Threads of our own for system calls that may wait, with results delivered to the event loop in batches.

Owns which queued call runs on which thread, and how the results get back. It must not know what the calls do.

trio's own threads cost 60 to 90 microseconds a call; here a call costs a few when calls come in numbers, for three
reasons:

- a lane made for batches gives a thread many calls at one go, so they share the hand-over of the interpreter lock;
- the results of a batch share one wake-up of the loop;
- a thread that has calls waiting goes on with them without the loop having to tell it.

**Fairness.** A *turn* is the right of one thread to run the next batch of one lane. A lane has at most ``turns`` of
them, and after each it goes to the back of the pool's queue. So lanes share the threads in rotation, and calls that
hang on one lane hold at most ``turns`` threads: an owner whose lanes' turns add up to less than the pool's threads
never stops another owner by itself. Two that hang may.

**Order.** Calls of a lane with one turn run one after another in the order of submission; of other lanes in any order.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, TypeAlias

import trio

from fusecache.api import Completions
from fusecache.api.errors import VolumeClosed

log = logging.getLogger(__name__)

_HOLD_NS: Final = 200_000
"""Results go back once the calls since the last ones took this long together, in nanoseconds."""

_Job: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], Callable[..., None], bool]
_Finished: TypeAlias = tuple[Callable[..., None], tuple[Any, ...]]

_SUCCESS: Final = (None,)


class WorkerPool:
    """A bounded set of threads, started as they are needed.

    The threads are daemons: one that hangs in the kernel never keeps the process from exiting.

    Args:
        completions: delivers the results. Each call counts there as one expected result.
        threads: the most threads there will be; at least 2.
    """

    def __init__(self, completions: Completions, *, threads: int = 8, name: str = "worker") -> None:
        self.completions = completions
        self.limit = threads
        self._name = name
        self._threads: list[threading.Thread] = []
        self._queue: SimpleQueue[Lane | None] = SimpleQueue()
        self._lock = threading.Lock()  # guards the turns and jobs of all lanes; held for a few bytecodes at most
        self._turns = 0
        self._closed = False

    def lane(self, *, turns: int, batch: int = 1, failed: Callable[[BaseException], None] | None = None) -> "Lane":
        """Return a new queue of calls.

        Args:
            turns: how many threads may work for the lane at once.
            batch: how many calls a thread takes at one go. More than one suits calls that are short, or that the
                kernel would run one after another anyway: a result may wait for up to 200 microseconds longer than
                its own call, and calls of one batch never run side by side.
            failed: called on the loop's thread with the error of each call that failed, before the call's own
                callback.
        """
        return Lane(self, turns, batch, failed)

    async def close(self, patience: float = 3.0) -> None:
        """End the threads, after what is queued has run; wait up to *patience* seconds, even when cancelled.

        Threads that have not ended by then hang in the kernel. They are logged and left behind.
        """
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._join, patience)

    def _join(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if hanging := [thread.name for thread in self._threads if thread.is_alive()]:
            log.warning("left behind, waiting for the kernel: %s", ", ".join(hanging))

    def _enqueue(self, lane: "Lane", job: _Job) -> None:
        if self._closed:
            raise VolumeClosed("the backend's worker threads have ended")
        self.completions.expect()
        lane.outstanding += 1
        with self._lock:
            lane.jobs.append(job)
            if lane.turns_taken == lane.turns:
                return
            lane.turns_taken += 1
            self._turns += 1
            starving = self._turns > len(self._threads) < self.limit
        self._queue.put(lane)
        if starving:
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self) -> None:
        queue = self._queue
        while (lane := queue.get()) is not None:
            self._take_turn(lane)

    def _take_turn(self, lane: "Lane") -> None:
        # Nothing of a job may live on in this thread while it waits for the next one: buffers are lent.
        jobs = lane.jobs
        finished: list[_Finished] = []
        began = time.monotonic_ns()
        for _ in range(lane.batch):
            try:
                job = jobs.popleft()
            except IndexError:
                break
            finished.append(_run(job))
            del job
            now = time.monotonic_ns()
            if now - began > _HOLD_NS:
                self.completions.post(lane.deliver, finished, count=len(finished))
                finished, began = [], now
        with self._lock:
            again = bool(jobs)
            if not again:
                lane.turns_taken -= 1
                self._turns -= 1
        if again:
            self._queue.put(lane)
        if finished:
            self.completions.post(lane.deliver, finished, count=len(finished))


class Lane:
    """A queue of calls to be run by a pool's threads; see :meth:`WorkerPool.lane`.

    All methods belong to the loop's thread.

    Attributes:
        outstanding: calls submitted whose callback has not been called.
    """

    def __init__(
        self, pool: WorkerPool, turns: int, batch: int, failed: Callable[[BaseException], None] | None
    ) -> None:
        self.turns = turns
        self.turns_taken = 0
        self.batch = batch
        self.jobs: deque[_Job] = deque()
        self.outstanding = 0
        self._pool = pool
        self._failed = failed
        self._idle: trio.Event | None = None

    def submit(self, done: Callable[[BaseException | None], None], work: Callable[..., object], *args: Any) -> None:
        """Have ``work(*args)`` run on a thread, then ``done(error)`` on the loop's thread, exactly once.

        Raises:
            VolumeClosed: the pool was closed; nothing will run.
        """
        self._pool._enqueue(self, (work, args, done, False))

    def fetch(self, done: Callable[[BaseException | None, Any], None], work: Callable[..., Any], *args: Any) -> None:
        """Like :meth:`submit`, with ``done(None, result)`` at the end, or ``done(error, ())``."""
        self._pool._enqueue(self, (work, args, done, True))

    async def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run ``work(*args)`` on a thread and return its result, or raise what it raised.

        A cancellation waits for the end: the call cannot be taken back.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._pool.completions.call(lambda finish: self.fetch(finish, work, *args))

    async def drained(self) -> None:
        """Return when nothing is outstanding. Cancelling it has no effect on the calls. One task at a time."""
        while self.outstanding:
            self._idle = trio.Event()
            await self._idle.wait()

    def deliver(self, finished: list[_Finished]) -> None:
        """Call the callbacks of calls that ended together."""
        self.outstanding -= len(finished)
        for done, outcome in finished:
            try:
                if self._failed is not None and outcome[0] is not None:
                    self._failed(outcome[0])
                done(*outcome)
            except Exception:
                log.exception("a completion callback failed")
        if self._idle is not None and not self.outstanding:
            self._idle.set()


def _run(job: _Job) -> _Finished:
    work, args, done, returns = job
    try:
        result = work(*args)
    except BaseException as error:
        return done, (error, ()) if returns else (error,)
    return done, (None, result) if returns else _SUCCESS
