"""Results of threads reach the loop: all of them, once, in order, and without a wake-up lost."""

import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio

from fusecache.api import Completions

PATIENCE = 20.0
"""Seconds after which a result is taken to be lost."""


@pytest.fixture
def restless_threads() -> Iterator[None]:
    """Have threads take turns as often as the interpreter can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


class PingPong:
    """Threads that each post a result and wait until it has been delivered before they post the next.

    So the queue runs empty again and again, which is when a wake-up could get lost.
    """

    def __init__(self, completions: Completions, threads: int, rounds: int) -> None:
        self.completions = completions
        self.left = threads * rounds
        self.delivered: list[tuple[int, int]] = []
        self.over = trio.Event()
        self.loop = threading.get_ident()
        self.threads = [threading.Thread(target=self.post, args=(number, rounds)) for number in range(threads)]

    def start(self) -> None:
        """Start all threads."""
        for _ in range(self.left):
            self.completions.expect()
        for thread in self.threads:
            thread.start()

    def post(self, thread: int, rounds: int) -> None:
        """Post the results of one thread."""
        for number in range(rounds):
            delivered = threading.Event()
            self.completions.post(self.deliver, thread, number, delivered)
            if not delivered.wait(PATIENCE):
                return

    def deliver(self, thread: int, number: int, delivered: threading.Event) -> None:
        """Take a result on the loop's thread."""
        assert threading.get_ident() == self.loop
        self.delivered.append((thread, number))
        self.left -= 1
        delivered.set()
        if not self.left:
            self.over.set()

    def check(self) -> None:
        """See that everything came once, and each thread's results in order."""
        for thread in self.threads:
            thread.join()
        rounds = len(self.delivered) // len(self.threads)
        for number in range(len(self.threads)):
            assert [result for thread, result in self.delivered if thread == number] == list(range(rounds))
        assert self.completions.outstanding == 0


@pytest.mark.parametrize("threads", [1, 2, 8, 32])
async def test_no_wake_up_is_lost_however_threads_and_loop_interleave(
    completions: Completions, restless_threads: None, threads: int
) -> None:
    game = PingPong(completions, threads, rounds=1600 // threads)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(completions.run)
            game.start()
            await game.over.wait()
            nursery.cancel_scope.cancel()
    game.check()


@pytest.mark.parametrize("threads", [1, 8])
async def test_no_wake_up_is_lost_where_the_loop_also_collects_by_itself(
    completions: Completions, restless_threads: None, threads: int
) -> None:
    game = PingPong(completions, threads, rounds=800 // threads)
    game.start()
    with trio.fail_after(PATIENCE):
        while game.left:
            # Spin for a while, then leave it to the wake-up: what came in between must not be forgotten.
            for _ in range(20):
                completions.drain()
                await trio.lowlevel.checkpoint()
            if game.left:
                await trio.lowlevel.wait_readable(completions.fd)
                completions.acknowledge()
    game.check()


async def test_results_that_are_ready_together_cost_one_wake_up(completions: Completions) -> None:
    results: list[int] = []
    for number in range(100):
        completions.expect()
        completions.post(results.append, number)
    assert os.eventfd_read(completions.signal_fd) == 1
    assert completions.outstanding == 100
    assert completions.drain() == 100
    assert results == list(range(100))
    assert completions.outstanding == 0


async def test_results_after_a_collection_without_acknowledgement_still_arrive(completions: Completions) -> None:
    arrived = trio.Event()
    for first in (True, False):
        completions.expect()
        completions.post(trio.Event().set if first else arrived.set)
        if first:
            completions.drain()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(completions.run)
        with trio.fail_after(PATIENCE):
            await arrived.wait()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("moment", ["wake-up cleared", "queue emptied"])
async def test_a_result_that_comes_in_the_middle_of_an_acknowledgement_arrives(moment: str) -> None:
    arrived = trio.Event()
    late = [arrived.set]

    def post_late(completions: Completions) -> None:
        if late:
            completions.expect()
            completions.post(late.pop())

    class Interrupted(Completions):
        def drain(self) -> int:
            count = super().drain()
            if moment == "queue emptied":
                post_late(self)
            return count

        def _clear(self) -> None:
            super()._clear()
            if moment == "wake-up cleared":
                post_late(self)

    completions = Interrupted()
    completions.expect()
    completions.post(trio.Event().set)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(completions.run)
        with trio.fail_after(PATIENCE):
            await arrived.wait()
        nursery.cancel_scope.cancel()
    completions.close()


class Memory:
    """A source as the kernel is one: it makes the descriptor readable with each result, whoever polls."""

    def __init__(self, completions: Completions) -> None:
        self._completions = completions
        self._results = 0
        completions.add_source(self)

    def put(self) -> None:
        """Have one more result."""
        self._results += 1
        os.eventfd_write(self._completions.signal_fd, 1)

    def collect(self) -> int:
        count, self._results = self._results, 0
        return count


def readable(completions: Completions) -> bool:
    return bool(select.select([completions.fd], [], [], 0)[0])


def test_the_end_of_polling_collects_what_is_there_and_leaves_no_wake_up(completions: Completions) -> None:
    source = Memory(completions)
    delivered: list[int] = []
    completions.start_polling()
    source.put()
    completions.expect()
    completions.post(delivered.append, 1)
    assert completions.stop_polling() == 2
    assert delivered == [1]
    assert not readable(completions)
    assert completions.stop_polling() == 0


def test_results_wake_the_loop_again_after_polling(completions: Completions) -> None:
    source = Memory(completions)
    for put in (source.put, lambda: completions.post(lambda: None, count=0)):
        completions.start_polling()
        completions.stop_polling()
        put()
        assert readable(completions)
        completions.acknowledge()
        assert not readable(completions)


def test_threads_send_no_wake_up_to_a_polling_loop(completions: Completions) -> None:
    completions.start_polling()
    completions.expect()
    completions.post(lambda: None)
    assert not readable(completions)
    assert completions.drain() == 1


@pytest.mark.parametrize("kind", ["source", "thread"])
def test_a_result_that_comes_just_after_the_wake_up_is_cleared_is_not_lost(
    completions: Completions, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source, clear = Memory(completions), completions._clear

    def clear_and_put() -> None:
        clear()
        if kind == "source":
            source.put()
        else:
            completions.expect()
            completions.post(lambda: None)

    completions.start_polling()
    source.put()
    monkeypatch.setattr(completions, "_clear", clear_and_put)
    assert completions.stop_polling() == 2


async def test_a_callback_that_fails_is_logged_and_the_others_run(
    completions: Completions, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[int] = []
    for divisor in (1, 0, 2):
        completions.expect()
        completions.post(lambda divisor=divisor: results.append(2 // divisor))
    with caplog.at_level(logging.ERROR):
        assert completions.drain() == 3
    assert results == [2, 1]
    assert completions.outstanding == 0
    assert "ZeroDivisionError" in caplog.text


async def test_a_callback_may_post_the_next(completions: Completions) -> None:
    results: list[int] = []

    def chain(number: int) -> None:
        results.append(number)
        if number < 5:
            completions.expect()
            completions.post(chain, number + 1)

    completions.expect()
    completions.post(chain, 0)
    completions.drain()
    assert results == list(range(6))


async def test_thread_work_is_awaited_with_its_result_or_error(completions: Completions) -> None:
    def on_a_thread(work: Callable[[], Any]) -> Callable[[Callable[[BaseException | None, Any], None]], None]:
        def run(finish: Callable[[BaseException | None, Any], None]) -> None:
            try:
                result = work()
            except Exception as error:
                completions.post(finish, error, None)
            else:
                completions.post(finish, None, result)

        def submit(finish: Callable[[BaseException | None, Any], None]) -> None:
            completions.expect()
            threading.Thread(target=run, args=(finish,)).start()

        return submit

    async with trio.open_nursery() as nursery:
        nursery.start_soon(completions.run)
        assert await completions.call(on_a_thread(lambda: 42)) == 42
        with pytest.raises(ZeroDivisionError):
            await completions.call(on_a_thread(lambda: 1 // 0))
        nursery.cancel_scope.cancel()


async def test_cancelling_a_wait_for_thread_work_waits_for_its_end(completions: Completions) -> None:
    submitted = trio.Event()
    finishes: list[Callable[[BaseException | None, Any], None]] = []
    ended: list[str] = []

    def submit(finish: Callable[[BaseException | None, Any], None]) -> None:
        completions.expect()
        finishes.append(finish)
        submitted.set()

    async def call() -> None:
        assert await completions.call(submit) == "result"
        ended.append("with the result")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(completions.run)
        async with trio.open_nursery() as caller:
            caller.start_soon(call)
            await submitted.wait()
            caller.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
            assert not ended
            completions.post(finishes[0], None, "result")
        assert ended == ["with the result"]
        nursery.cancel_scope.cancel()
