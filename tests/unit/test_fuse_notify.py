"""Notifications go out in order, from a thread of their own that keeps nobody waiting."""

import errno
import os
from collections.abc import Iterator

import pytest

from fusecache.fuse.notify import Notifier
from fusecache.fuse.protocol import invalidation


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_invalidations_are_written_in_order_before_the_end(pipe: tuple[int, int]) -> None:
    notifier = Notifier(pipe[1])
    for nodeid in range(1, 101):
        notifier.invalidate(nodeid)
    notifier.close()
    assert os.read(pipe[0], 65536) == b"".join(invalidation(nodeid) for nodeid in range(1, 101))


def test_a_refused_notification_is_logged_unless_the_kernel_does_not_know_the_file(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [FileNotFoundError(errno.ENOENT, "unknown"), OSError(errno.ENOTCONN, "gone")]
    original = os.write

    def write(fd: int, data: bytes) -> int:
        if fd == pipe[1] and errors:
            raise errors.pop(0)
        return original(fd, data)

    monkeypatch.setattr(os, "write", write)
    notifier = Notifier(pipe[1])
    for nodeid in (1, 2, 3):
        notifier.invalidate(nodeid)
    notifier.close()
    assert [record.getMessage() for record in caplog.records] == ["the kernel refused a notification: [Errno 107] gone"]
    assert os.read(pipe[0], 65536) == invalidation(3)


def test_a_notification_the_kernel_never_finishes_keeps_nobody(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    while True:
        try:
            os.write(pipe[1], bytes(4096))
        except BlockingIOError:
            break
    os.set_blocking(pipe[1], True)
    notifier = Notifier(pipe[1])
    notifier.invalidate(1)
    notifier.close()
    assert notifier._thread.daemon
    assert notifier._thread.is_alive()
    while notifier._thread.is_alive():
        os.read(pipe[0], 65536)
        notifier._thread.join(0.01)
