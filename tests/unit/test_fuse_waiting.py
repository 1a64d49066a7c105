"""How the channel waits: quickly, and never at the cost of others."""

import itertools
import os
from collections.abc import Iterator

import pytest
import trio

from fusecache.api import Completions
from fusecache.fuse.spin import Spin
from fusecache.fuse.waiting import Waiting


class Rig:
    """The waiting of a channel on pipes that nobody writes to."""

    def __init__(self, spin: float = 0.0) -> None:
        self.completions = Completions()
        self.requests, self.request = os.pipe()
        self.relay, self.reply = os.pipe()
        self.waiting = Waiting(self.requests, self.relay, self.completions, Spin(spin, cpus=2))

    def close(self) -> None:
        for fd in (self.requests, self.request, self.relay, self.reply):
            os.close(fd)
        self.completions.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


async def test_a_task_that_can_run_goes_before_waiting_for_the_result_of_a_thread(rig: Rig) -> None:
    rig.completions.expect()
    os.write(rig.request, b"1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
        # Had it waited, it would have found the request.
        assert rig.waiting.linger(True) == 0


async def test_with_nothing_else_to_do_the_result_of_a_thread_is_waited_for_without_sleeping(rig: Rig) -> None:
    told: list[int] = []
    rig.completions.start_polling()
    rig.completions.expect()
    rig.completions.stop_polling()
    rig.completions.post(told.append, 1)
    assert rig.waiting.linger(True) > 0
    assert told == [1]


async def test_waiting_on_gives_other_tasks_their_turn_in_between(rig: Rig) -> None:
    turns: list[int] = []

    async def other() -> None:
        for turn in range(3):
            turns.append(turn)
            await trio.lowlevel.checkpoint()

    rig.completions.expect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert not await rig.waiting.outlast(relayed=False)
    assert turns == [0, 1, 2]


async def test_a_request_ends_the_waiting(rig: Rig) -> None:
    rig.completions.expect()
    os.write(rig.request, b"1")
    assert rig.waiting.linger(True) > 0


class Kernel:
    """Brings a result when it has been looked for a number of times."""

    def __init__(self, completions: Completions, looks: int) -> None:
        self.completions = completions
        self.looks = looks
        completions.add_source(self)
        completions.outstanding += 1
        completions.detached += 1

    def collect(self) -> int:
        self.looks -= 1
        if self.looks:
            return 0
        self.completions.outstanding -= 1
        self.completions.detached -= 1
        return 1


@pytest.fixture
def spinning(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A rig that spins for 50 us; whoever looks at the clock takes 10."""
    now = itertools.count(0, 10_000)
    monkeypatch.setattr("fusecache.fuse.waiting.time.perf_counter_ns", lambda: next(now))
    monkeypatch.setattr(Spin.__init__, "__defaults__", (2,))
    rig = Rig(50e-6)
    yield rig
    rig.close()


async def test_a_single_result_of_the_kernel_is_spun_for_longer(spinning: Rig) -> None:
    kernel = Kernel(spinning.completions, 30)
    assert spinning.waiting.linger(True) > 0
    assert kernel.looks == 0


async def test_of_several_results_of_the_kernel_none_is_spun_for_longer(spinning: Rig) -> None:
    kernels = [Kernel(spinning.completions, 30) for _ in range(2)]
    assert spinning.waiting.linger(True) == 0
    assert all(kernel.looks > 15 for kernel in kernels)


async def test_a_result_of_the_kernel_that_takes_long_is_waited_for_without_sleeping(spinning: Rig) -> None:
    kernel = Kernel(spinning.completions, 100)
    spinning.completions.start_polling()
    assert spinning.waiting.linger(True) == 0
    kernel.looks = 2
    os.eventfd_write(spinning.completions.signal_fd, 1)
    # This time no spin is tried: the last one was in vain.
    assert spinning.waiting.linger(True) > 0
    assert kernel.looks == 0


async def test_a_task_that_can_run_ends_a_spin_that_found_nothing_so_far(spinning: Rig) -> None:
    kernel = Kernel(spinning.completions, 30)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
        assert spinning.waiting.linger(True) == 0
        # One by linger() itself, and a few by the spin.
        assert kernel.looks == 25
    # It counts as no spin in vain: the next one is tried.
    assert spinning.waiting.linger(True) > 0
    assert kernel.looks == 0
