"""Group commit: who waits for which commit, and what follows a failed one."""

import errno
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from fusecache.api import Completions
from fusecache.api.errors import VolumeClosed
from fusecache_rwl.committer import Committer
from layers.rwl.tests.support import pools


class Disk:
    """Takes commits one by one; each waits until the test lets it end."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.end = threading.Semaphore(0)
        self.commits = 0
        self.ends = 0
        self.error: OSError | None = None

    def commit(self) -> None:
        self.commits += 1
        self.begun.release()
        self.end.acquire()
        if self.error is not None:
            raise self.error

    def ended(self) -> None:
        self.ends += 1

    async def until_begun(self) -> None:
        await trio.to_thread.run_sync(self.begun.acquire)

    def let_end(self) -> None:
        self.end.release()


class Waiters:
    """Those who asked, in the order in which they were told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, BaseException | None]] = []
        self.changed = trio.Event()

    def ask(self, committer: Committer, number: int) -> bool:
        def done(error: BaseException | None) -> None:
            self.told.append((number, error))
            self.changed.set()

        return committer.sync(done)

    async def until_told(self, count: int) -> None:
        while len(self.told) < count:
            self.changed = trio.Event()
            await self.changed.wait()


@asynccontextmanager
async def committing() -> AsyncIterator[tuple[Committer, Disk, Waiters, Completions]]:
    async with pools.delivered() as completions:
        disk = Disk()
        committer = Committer(completions, disk.commit, disk.ended)
        yield committer, disk, Waiters(), completions
        committer.stop()
        if committer.thread is not None:
            await trio.to_thread.run_sync(committer.thread.join)
        assert disk.ends == 1
        while completions.outstanding:
            await trio.lowlevel.checkpoint()


async def test_what_is_durable_already_is_told_at_once() -> None:
    async with committing() as (committer, disk, waiters, _):
        assert waiters.ask(committer, 0) is True
        committer.appended += 1
        assert waiters.ask(committer, 1) is False
        disk.let_end()
        await waiters.until_told(1)
        assert waiters.ask(committer, 2) is True
        assert (waiters.told, disk.commits) == ([(1, None)], 1)


async def test_requests_during_a_commit_share_the_next_one() -> None:
    async with committing() as (committer, disk, waiters, _):
        committer.appended += 1
        waiters.ask(committer, 0)
        await disk.until_begun()
        for number in range(1, 100):
            committer.appended += 1
            waiters.ask(committer, number)
        disk.let_end()
        disk.let_end()
        await waiters.until_told(100)
        assert waiters.told == [(number, None) for number in range(100)]
        assert disk.commits == 2


async def test_what_is_appended_during_a_commit_is_not_taken_for_durable() -> None:
    async with committing() as (committer, disk, waiters, _):
        committer.appended += 1
        waiters.ask(committer, 0)
        await disk.until_begun()
        committer.appended += 1
        disk.let_end()
        await waiters.until_told(1)
        assert waiters.ask(committer, 1) is False
        disk.let_end()
        await waiters.until_told(2)
        assert disk.commits == 2


async def test_a_request_during_a_commit_that_covers_it_needs_no_other() -> None:
    async with committing() as (committer, disk, waiters, _):
        committer.appended += 1
        waiters.ask(committer, 0)
        await disk.until_begun()
        assert waiters.ask(committer, 1) is False
        disk.let_end()
        await waiters.until_told(2)
        assert disk.commits == 1


async def test_requests_found_together_by_a_polling_channel_share_a_commit() -> None:
    async with committing() as (committer, disk, waiters, completions):
        completions.start_polling()
        for number in range(10):
            committer.appended += 1
            waiters.ask(committer, number)
        assert disk.commits == 0
        completions.stop_polling()
        disk.let_end()
        await waiters.until_told(10)
        assert disk.commits == 1


async def test_after_a_failed_commit_none_is_tried_again_and_all_fail() -> None:
    async with committing() as (committer, disk, waiters, _):
        disk.error = OSError(errno.EIO, "Input/output error")
        committer.appended += 1
        waiters.ask(committer, 0)
        await disk.until_begun()
        waiters.ask(committer, 1)
        disk.let_end()
        await waiters.until_told(2)
        disk.error = None
        # Nothing was appended since; even so it is not durable.
        assert waiters.ask(committer, 2) is False
        await waiters.until_told(3)
        for _, error in waiters.told:
            assert isinstance(error, OSError)
            assert error.errno == errno.EIO
        assert disk.commits == 1
        assert committer.refusal().errno == errno.EIO


async def test_a_stopped_committer_answers_what_was_asked_and_nothing_more() -> None:
    async with committing() as (committer, disk, waiters, completions):
        completions.start_polling()
        committer.appended += 1
        waiters.ask(committer, 0)
        disk.let_end()
        inner = Committer(completions, disk.commit, lambda: None)
        inner.appended += 1
        waiters.ask(inner, 1)
        disk.let_end()
        inner.stop()
        completions.stop_polling()
        await waiters.until_told(2)
        inner.appended += 1
        with pytest.raises(VolumeClosed):
            waiters.ask(inner, 2)
        assert sorted(number for number, _ in waiters.told) == [0, 1]
