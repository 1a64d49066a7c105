"""The kernel's threads stayed on the CPU where the first request had found the loop, whatever the loop did later.

The kernel applies a ring's affinity to threads that it starts afterwards; a request then woke another CPU each time,
which takes several times as long as a short write.
"""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusecache.api import Completions
from fusecache.backends.uring import Ring, open_ring

PATIENCE = 20.0
SOME = 20


@pytest.fixture
def completions() -> Iterator[Completions]:
    completions = Completions()
    yield completions
    completions.close()


@pytest.fixture
def ring(completions: Completions) -> Iterator[Ring]:
    allowed = os.sched_getaffinity(0)
    ring = open_ring(completions)
    if ring is None:
        pytest.skip("the kernel refuses io_uring")
    yield ring
    ring.close()
    os.sched_setaffinity(0, allowed)


def settle(completions: Completions) -> None:
    while completions.outstanding:
        assert select.select([completions.fd], [], [], PATIENCE)[0], "no wake-up came"
        completions.acknowledge()


def workers() -> list[int]:
    tasks = Path("/proc/self/task")
    return [int(task.name) for task in tasks.iterdir() if (task / "comm").read_text().startswith("iou-wrk")]


def write_one_by_one(ring: Ring, completions: Completions, fd: int) -> None:
    results: list[int] = []
    for _ in range(SOME):
        ring.write(fd, 0, memoryview(bytearray(4096)), results.append)
        settle(completions)
    assert results == [4096] * SOME


def test_the_threads_that_run_follow_the_loop_and_leave_it_when_there_is_more_than_one_request(
    completions: Completions, ring: Ring, tmp_path: Path
) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in sorted(allowed):
            os.sched_setaffinity(0, {cpu})
            write_one_by_one(ring, completions, fd)
            # A file system without buffered writes that do not wait needs threads; others have none.
            assert all(os.sched_getaffinity(worker) == {cpu} for worker in workers())
        results: list[int] = []
        for _ in range(2):
            ring.write(fd, 0, memoryview(bytearray(4096)), results.append)
            completions.hand_over()
        settle(completions)
        assert all(os.sched_getaffinity(worker) == allowed for worker in workers())
    finally:
        os.close(fd)


def test_another_ring_knows_where_the_threads_are(completions: Completions, ring: Ring, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    allowed = os.sched_getaffinity(0)
    other = open_ring(completions)
    assert other is not None
    try:
        results: list[int] = []
        for _ in range(SOME * 2):
            other.fdatasync(fd, results.append)
            settle(completions)
        assert results == [0] * SOME * 2
        for _ in range(2):
            ring.write(fd, 0, memoryview(bytearray(4096)), results.append)
            completions.hand_over()
        settle(completions)
        assert all(os.sched_getaffinity(worker) == allowed for worker in workers())
    finally:
        other.close()
        os.close(fd)
