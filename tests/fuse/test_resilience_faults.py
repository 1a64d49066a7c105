"""Failures below the mount: each comes to the caller as what it is, and to nobody else."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

import pytest

from tests.fuse.test_semantics_ranges import KEEP_SIZE, PUNCH_HOLE, ZERO, fallocate
from tests.support.callers import in_thread, outcome, shell
from tests.support.mounts import FAULT, GATE, PASSTHROUGH, PATIENCE, Mount, Place, wait_until

SIZE = 1 << 20


@pytest.fixture
def mount(place: Place, mounted: Callable[..., Mount]) -> Mount:
    """A mount of an image over a layer that fails on demand, and of one that does not."""
    place.image("disk", b"." * SIZE)
    place.image("other", b"." * SIZE)
    place.stacks = {"disk": [PASSTHROUGH, FAULT, PASSTHROUGH]}
    return mounted()


@pytest.fixture
def fd(mount: Mount) -> Iterator[int]:
    """The image that may fail, open past the page cache."""
    fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
    yield fd
    # Fails where the daemon has ended.
    with contextlib.suppress(OSError):
        os.close(fd)


def outcomes(fd: int) -> dict[str, int]:
    """Try everything that reaches the layers; return the errno of each."""
    return {
        "read": outcome(os.pread, fd, 4096, 0),
        "unaligned read": outcome(os.pread, fd, 100, 4000),
        "write": outcome(os.pwrite, fd, b"w" * 4096, 0),
        "unaligned write": outcome(os.pwrite, fd, b"w", 5),
        "fsync": outcome(os.fsync, fd),
        "fdatasync": outcome(os.fdatasync, fd),
        "punch": fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096),
        "zero": fallocate(fd, ZERO, 0, 4096),
        "seek": outcome(os.lseek, fd, 0, os.SEEK_DATA),
    }


def test_every_errno_comes_through_unchanged_and_goes_when_its_cause_goes(mount: Mount, fd: int) -> None:
    for number in (errno.EIO, errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ETIMEDOUT, errno.ESTALE, errno.EBUSY):
        mount.fail_with(number)
        assert outcomes(fd) == dict.fromkeys(outcomes(fd), number)
    mount.fail_with(None)
    assert set(outcomes(fd).values()) == {0}


def test_a_buffered_reader_and_writer_see_the_failure_too(mount: Mount) -> None:
    with (mount.path / "disk").open("r+b", buffering=0) as file:
        mount.fail_with(errno.ENOSPC)
        assert outcome(file.write, b"x") == errno.ENOSPC
        mount.fail_with(errno.EIO)
        assert outcome(file.read, 100) == errno.EIO
        mount.fail_with(None)
        assert file.read(2) == b".."


def test_an_exception_that_nobody_expects_is_eio_with_a_traceback_in_the_log(mount: Mount, fd: int) -> None:
    mount.fail_with("crash")
    assert outcomes(fd) == dict.fromkeys(outcomes(fd), errno.EIO)
    mount.fail_with(None)
    assert set(outcomes(fd).values()) == {0}
    assert (mount.path / "other").read_bytes() == b"." * SIZE
    log = mount.log.read_text()
    assert "Traceback" in log
    assert "ZeroDivisionError: an exception that nobody expects" in log


def test_a_commands_errno_is_the_failures(mount: Mount) -> None:
    for what, word in ((errno.ENOSPC, "No space left"), (errno.EIO, "Input/output error"), ("crash", "Input/output")):
        mount.fail_with(what)
        for file in ("images/disk/flush", "images/disk/discard"):
            result = shell(f"echo 1 > .control/{file}", mount.path)
            assert (result.returncode, word in result.stderr) == (1, True), result.stderr
        reason = "an exception that nobody expects" if what == "crash" else word
        assert reason in (mount.control / "images/disk/last_error").read_text()
    mount.fail_with(None)
    assert shell("echo 1 > .control/images/disk/flush", mount.path).returncode == 0


def test_flush_all_is_the_failure_of_the_image_that_failed(mount: Mount, fd: int) -> None:
    with (mount.path / "other").open("rb"):
        mount.fail_with(errno.ENOSPC)
        result = shell("echo all > .control/flush", mount.path)
        assert "No space left" in result.stderr
        assert "No space left" in (mount.control / "images/disk/last_error").read_text()
        assert (mount.control / "images/other/last_error").read_text() == ""
    mount.fail_with(None)


def test_a_stack_that_comes_down_takes_its_image_with_it_and_nothing_else(mount: Mount, fd: int) -> None:
    with (mount.path / "other").open("r+b", buffering=0) as other:
        mount.fail_with("die")
        assert outcome(os.pread, fd, 4096, 0) == errno.EIO
        mount.fail_with(None)
        assert in_thread(outcomes, fd).result(PATIENCE) == dict.fromkeys(outcomes(fd), errno.EIO)
        assert other.write(b"fine") == 4
        os.fsync(other.fileno())
    assert "image-failed" in mount.events()
    assert "a background task of the layer crashed" in mount.log.read_text()


def test_a_stack_that_came_down_is_opened_anew_by_the_next_opener(mount: Mount, fd: int, place: Place) -> None:
    assert os.pwrite(fd, b"acknowledged", 0) == 12
    for _ in range(3):
        with (mount.path / "disk").open("r+b", buffering=0) as file:
            mount.fail_with("die")
            assert outcome(file.write, b"lost") == errno.EIO
            mount.fail_with(None)
            with (mount.path / "disk").open("r+b", buffering=0) as fresh:
                assert fresh.read(12) == b"acknowledged"
                assert os.pwrite(fresh.fileno(), b"A", 0) == 1
                os.fsync(fresh.fileno())
                assert os.pwrite(fresh.fileno(), b"a", 0) == 1
            assert outcome(os.fsync, file.fileno()) == errno.EIO
    assert (place.images / "disk").read_bytes()[:12] == b"acknowledged"
    assert os.fstat(fd).st_size == SIZE


def test_everything_that_waits_in_a_stack_fails_when_it_comes_down(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", b"." * SIZE)
    place.layers = [FAULT, GATE]
    mount = mounted()
    mount.close_gate()
    fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
    waiting = [in_thread(outcome, os.pread, fd, 4096, number * 4096) for number in range(20)]
    waiting += [in_thread(outcome, os.pwrite, fd, b"w" * 4096, number * 4096) for number in range(40)]
    waiting += [in_thread(outcome, os.fsync, fd) for _ in range(5)]
    wait_until(lambda: mount.waiting_at_gate() >= 20, "requests wait")
    mount.fail_with("die")
    mount.open_gate()
    assert {future.result(PATIENCE) for future in waiting} == {errno.EIO}
    mount.fail_with(None)
    os.close(fd)
    assert (mount.path / "disk").read_bytes() == b"." * SIZE


def test_a_failure_while_an_image_is_released_is_told_and_the_image_opens_again(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    place.image("disk", b"." * SIZE)
    place.layers = [FAULT]
    mount = mounted(release_after="0s")
    with (mount.path / "disk").open("r+b", buffering=0) as file:
        file.write(b"fresh")
        mount.fail_with(errno.EIO)
    wait_until(lambda: "image-failed" in mount.events(), "the failure is told")
    mount.fail_with(None)
    assert (mount.path / "disk").read_bytes()[:6] == b"fresh."


def test_the_daemon_of_a_failing_image_ends_as_any_other(mount: Mount, fd: int) -> None:
    os.pwrite(fd, b"x", 0)
    mount.fail_with(errno.EIO)
    assert mount.terminate() == 0
    assert not mount.path.is_mount()
