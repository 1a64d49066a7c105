"""Group commit: one thread that makes a file durable, for all who wait at once.

Owns who waits for which commit, and what a failed one means. It must not know what is made durable, or how.

**The argument.** ``appended`` counts changes that have reached the kernel, each counted after its system call returned.
The thread notes the count, then commits: whatever it counted had reached the kernel before the commit began, and is
durable when it succeeds. A request is taken from the queue before the count is noted, and was put there after the
changes it is about; so these are in the count. Requests that come while a commit runs wait together for the next one.

**After a failure** the kernel has dropped what it could not write and reports it once, so a later success would be a
lie: no commit is tried again, and every request gets the error.

**What a crash leaves.** Before a commit has returned: any part of what it was about. After: all of it. The count and
the queue are in memory only, and a new opener begins with a file that is durable.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from fusecache.api import Completions, Done
from fusecache.api.errors import VolumeClosed

log = logging.getLogger(__name__)


class Committer:
    """Makes changes durable in groups. The thread starts with the first request.

    All methods belong to the loop's thread.

    Args:
        completions: delivers the results; each request counts there as one.
        commit: makes everything durable that has reached the kernel; blocks, and raises OSError. On the thread.
        ended: called once, when nothing will be committed any more: by the thread as its last act, or by :meth:`stop`
            where there is no thread.

    Attributes:
        appended: how many changes have reached the kernel; the owner raises it after each.
        durable: how many of those are durable. All, to begin with; fewer for ever after a failure.
        failure: why nothing will become durable any more; None while all is well.
        thread: None before the first request.
    """

    def __init__(self, completions: Completions, commit: Callable[[], None], ended: Callable[[], None]) -> None:
        self.appended = 0
        self.durable = 0
        self.failure: OSError | None = None
        self.thread: threading.Thread | None = None
        self._completions = completions
        self._commit = commit
        self._ended = ended
        self._asked: list[Done] = []
        self._queue: SimpleQueue[Sequence[Done] | None] = SimpleQueue()
        self._stopped = False

    def sync(self, done: Done) -> bool:
        """Have all changes counted so far made durable.

        Returns:
            True: they are already; ``done`` is never called. False: ``done(error)`` is called later, on the loop's
            thread.

        Raises:
            VolumeClosed: the committer was stopped.
        """
        if self.durable == self.appended:
            return True
        if self._stopped:
            raise VolumeClosed("the medium is closed")
        self._completions.expect()
        self._asked.append(done)
        if len(self._asked) == 1:
            # Requests that the channel finds together then share a commit.
            self._completions.before_wait(self._hand_over)
        return False

    def refusal(self) -> OSError:
        """Return a new error that tells of :attr:`failure`, which is not None."""
        earlier = self.failure
        assert earlier is not None
        return OSError(earlier.errno, f"an earlier sync failed, nothing is stored any more: {earlier.strerror}")

    def stop(self) -> None:
        """Have the thread end after what was asked for. To be called once."""
        self._stopped = True
        self._hand_over()
        if self.thread is None:
            self._ended()
        else:
            self._queue.put(None)

    def _hand_over(self) -> None:
        if not self._asked:
            return
        asked, self._asked = self._asked, []
        self._queue.put(asked)
        if self.thread is None:
            self.thread = threading.Thread(target=self._serve, name="rwl-committer", daemon=True)
            self.thread.start()

    def _serve(self) -> None:
        try:
            while self._serve_group():
                pass
        finally:
            self._ended()

    def _serve_group(self) -> bool:
        """Wait for requests and commit for all that have come. False after the last."""
        queue = self._queue
        taken = queue.get()
        group: list[Done] = []
        while taken is not None:
            group += taken
            if queue.empty():
                break
            taken = queue.get()
        if group:
            error = self._committed()
            self._completions.post(_deliver, group, error, count=len(group))
        return taken is not None

    def _committed(self) -> OSError | None:
        if self.failure is not None:
            return self.refusal()
        appended = self.appended
        if appended == self.durable:
            return None
        try:
            self._commit()
        except OSError as error:
            self.failure = error
            return error
        self.durable = appended
        return None


def _deliver(group: Sequence[Done], error: OSError | None) -> None:
    for done in group:
        try:
            done(error)
        except Exception:
            log.exception("a completion callback failed")
