"""Blocking calls that may be given up: made wholly or never, and what comes too late is undone."""

import errno
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api.errors import FusecacheError, VolumeClosed, errno_of
from fusecache.backends.rbd.calls import on_thread
from fusecache.backends.workers import WorkerPool
from tests.support.image_directory import delivered

PATIENCE = 20.0
"""Seconds after which a thread counts as hanging."""


class Kept:
    """Counts what calls keep alive."""

    def __init__(self) -> None:
        self.alive = 0
        self.idle = threading.Event()

    def __call__(self) -> Callable[[], None]:
        self.alive += 1
        self.idle.clear()
        held = [True]

        def release() -> None:
            if held:
                held.clear()
                self.alive -= 1
                if not self.alive:
                    self.idle.set()

        return release


class Gate:
    """Work that hangs until it is told to go on."""

    def __init__(self, pool: WorkerPool) -> None:
        self.lane = pool.lane(turns=1)
        self.kept = Kept()
        self.begun = threading.Event()
        self.go = threading.Event()
        self.made: list[str] = []
        self.undone: list[str] = []

    def make(self, name: str) -> str:
        self.begun.set()
        assert self.go.wait(PATIENCE)
        self.made.append(name)
        return name

    def fail(self, name: str) -> str:
        self.make(name)
        raise ValueError(name)

    async def call(self, name: str = "it", work: Callable[..., Any] | None = None, **bounds: Any) -> Any:
        work = work or self.make
        return await on_thread(self.lane, work, name, keep=self.kept, undo=self.undone.append, **bounds)

    async def started(self) -> None:
        assert await trio.to_thread.run_sync(self.begun.wait, PATIENCE)

    async def over(self) -> None:
        self.go.set()
        assert await trio.to_thread.run_sync(self.kept.idle.wait, PATIENCE)


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    """A gate on a thread of its own."""
    async with delivered() as completions:
        pool = WorkerPool(completions, threads=2)
        gate = Gate(pool)
        yield gate
        gate.go.set()
        await pool.close()


async def test_a_call_returns_what_its_work_returns_and_keeps_what_it_needs_until_then(gate: Gate) -> None:
    gate.go.set()
    assert await gate.call() == "it"
    with pytest.raises(ValueError, match="it"):
        await gate.call(work=gate.fail)
    assert not gate.undone
    await gate.over()


async def test_a_call_that_takes_too_long_is_given_up_and_undone_when_it_comes(gate: Gate) -> None:
    with pytest.raises(FusecacheError, match=r"did not answer within 0\.05 s") as caught:
        await gate.call(within=0.05)
    assert errno_of(caught.value) == errno.EIO
    assert gate.kept.alive
    await gate.over()
    assert (gate.made, gate.undone) == (["it"], ["it"])


async def test_a_call_that_failed_too_late_leaves_nothing_to_undo(gate: Gate) -> None:
    with pytest.raises(FusecacheError):
        await gate.call(work=gate.fail, within=0.05)
    await gate.over()
    assert not gate.undone


async def test_a_cancelled_call_that_has_begun_is_undone(gate: Gate) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.call)
        await gate.started()
        nursery.cancel_scope.cancel()
    await gate.over()
    assert gate.undone == ["it"]


async def test_a_cancelled_call_that_has_not_begun_is_never_made(gate: Gate) -> None:
    async with trio.open_nursery() as outer:
        outer.start_soon(gate.call, "first")
        await gate.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: gate.call("second", patience=PATIENCE))
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        gate.go.set()
    await gate.over()
    assert (gate.made, gate.undone) == (["first"], [])


async def test_a_cancelled_change_waits_for_its_end_and_tells_it(gate: Gate) -> None:
    results = []

    async def change() -> None:
        results.append(await gate.call(patience=PATIENCE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change)
        await gate.started()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        assert not gate.made
        gate.go.set()
    assert (results, gate.undone) == (["it"], [])


async def test_a_cancelled_change_waits_no_longer_than_its_patience(gate: Gate) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: gate.call(patience=0.05))
        await gate.started()
        nursery.cancel_scope.cancel()
    assert not gate.made
    await gate.over()
    assert gate.made == ["it"]


async def test_a_call_on_threads_that_have_ended_keeps_nothing(gate: Gate) -> None:
    async with delivered() as completions:
        pool = WorkerPool(completions)
        lane = pool.lane(turns=1)
        await pool.close()
        with pytest.raises(VolumeClosed):
            await on_thread(lane, gate.make, "it", keep=gate.kept)
    assert not gate.kept.alive
