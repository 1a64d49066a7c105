"""Group commit: one ``fdatasync(2)`` at a time, for all who wait at once.

Owns who waits for which commit, and what a failed one means. It must not know what is made durable, or how.

**The argument.** ``appended`` counts changes that have reached the kernel, each counted after its system call returned.
A commit begins by noting the count: whatever it counted had reached the kernel before, and is durable when the commit
succeeds. A request is taken from the queue when the count is noted, and was put there after the changes it is about;
so these are in the count. Requests that come while a commit is under way wait together for the next one.

**After a failure** the kernel has dropped what it could not write and reports it once, so a later success would be a
lie: no commit is tried again, and every request gets the error, up to :meth:`Committer.renew`.

**What a crash leaves.** Before a commit has succeeded: any part of what it was about. After: all of it. The count and
the queue are in memory only, and a new opener begins with a file that is durable.
"""

import errno
import logging
from collections.abc import Sequence

import trio

from fusecache.api import Completions, Done, FileSync
from fusecache.api.errors import VolumeClosed
from fusecache_rwl.pool_file import PoolFile

log = logging.getLogger(__name__)


class Committer:
    """Makes what has reached a file durable, in groups. All methods belong to the loop's thread.

    Args:
        completions: says when the loop has nothing more to do before it waits.
        file_sync: makes the file durable.
        file: a commit under way is a user of it, so that one which hangs keeps the descriptor, and the lock.

    Attributes:
        appended: how many changes have reached the kernel; the owner raises it after each.
        durable: how many of those are durable. All, to begin with; fewer for ever after a failure.
        failure: why nothing will become durable any more; None while all is well.
    """

    def __init__(self, completions: Completions, file_sync: FileSync, file: PoolFile) -> None:
        self.appended = 0
        self.durable = 0
        self.failure: OSError | None = None
        self._completions = completions
        self._file_sync = file_sync
        self._file = file
        self._asked: list[Done] = []
        self._under_way: Sequence[Done] = ()
        self._covered = 0
        self._stopped = False
        self._idle: trio.Event | None = None

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
        if self.failure is not None:
            self._completions.expect()
            self._completions.post(done, self.refusal())
            return False
        self._asked.append(done)
        if len(self._asked) == 1 and not self._under_way:
            # Requests that the channel finds together then share a commit.
            self._completions.before_wait(self._begin)
        return False

    def refusal(self) -> OSError:
        """Return a new error that tells of :attr:`failure`, which is not None."""
        earlier = self.failure
        assert earlier is not None
        return OSError(earlier.errno, f"an earlier sync failed, nothing is stored any more: {earlier.strerror}")

    def renew(self) -> None:
        """Commit again after a failure. What was counted before it will never be durable, and nobody asks for it."""
        # The count differs, so that the next request does commit.
        self.durable = self.appended - 1
        self.failure = None

    def stop(self) -> None:
        """Take no more requests. Those that were made are still told; see :meth:`ended`."""
        self._stopped = True
        self._begin()

    async def ended(self) -> None:
        """Return when nothing is under way; to be called after :meth:`stop`. A cancellation changes nothing."""
        while self._under_way:
            self._idle = trio.Event()
            await self._idle.wait()

    def _begin(self) -> None:
        if not self._asked or self._under_way:
            return
        self._under_way, self._asked = self._asked, []
        self._covered = self.appended
        self._file.share()
        self._file_sync.fdatasync(self._file.fd, self._end)

    def _end(self, error: BaseException | None) -> None:
        told, self._under_way = self._under_way, ()
        self._file.release()
        late: Sequence[Done] = ()
        if error is None:
            self.durable = self._covered
            if self.durable == self.appended:
                late, self._asked = self._asked, []
            # Before anybody is told, who may be about to ask for more: the disk is idle.
            self._begin()
            _deliver(told, None)
            _deliver(late, None)
        else:
            self.failure = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
            late, self._asked = self._asked, []
            refusal = self.refusal()
            _deliver(told, error)
            _deliver(late, refusal)
        if self._idle is not None and not self._under_way:
            self._idle.set()


def _deliver(group: Sequence[Done], error: BaseException | None) -> None:
    for done in group:
        try:
            done(error)
        except Exception:
            log.exception("a completion callback failed")
