"""Threads of our own for system calls that may wait, with results delivered to the event loop in batches.

Owns which queued call runs on which thread, and how the results get back. It must not know what the calls do.

trio's own threads cost 60 to 90 microseconds a call; here a call costs a few when calls come in numbers, for four
reasons:

- a lane made for batches gives a thread many calls at one go, so they share the hand-over of the interpreter lock;
- the results of a batch share one wake-up of the loop;
- a thread that has calls waiting goes on with them without the loop having to tell it;
- threads are woken when the loop is about to wait, and for a brief call on the CPU the loop runs on: waking a halted
  CPU takes longer than the call, and the loop has nothing else to do there.

**Fairness.** A *turn* is the right of one thread to run the next batch of one lane. A lane has at most ``turns`` of
them, and after each it goes behind the lanes that wait for a thread. So lanes share the threads in rotation, and calls
that hang on one lane hold at most ``turns`` threads: an owner whose lanes' turns add up to less than the pool's threads
never stops another owner by itself. Two that hang may.

**Order.** Calls of a lane with one turn run one after another in the order of submission; of other lanes in any order.
"""

import contextlib
import ctypes
import logging
import os
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

_Job: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], Callable[..., None], bool, bool]
_Finished: TypeAlias = tuple[Callable[..., None], tuple[Any, ...]]

_SUCCESS: Final = (None,)

# Not CDLL: releasing the interpreter lock around this would cost more than the call.
_current_cpu: Callable[[], int] = ctypes.PyDLL(None).sched_getcpu


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
        self._threads: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._waiting: deque[Lane] = deque()
        self._lock = threading.Lock()  # guards all of the above and the lanes' jobs; held for a few bytecodes at most
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
        for worker in self._threads:
            worker.end()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._join, patience)

    def _join(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        for worker in self._threads:
            worker.join(max(0.0, deadline - time.monotonic()))
        if hanging := [worker.name for worker in self._threads if worker.is_alive()]:
            log.warning("left behind, waiting for the kernel: %s", ", ".join(hanging))

    def _enqueue(self, lane: "Lane", job: _Job, brief: bool) -> None:
        if self._closed:
            raise VolumeClosed("the backend's worker threads have ended")
        self.completions.expect(brief=brief)
        lane.outstanding += 1
        with self._lock:
            lane.jobs.append(job)
            if lane.turns_taken == lane.turns:
                return
            lane.turns_taken += 1
        if brief:
            self.completions.before_wait(lane.start_near)
        else:
            self._start(lane, None)

    def _start(self, lane: "Lane", cpu: int | None) -> None:
        """Give a thread the turn that *lane* has taken, on one CPU or on any; or have the lane wait for a thread."""
        with self._lock:
            worker = self._idle.pop() if self._idle else None
            if worker is None and len(self._threads) == self.limit:
                self._waiting.append(lane)
                return
        if worker is None:
            worker = _Worker(self._next_turn, f"{self._name}-{len(self._threads)}")
            self._threads.append(worker)
            worker.start()
        worker.wake(lane, cpu)

    def _next_turn(self, worker: "_Worker", lane: "Lane") -> "Lane | None":
        """Run a turn; return the lane whose turn the same thread takes next, or None when it is to wait."""
        self._take_turn(lane)
        with self._lock:
            if lane.jobs:
                self._waiting.append(lane)
            else:
                lane.turns_taken -= 1
            if self._waiting:
                return self._waiting.popleft()
            self._idle.append(worker)
        return None

    def _take_turn(self, lane: "Lane") -> None:
        # Nothing of a job may live on in this thread while it waits for the next one: buffers are lent.
        jobs = lane.jobs
        finished: list[_Finished] = []
        brief = 0
        began = time.monotonic_ns()
        for _ in range(lane.batch):
            try:
                job = jobs.popleft()
            except IndexError:
                break
            brief += job[4]
            finished.append(_run(job))
            del job
            now = time.monotonic_ns()
            if now - began > _HOLD_NS:
                self.completions.post(lane.deliver, finished, count=len(finished), brief=brief)
                finished, brief, began = [], 0, now
        if finished:
            self.completions.post(lane.deliver, finished, count=len(finished), brief=brief)


class _Worker(threading.Thread):
    """A thread that runs turns, and where it may run."""

    def __init__(self, next_turn: Callable[["_Worker", "Lane"], "Lane | None"], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._next_turn = next_turn
        self._inbox: SimpleQueue[Lane | None] = SimpleQueue()
        self._anywhere = os.sched_getaffinity(0)
        self._cpu: int | None = None

    def wake(self, lane: "Lane", cpu: int | None) -> None:
        """Have the thread, which is idle, take a turn of *lane* on one CPU, or on any."""
        if cpu != self._cpu and self.native_id is not None:
            self._cpu = cpu
            # Placement is a matter of speed only; a system that forbids it is left alone.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(self.native_id, self._anywhere if cpu is None else {cpu})
        self._inbox.put(lane)

    def end(self) -> None:
        """Have the thread end after what it is doing."""
        self._inbox.put(None)

    def run(self) -> None:
        while (lane := self._inbox.get()) is not None:
            following: Lane | None = lane
            while following is not None:
                following = self._next_turn(self, following)
            del lane


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

    def start_near(self) -> None:
        """Have a thread start on the CPU the loop runs on."""
        self._pool._start(self, _current_cpu())

    def submit(
        self, done: Callable[[BaseException | None], None], work: Callable[..., object], *args: Any, brief: bool = False
    ) -> None:
        """Have ``work(*args)`` run on a thread, then ``done(error)`` on the loop's thread, exactly once.

        Args:
            brief: the call takes microseconds unless it has to wait for a device.

        Raises:
            VolumeClosed: the pool was closed; nothing will run.
        """
        self._pool._enqueue(self, (work, args, done, False, brief), brief)

    def fetch(self, done: Callable[[BaseException | None, Any], None], work: Callable[..., Any], *args: Any) -> None:
        """Like :meth:`submit`, with ``done(None, result)`` at the end, or ``done(error, ())``."""
        self._pool._enqueue(self, (work, args, done, True, False), False)

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
    work, args, done, returns, _ = job
    try:
        result = work(*args)
    except BaseException as error:
        return done, (error, ()) if returns else (error,)
    return done, (None, result) if returns else _SUCCESS
