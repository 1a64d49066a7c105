"""The task that delivers results: there as long as they follow each other, and never in anybody's way."""

import itertools
import os
import threading

import pytest
import trio

from fusecache.api import Completions

PATIENCE = 20.0
"""Seconds after which a result is taken to be lost."""


class AtWork:
    """Counts who is at work."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.held = False
        self.ended = trio.Event()

    def begin(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    def end(self) -> None:
        self.now -= 1
        self.ended.set()


async def test_who_wants_to_know_hears_of_results(completions: Completions, nursery: trio.Nursery) -> None:
    at_work, delivered = AtWork(), trio.Event()
    with completions.telling(at_work):
        nursery.start_soon(completions.run)
        completions.expect()
        threading.Thread(target=completions.post, args=(delivered.set,)).start()
        with trio.fail_after(PATIENCE):
            await delivered.wait()
            assert at_work.most == 1
            await at_work.ended.wait()
        assert at_work.now == 0


def test_whether_idle_cpus_are_awake_is_what_who_keeps_them_awake_says(completions: Completions) -> None:
    at_work = AtWork()
    with completions.telling(at_work):
        assert not completions.cpus_are_awake
        at_work.held = True
        assert completions.cpus_are_awake
    assert not completions.cpus_are_awake


async def test_the_result_of_what_a_result_leads_to_is_waited_for_without_sleeping(
    completions: Completions, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task has its turn after each result, begins the next piece of work, and the loop is there when that ends."""
    sleeps = 0
    wait_readable = trio.lowlevel.wait_readable

    async def counted(fd: int) -> None:
        nonlocal sleeps
        sleeps += 1
        await wait_readable(fd)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", counted)
    monkeypatch.setattr("fusecache.api.completions._PATIENCE", PATIENCE)
    nursery.start_soon(completions.run)
    with trio.fail_after(PATIENCE):
        for _ in range(20):
            ended = trio.Event()
            completions.expect()
            completions.post(ended.set)
            await ended.wait()
    assert sleeps == 1


async def test_who_is_minded_ends_the_wait_for_results(
    completions: Completions, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a request there to be read, nobody blocks in the wait for a result that may take long."""
    monkeypatch.setattr("fusecache.api.completions._MOMENT", 1000 * PATIENCE)
    requests, request = os.pipe()
    nursery.start_soon(completions.run)
    with completions.minding(requests), trio.fail_after(PATIENCE):
        ended = trio.Event()
        completions.expect()
        completions.expect()
        os.write(request, b"1")
        completions.post(ended.set)
        await ended.wait()
        await trio.lowlevel.wait_readable(requests)
    os.close(request)
    os.close(requests)


async def test_tasks_that_go_on_for_long_do_not_keep_results_waiting(
    completions: Completions, nursery: trio.Nursery
) -> None:
    async def restless() -> None:
        for _ in itertools.repeat(None):
            await trio.lowlevel.checkpoint()

    nursery.start_soon(restless)
    nursery.start_soon(completions.run)
    with trio.fail_after(PATIENCE):
        for _ in range(5):
            ended = trio.Event()
            completions.expect()
            completions.expect()
            completions.post(ended.set)
            await ended.wait()
