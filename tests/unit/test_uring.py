"""The ring: requests reach the file, results come back once, and a kernel that refuses is no failure."""

import ctypes
import errno
import gc
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusecache.api import Completions
from fusecache.backends import uring
from fusecache.backends.uring import Ring, open_ring

PATIENCE = 20.0


@pytest.fixture
def ring(completions: Completions) -> Iterator[Ring]:
    ring = open_ring(completions)
    if ring is None:
        pytest.skip("the kernel refuses io_uring")
    yield ring
    ring.close()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def settle(completions: Completions) -> None:
    """Wait, as the loop does, until everything outstanding has been delivered."""
    while completions.outstanding:
        assert select.select([completions.fd], [], [], PATIENCE)[0], "no wake-up came"
        completions.acknowledge()


def test_what_is_written_is_in_the_file_and_is_read_back(completions: Completions, ring: Ring, fd: int) -> None:
    results: list[int] = []
    data = memoryview(bytearray(os.urandom(100_001)))
    ring.write(fd, 3, data, results.append)
    settle(completions)
    buffer = bytearray(100_001)
    ring.read(fd, 3, buffer, results.append)
    settle(completions)
    assert results == [100_001, 100_001]
    assert buffer == data
    assert os.pread(fd, 200_000, 0) == bytes(3) + data


def test_more_requests_than_the_ring_has_places_all_end_once(completions: Completions, ring: Ring, fd: int) -> None:
    ended: list[int] = []
    block = memoryview(bytearray(b"x" * 512))
    for number in range(3000):
        if ring.full:
            settle(completions)
        ring.write(fd, number * 512, block, lambda result, number=number: ended.append(number))  # type: ignore[misc]
    settle(completions)
    assert sorted(ended) == list(range(3000))
    assert os.fstat(fd).st_size == 3000 * 512
    assert (completions.outstanding, completions.detached) == (0, 0)


def test_a_polling_loop_collects_results_itself_and_no_wake_up_is_left_of_them(
    completions: Completions, ring: Ring, fd: int
) -> None:
    results: list[int] = []
    completions.start_polling()
    ring.write(fd, 0, memoryview(bytearray(4096)), results.append)
    assert not results, "nothing is handed over before the loop has nothing else to do"
    completions.hand_over()
    while not results:
        completions.drain()
    completions.stop_polling()
    assert not select.select([completions.fd], [], [], 0)[0]
    ring.write(fd, 0, memoryview(bytearray(4096)), results.append)
    settle(completions)
    assert results == [4096, 4096]


def test_a_result_that_comes_while_polling_ends_is_not_lost(completions: Completions, ring: Ring, fd: int) -> None:
    for _ in range(300):
        completions.start_polling()
        ring.write(fd, 0, memoryview(bytearray(4096)), lambda result: None)
        completions.stop_polling()
        settle(completions)


def test_a_failure_is_a_negative_errno(completions: Completions, ring: Ring, fd: int) -> None:
    results: list[int] = []
    closed = os.dup(fd)
    os.close(closed)
    ring.read(closed, 0, bytearray(10), results.append)
    settle(completions)
    assert results == [-errno.EBADF]


def test_a_read_at_the_end_of_the_file_is_short(completions: Completions, ring: Ring, fd: int) -> None:
    os.pwrite(fd, b"abc", 0)
    results: list[int] = []
    buffer = bytearray(10)
    ring.read(fd, 0, buffer, results.append)
    settle(completions)
    assert results == [3]
    assert bytes(buffer[:3]) == b"abc"


def test_a_callback_that_fails_stops_no_other(
    completions: Completions, ring: Ring, fd: int, caplog: pytest.LogCaptureFixture
) -> None:
    results: list[int] = []
    completions.start_polling()
    ring.write(fd, 0, memoryview(bytearray(8)), lambda result: results.append(1 // 0))
    ring.write(fd, 8, memoryview(bytearray(8)), results.append)
    completions.stop_polling()
    settle(completions)
    assert results == [8]
    assert "callback failed" in caplog.text


def refusing(number: int, refused: int) -> Callable[..., int]:
    """A system call that fails with *number* when it is *refused*."""
    real = uring._syscall

    def call(which: int, *args: object) -> int:
        if which != refused:
            return int(real(which, *args))
        ctypes.set_errno(number)
        return -1

    return call


def test_a_kernel_that_refuses_rings_leaves_none(
    completions: Completions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(uring, "_syscall", refusing(errno.EPERM, uring._SETUP))
    with caplog.at_level("INFO"):
        assert open_ring(completions) is None
    assert "threads are used instead" in caplog.text


def test_requests_that_the_kernel_does_not_take_end_with_its_errno(
    completions: Completions, ring: Ring, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(uring, "_syscall", refusing(errno.EAGAIN, uring._ENTER))
        completions.start_polling()
        ring.write(fd, 0, memoryview(bytearray(8)), results.append)
        ring.write(fd, 8, memoryview(bytearray(8)), results.append)
        completions.stop_polling()
    assert results == [-errno.EAGAIN, -errno.EAGAIN]
    ring.write(fd, 0, memoryview(bytearray(b"after it")), results.append)
    settle(completions)
    assert results[2:] == [8]
    assert os.pread(fd, 100, 0) == b"after it"


def test_a_sync_is_handed_over_at_once(completions: Completions, ring: Ring, fd: int) -> None:
    results: list[int] = []
    completions.start_polling()
    ring.write(fd, 0, memoryview(bytearray(8)), results.append)
    ring.fdatasync(fd, results.append)
    while len(results) < 2:
        completions.drain()
    completions.stop_polling()
    assert sorted(results) == [0, 8]


def test_a_sync_that_the_kernel_does_not_take_raises_and_is_never_told(
    completions: Completions, ring: Ring, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(uring, "_syscall", refusing(errno.EAGAIN, uring._ENTER))
        with pytest.raises(BlockingIOError):
            ring.fdatasync(fd, results.append)
    assert (completions.outstanding, completions.detached) == (0, 0)
    ring.fdatasync(fd, results.append)
    settle(completions)
    assert results == [0]


def test_a_ring_leaves_no_descriptor_behind(completions: Completions) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - the count is what matters
    for _ in range(3):
        ring = open_ring(completions)
        if ring is not None:
            ring.close()
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_buffers_of_requests_that_hang_outlive_the_ring(
    completions: Completions, caplog: pytest.LogCaptureFixture
) -> None:
    ring = open_ring(completions)
    if ring is None:
        pytest.skip("the kernel refuses io_uring")
    reader, writer = os.pipe()
    buffer = bytearray(3)
    ring.read(reader, 0, buffer, lambda result: None)
    ring.close()
    assert "1 requests are left behind" in caplog.text
    del ring
    gc.collect()
    with pytest.raises(BufferError):
        buffer.clear()
    os.write(writer, b"abc")
    assert select.select([completions.fd], [], [], PATIENCE)[0], "the request never ended"
    assert buffer == b"abc"
    os.close(reader)
    os.close(writer)
