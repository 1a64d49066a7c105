"""Whoever makes files durable for layers tells each call once, later, on the loop, and errors as they are."""

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from fusecache.api import Completions, FileSync
from fusecache.backends import file_sync, uring
from fusecache.backends.file_sync import open_file_sync
from fusecache.testing import ThreadFileSync
from layers.rwl.tests.support.failing_disk import DISK_FAILED, failing_disk

Make = Callable[[Completions], AbstractAsyncContextManager[FileSync]]

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878


@asynccontextmanager
async def by_ring(completions: Completions) -> AsyncIterator[FileSync]:
    async with open_file_sync(completions) as made:
        if made._ring is None:  # type: ignore[attr-defined]
            pytest.skip("the kernel refuses io_uring")
        yield made


@asynccontextmanager
async def by_threads(completions: Completions) -> AsyncIterator[FileSync]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_sync, "open_ring", lambda completions: None)
        async with open_file_sync(completions) as made:
            yield made


@asynccontextmanager
async def of_the_kit(completions: Completions) -> AsyncIterator[FileSync]:
    yield ThreadFileSync(completions)


@pytest.fixture(params=[by_ring, by_threads, of_the_kit])
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@asynccontextmanager
async def delivered() -> AsyncIterator[Completions]:
    completions = Completions()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(completions.run)
        yield completions
        nursery.cancel_scope.cancel()
    assert (completions.outstanding, completions.detached) == (0, 0)
    completions.close()


class Told:
    """What was told, and by whom."""

    def __init__(self) -> None:
        self.errors: list[BaseException | None] = []
        self.threads: set[threading.Thread] = set()
        self._changed = trio.Event()

    def __call__(self, error: BaseException | None) -> None:
        self.errors.append(error)
        self.threads.add(threading.current_thread())
        self._changed.set()

    async def wait(self, count: int = 1) -> None:
        with trio.fail_after(20):
            while len(self.errors) < count:
                self._changed = trio.Event()
                await self._changed.wait()


@pytest.mark.parametrize("polling", [False, True])
async def test_every_call_is_told_once_later_and_on_the_loop(make: Make, polling: bool, tmp_path: Path) -> None:
    async with delivered() as completions, make(completions) as sync:
        with (tmp_path / "file").open("wb", buffering=0) as file:
            told = Told()
            if polling:
                completions.start_polling()
            for _ in range(50):
                file.write(b"x" * 4096)
                sync.fdatasync(file.fileno(), told)
            assert not told.errors
            while polling and len(told.errors) < 50:
                completions.drain()
            completions.stop_polling()
            await told.wait(50)
    assert told.errors == [None] * 50
    assert told.threads == {threading.current_thread()}


async def test_a_failure_is_told_once_by_the_kernel_and_passed_on(make: Make) -> None:
    with failing_disk() as disk:
        async with delivered() as completions, make(completions) as sync:
            with (disk.path / "file").open("wb", buffering=0) as file:
                file.write(b"x" * 4096)
                os.fsync(file.fileno())
                os.pwrite(file.fileno(), b"y" * 4096, 0)
                disk.fail()
                told = Told()
                sync.fdatasync(file.fileno(), told)
                await told.wait()
                disk.mend()
                sync.fdatasync(file.fileno(), told)
                await told.wait(2)
    error = told.errors[0]
    assert isinstance(error, OSError)
    assert error.errno == DISK_FAILED
    assert error.strerror == os.strerror(DISK_FAILED)
    assert told.errors[1] is None


async def test_what_cannot_be_synced_is_an_error(make: Make) -> None:
    reader, writer = os.pipe()
    async with delivered() as completions, make(completions) as sync:
        told = Told()
        sync.fdatasync(writer, told)
        await told.wait()
    os.close(reader)
    os.close(writer)
    assert isinstance(told.errors[0], OSError)
    assert told.errors[0].errno == errno.EINVAL


async def test_where_the_kernel_takes_no_request_a_thread_does_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = uring._syscall

    def refusing(number: int, *arguments: object) -> int:
        if number != uring._ENTER:
            return int(real(number, *arguments))
        ctypes.set_errno(errno.EAGAIN)
        return -1

    async with delivered() as completions, by_ring(completions) as sync:
        with (tmp_path / "file").open("wb", buffering=0) as file:
            told = Told()
            with monkeypatch.context() as patch:
                patch.setattr(uring, "_syscall", refusing)
                sync.fdatasync(file.fileno(), told)
            await told.wait()
            sync.fdatasync(file.fileno(), told)
            await told.wait(2)
    assert told.errors == [None, None]


async def test_a_sync_that_was_interrupted_is_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with delivered() as completions, by_ring(completions) as sync:
        ring = sync._ring  # type: ignore[attr-defined]
        with (tmp_path / "file").open("wb", buffering=0) as file:
            told = Told()
            monkeypatch.setattr(ring, "fdatasync", lambda fd, done: done(-errno.EINTR))
            sync.fdatasync(file.fileno(), told)
            assert not told.errors
            await told.wait()
    assert told.errors == [None]


@contextmanager
def frozen(directory: Path) -> Iterator[None]:
    """Have all that writes to a file system hang in the kernel."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _FIFREEZE, bytes(4))
        try:
            yield
        finally:
            fcntl.ioctl(fd, _FITHAW, bytes(4))
    finally:
        os.close(fd)


async def test_what_hangs_in_another_ring_stops_no_sync(tmp_path: Path) -> None:
    hanging, hung = uring._WORKERS, Told()
    async with delivered() as completions, by_ring(completions) as sync:
        ring = uring.open_ring(completions)
        assert ring is not None
        with failing_disk() as disk, (tmp_path / "log").open("wb", buffering=0) as log:
            log.write(b"x")
            # Direct, as the kernel has buffered writes done by fewer threads.
            files = [
                os.open(disk.path / str(number), os.O_RDWR | os.O_CREAT | os.O_DIRECT) for number in range(hanging)
            ]
            with frozen(disk.path):
                for file in files:
                    ring.write(
                        file,
                        0,
                        memoryview(mmap.mmap(-1, 4096)),
                        lambda result: hung(None if result == 4096 else OSError(result)),
                    )
                ring._submit()
                told = Told()
                sync.fdatasync(log.fileno(), told)
                await told.wait()
                assert not hung.errors
            await hung.wait(hanging)
            for file in files:
                os.close(file)
        ring.close()
    assert told.errors == [None]
    assert hung.errors == [None] * hanging
