"""Group commit: who waits for which commit, and what follows a failed one."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import Completions, Done
from fusecache.api.errors import ImageBusy, VolumeClosed
from fusecache_rwl.committer import Committer
from fusecache_rwl.medium import create_pool
from fusecache_rwl.pool_file import SMALLEST, PoolFile, open_pool_file


class Disk:
    """Takes syncs one by one; each ends when the test says so."""

    def __init__(self) -> None:
        self.commits = 0
        self.files: list[int] = []
        self.under_way: list[Done] = []

    def fdatasync(self, fd: int, done: Done) -> None:
        self.commits += 1
        self.files.append(fd)
        self.under_way.append(done)

    def end(self, error: OSError | None = None) -> None:
        self.under_way.pop(0)(error)


class Rig:
    """A committer of a file, and those who asked, in the order in which they were told."""

    def __init__(self, completions: Completions, file: PoolFile) -> None:
        self.completions = completions
        self.disk = Disk()
        self.file = file
        self.committer = Committer(completions, self.disk, file)
        self.told: list[tuple[int, BaseException | None]] = []

    def append(self) -> None:
        self.committer.appended += 1

    def ask(self, number: int, then: Callable[[], None] = lambda: None) -> bool:
        def done(error: BaseException | None) -> None:
            self.told.append((number, error))
            then()

        return self.committer.sync(done)


@contextmanager
def made(path: Path) -> Iterator[Rig]:
    create_pool(path, SMALLEST)
    completions = Completions()
    yield Rig(completions, open_pool_file(path))
    completions.drain()
    assert not completions.outstanding
    completions.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with made(tmp_path / "pool") as rig:
        yield rig


def test_what_is_durable_already_is_told_at_once(rig: Rig) -> None:
    assert rig.ask(0) is True
    rig.append()
    assert rig.ask(1) is False
    assert rig.disk.files == [rig.file.fd]
    assert not rig.told
    rig.disk.end()
    assert rig.ask(2) is True
    assert (rig.told, rig.disk.commits) == ([(1, None)], 1)


def test_requests_during_a_commit_share_the_next_one(rig: Rig) -> None:
    for number in range(100):
        rig.append()
        rig.ask(number)
    rig.disk.end()
    assert rig.told == [(0, None)]
    rig.disk.end()
    assert rig.told == [(number, None) for number in range(100)]
    assert rig.disk.commits == 2


def test_what_is_appended_during_a_commit_is_not_taken_for_durable(rig: Rig) -> None:
    rig.append()
    rig.ask(0)
    rig.append()
    rig.disk.end()
    assert rig.ask(1) is False
    rig.disk.end()
    assert rig.told == [(0, None), (1, None)]
    assert rig.disk.commits == 2


def test_a_request_during_a_commit_that_covers_it_needs_no_other(rig: Rig) -> None:
    rig.append()
    rig.ask(0)
    assert rig.ask(1) is False
    rig.disk.end()
    assert rig.told == [(0, None), (1, None)]
    assert rig.disk.commits == 1


def test_the_next_commit_begins_before_the_last_ones_are_told(rig: Rig) -> None:
    seen: list[int] = []
    rig.append()
    rig.ask(0, then=lambda: seen.append(rig.disk.commits))
    rig.append()
    rig.ask(1)
    rig.disk.end()
    assert seen == [2]
    rig.disk.end()


def test_who_asks_again_when_told_gets_a_commit_of_its_own(rig: Rig) -> None:
    def again() -> None:
        rig.append()
        rig.ask(1)

    rig.append()
    rig.ask(0, then=again)
    rig.disk.end()
    assert rig.disk.commits == 2
    rig.disk.end()
    assert rig.told == [(0, None), (1, None)]


def test_requests_found_together_by_a_polling_channel_share_a_commit(rig: Rig) -> None:
    rig.completions.start_polling()
    for number in range(10):
        rig.append()
        rig.ask(number)
    assert rig.disk.commits == 0
    rig.completions.stop_polling()
    rig.disk.end()
    assert len(rig.told) == 10
    assert rig.disk.commits == 1


def test_after_a_failed_commit_none_is_tried_again_and_all_fail(rig: Rig) -> None:
    rig.append()
    rig.ask(0)
    rig.append()
    rig.ask(1)
    rig.disk.end(OSError(errno.EIO, "Input/output error"))
    # Nothing was appended since; even so it is not durable.
    assert rig.ask(2) is False
    assert len(rig.told) == 2, "from inside the call"
    rig.completions.drain()
    assert [number for number, _ in rig.told] == [0, 1, 2]
    for _, error in rig.told:
        assert isinstance(error, OSError)
        assert error.errno == errno.EIO
    assert rig.disk.commits == 1
    assert rig.committer.refusal().errno == errno.EIO


def test_a_renewed_committer_commits_although_nothing_was_appended(rig: Rig) -> None:
    rig.append()
    rig.ask(0)
    rig.disk.end(OSError(errno.EIO, "Input/output error"))
    rig.committer.renew()
    assert rig.ask(1) is False
    rig.disk.end()
    assert rig.told[1] == (1, None)
    assert rig.disk.commits == 2


def test_one_who_fails_when_told_keeps_nobody_else_from_being_told(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def failing() -> None:
        raise ZeroDivisionError

    rig.append()
    rig.ask(0, then=failing)
    rig.ask(1)
    rig.disk.end()
    assert rig.told == [(0, None), (1, None)]
    assert "callback failed" in caplog.text


async def test_a_stopped_committer_answers_what_was_asked_and_nothing_more(rig: Rig) -> None:
    rig.completions.start_polling()
    rig.append()
    rig.ask(0)
    rig.committer.stop()
    rig.append()
    with pytest.raises(VolumeClosed):
        rig.ask(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.committer.ended)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        rig.disk.end()
    assert rig.told == [(0, None)]
    rig.completions.stop_polling()
    assert rig.disk.commits == 1


async def test_a_commit_that_hangs_keeps_the_file_open_and_locked(rig: Rig) -> None:
    path = rig.file.path
    rig.append()
    rig.ask(0)
    rig.committer.stop()
    rig.file.release()
    with pytest.raises(ImageBusy):
        open_pool_file(path)
    rig.disk.end()
    open_pool_file(path).release()
