"""Worker threads: order, batches, fairness, errors, and the end of a pool."""

import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from fusecache.api.errors import VolumeClosed
from fusecache.backends.workers import WorkerPool
from tests.support.image_directory import delivered


@asynccontextmanager
async def opened_pool(threads: int = 4) -> AsyncIterator[WorkerPool]:
    async with delivered() as completions:
        pool = WorkerPool(completions, threads=threads)
        yield pool
        await pool.close()
        assert completions.outstanding == 0


async def test_a_lane_of_one_turn_runs_its_calls_in_order() -> None:
    async with opened_pool() as pool:
        lane = pool.lane(turns=1, batch=8)
        ran: list[int] = []
        ended: list[int] = []

        def numbered(n: int) -> int:
            ran.append(n)
            return n

        for n in range(1000):
            lane.fetch(lambda error, result: ended.append(result), numbered, n)
        await lane.drained()
        assert ran == ended == list(range(1000))


async def test_a_call_returns_its_result_or_raises_its_error() -> None:
    async with opened_pool() as pool:
        lane = pool.lane(turns=2)
        assert await lane.call(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await lane.call(divmod, 7, 0)


async def test_a_batch_shares_one_delivery() -> None:
    async with opened_pool() as pool:
        lane = pool.lane(turns=1, batch=32)
        deliveries: list[int] = []
        deliver = lane.deliver

        def counted(finished: list[Any]) -> None:
            deliveries.append(len(finished))
            deliver(finished)

        lane.deliver = counted  # type: ignore[method-assign]
        go = threading.Event()
        lane.submit(lambda error: None, go.wait)
        for _ in range(10):
            lane.submit(lambda error: None, int)
        go.set()
        await lane.drained()
        assert sum(deliveries) == 11
        assert len(deliveries) < 11


async def test_a_slow_call_does_not_hold_back_the_batch_before_it_for_long() -> None:
    async with opened_pool() as pool:
        lane = pool.lane(turns=1, batch=32)
        go, early, started, waited = threading.Event(), trio.Event(), threading.Event(), trio.Event()
        lane.submit(lambda error: early.set(), started.wait)
        lane.submit(lambda error: early.set(), threading.Event().wait, 0.001)
        lane.submit(lambda error: waited.set(), go.wait)
        started.set()
        await early.wait()
        assert not waited.is_set()
        go.set()
        await lane.drained()


async def test_hanging_calls_of_one_lane_leave_threads_to_the_others() -> None:
    async with opened_pool(threads=3) as pool:
        hanging, other = pool.lane(turns=2), pool.lane(turns=2)
        go = threading.Event()
        for _ in range(20):
            hanging.submit(lambda error: None, go.wait)
        for n in range(20):
            assert await other.call(int, n) == n
        assert hanging.outstanding == 20
        go.set()
        await hanging.drained()


async def test_the_loop_goes_on_while_every_thread_hangs() -> None:
    async with opened_pool(threads=2) as pool:
        lane = pool.lane(turns=2)
        go = threading.Event()
        for _ in range(10):
            lane.submit(lambda error: None, go.wait)
        for _ in range(1000):
            await trio.lowlevel.checkpoint()
        assert lane.outstanding == 10
        go.set()
        await lane.drained()


async def test_a_cancelled_call_waits_for_its_end() -> None:
    async with opened_pool() as pool:
        lane = pool.lane(turns=1)
        started, go = trio.Event(), threading.Event()
        token = trio.lowlevel.current_trio_token()
        results: list[str] = []

        def work() -> str:
            token.run_sync_soon(started.set)
            go.wait()
            return "applied"

        async with trio.open_nursery() as nursery:

            async def caller() -> None:
                results.append(await lane.call(work))

            nursery.start_soon(caller)
            await started.wait()
            nursery.cancel_scope.cancel()
            go.set()
        assert results == ["applied"]


async def test_a_call_cancelled_beforehand_does_not_run() -> None:
    async with opened_pool() as pool:
        lane = pool.lane(turns=1)
        ran: list[int] = []
        with trio.CancelScope() as scope:
            scope.cancel()
            await lane.call(ran.append, 1)
        assert scope.cancelled_caught
        await lane.drained()
        assert ran == []


async def test_a_failing_callback_does_not_take_the_others_along(caplog: pytest.LogCaptureFixture) -> None:
    async with opened_pool() as pool:
        lane = pool.lane(turns=1, batch=8)
        ended: list[BaseException | None] = []

        def broken(error: BaseException | None) -> None:
            raise LookupError("broken callback")

        lane.submit(broken, int)
        lane.submit(ended.append, int)
        await lane.drained()
        assert ended == [None]
        assert "broken callback" in caplog.text


async def test_failures_are_reported_before_their_callback() -> None:
    async with opened_pool() as pool:
        seen: list[str] = []
        lane = pool.lane(turns=1, failed=lambda error: seen.append(f"failed {error}"))
        lane.submit(lambda error: seen.append("done"), int, "x1")
        lane.submit(lambda error: seen.append("fine"), int, "1")
        await lane.drained()
        assert seen == ["failed invalid literal for int() with base 10: 'x1'", "done", "fine"]


async def test_waiting_threads_keep_no_argument_alive() -> None:
    class Argument:
        pass

    async with opened_pool() as pool:
        lane = pool.lane(turns=1)
        argument = Argument()
        gone = weakref.ref(argument)
        await lane.call(id, argument)
        del argument
        # The thread that ran the call has ended its turn once the next one ran there.
        await lane.call(int)
        assert gone() is None


async def test_a_closed_pool_refuses_calls() -> None:
    async with delivered() as completions:
        pool = WorkerPool(completions)
        lane = pool.lane(turns=1)
        await lane.call(int)
        await pool.close()
        with pytest.raises(VolumeClosed, match="have ended"):
            lane.submit(lambda error: None, int)
        assert completions.outstanding == 0


async def test_closing_leaves_hanging_threads_behind(caplog: pytest.LogCaptureFixture) -> None:
    async with delivered() as completions:
        pool = WorkerPool(completions, name="hung")
        lane = pool.lane(turns=1)
        go = threading.Event()
        lane.submit(lambda error: None, go.wait)
        await pool.close(patience=0.01)
        assert "left behind, waiting for the kernel: hung-0" in caplog.text
        go.set()
        await lane.drained()
