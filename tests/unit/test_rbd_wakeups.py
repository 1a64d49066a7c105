"""Threads of a client wake up together while many requests are under way, and only where nobody chose otherwise."""

import os
import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("rados", reason="Ceph's bindings are not installed")
from fusecache.backends.rbd.wakeups import Wakeups, gentle_threads, threads_of


class Sleeper:
    """A thread that does nothing until the test ends."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.over.wait)

    def start(self) -> int:
        """Start it, and return its number."""
        self.thread.start()
        assert self.thread.native_id is not None
        return self.thread.native_id

    def end(self) -> None:
        """Have it end, and wait for that."""
        self.over.set()
        self.thread.join()


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    sleeper = Sleeper()
    yield sleeper
    sleeper.end()


def test_those_that_are_made_are_found_and_their_maker_stays_as_it_was(sleeper: Sleeper) -> None:
    made, threads = threads_of(sleeper.start)
    assert threads == {made}
    assert made in gentle_threads()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_where_the_process_has_a_policy_it_stays(sleeper: Sleeper) -> None:
    found: list[tuple[int, set[int]]] = []

    def make() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        found.append(threads_of(sleeper.start))

    maker = threading.Thread(target=make)
    maker.start()
    maker.join()
    ((made, threads),) = found
    assert threads == set()
    assert os.sched_getscheduler(made) == os.SCHED_IDLE


def test_the_policy_follows_how_many_are_under_way(sleeper: Sleeper) -> None:
    made, threads = threads_of(sleeper.start)
    wakeups = Wakeups()
    wakeups.adopt(threads)
    seen = []
    for under_way in (0, 16, 3, 4, 4, 0):
        for _ in range(256):
            wakeups.note(under_way)
        seen.append(os.sched_getscheduler(made) == os.SCHED_BATCH)
    assert seen == [False, True, False, True, True, False]


def test_threads_that_have_ended_are_passed_over() -> None:
    sleeper = Sleeper()
    _, threads = threads_of(sleeper.start)
    sleeper.end()
    wakeups = Wakeups()
    wakeups.adopt(threads)
    wakeups.note(0)
    assert not wakeups.together
