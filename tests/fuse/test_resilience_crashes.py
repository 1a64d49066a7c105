"""A layer's background task crashes while requests are PENDING in it: nobody hangs, and what ends late harms nobody."""

import errno
import os
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.fuse.test_semantics_ranges import KEEP_SIZE, PUNCH_HOLE, ZERO, fallocate
from tests.support.callers import in_thread, outcome
from tests.support.mounts import PARK, PATIENCE, Mount, Place, fusecache, wait_until

SIZE = 4 << 20
WRITES = 20
LENGTH = 8192
BACKGROUND = 960
"""Requests that the kernel sends at most for nobody who waits."""


@pytest.fixture
def mount(place: Place, mounted: Callable[..., Mount]) -> Mount:
    """A mount of an image over a layer that keeps requests under way, and of one that has none."""
    place.image("disk", b"." * SIZE)
    place.image("other", b"." * SIZE)
    place.stacks = {"disk": [PARK]}
    return mounted(resize=True)


def begin(mount: Mount, *calls: Callable[[], object], pending: int) -> list["Future[int]"]:
    """Make calls of which so many wait in the layer, the others for these."""
    mount.close_gate()
    waiting = [in_thread(outcome, call) for call in calls]
    wait_until(lambda: mount.waiting_at_gate() == pending, "the requests wait")
    return waiting


def crash(mount: Mount) -> None:
    """Have the layer's background task crash; later stacks have no fault, and nothing waits in them."""
    mount.fail_with("die")
    wait_until(lambda: "stack comes down" in mount.log.read_text(), "the crash is noticed")
    mount.open_gate()
    mount.fail_with(None)


def leave(mount: Mount) -> None:
    """End what waits."""
    (mount.place.switches / "leave").touch()
    wait_until(lambda: mount.waiting_at_gate() == 0, "the requests end")


def slots_in_use(mount: Mount) -> int:
    metrics = (mount.control / "metrics").read_text()
    found = re.search(r"^fusecache_request_slots_in_use (\d+)", metrics, re.MULTILINE)
    assert found
    # The request that asks has one too.
    return int(found[1]) - 1


def pattern(number: int) -> bytes:
    return bytes([number + 1]) * LENGTH


def write(fd: int, number: int) -> Callable[[], object]:
    return lambda: os.pwrite(fd, pattern(number), number * LENGTH)


def use(path: Path) -> None:
    """Write a lot, through many slots, and read it again."""
    with path.open("r+b", buffering=0) as file:
        for number in range(100):
            content = os.urandom(LENGTH)
            assert os.pwrite(file.fileno(), content, number * LENGTH) == LENGTH
            assert os.pread(file.fileno(), LENGTH, number * LENGTH) == content
        os.fsync(file.fileno())


CALLS: dict[str, Callable[[int], object]] = {
    "read": lambda fd: os.pread(fd, LENGTH, 0),
    "write": lambda fd: os.pwrite(fd, pattern(0), 0),
    "fsync": os.fsync,
    "punch": lambda fd: checked(fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 100)),
    "zero": lambda fd: checked(fallocate(fd, ZERO, 0, 100)),
}


def checked(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_pending_request_of_each_kind_is_answered(mount: Mount, call: Callable[[int], object]) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
    waiting = begin(mount, lambda: call(fd), pending=1)
    crash(mount)
    assert [each.result(PATIENCE) for each in waiting] == [errno.EIO]
    assert outcome(call, fd) == errno.EIO
    leave(mount)
    wait_until(lambda: slots_in_use(mount) == 0, "no slot is taken")
    with (mount.path / "disk").open("r+b", buffering=0) as fresh:
        assert outcome(call, fresh.fileno()) == 0
        assert outcome(call, fd) == errno.EIO
    os.close(fd)


def test_requests_that_will_never_end_are_answered_and_their_data_stay_until_they_do(mount: Mount) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
    waiting = begin(
        mount,
        *(write(fd, number) for number in range(WRITES)),
        lambda: os.pread(fd, LENGTH, SIZE - LENGTH),
        pending=WRITES + 1,
    )
    # They overlap the ones before; the others wait already in the kernel, for the writes.
    waiting += [in_thread(outcome, os.pread, fd, 100, number * LENGTH) for number in range(3)]
    waiting += [in_thread(outcome, os.fsync, fd), in_thread(outcome, os.ftruncate, fd, SIZE // 2)]
    wait_until(lambda: slots_in_use(mount) == WRITES + 4, "all wait")

    crash(mount)
    assert {each.result(PATIENCE) for each in waiting} == {errno.EIO}
    assert mount.waiting_at_gate() == WRITES + 1
    assert outcome(os.pread, fd, 100, 0) == outcome(os.pwrite, fd, b"x", 0) == outcome(os.fsync, fd) == errno.EIO
    wait_until(lambda: slots_in_use(mount) == WRITES, "only those of writes are kept")
    for name in ("other", "disk"):
        use(mount.path / name)
    assert "image-failed" in mount.events()
    before = (mount.path / "disk").read_bytes()

    leave(mount)
    wait_until(lambda: slots_in_use(mount) == 0, "the slots are free again")
    late = (mount.place.switches / "late").read_bytes()
    assert sorted(late[at : at + LENGTH] for at in range(0, len(late), LENGTH)) == list(map(pattern, range(WRITES)))
    assert (mount.path / "disk").read_bytes() == before
    use(mount.path / "disk")
    os.close(fd)


def test_as_many_writes_as_the_kernel_sends_that_will_never_end_leave_the_mount_alive(mount: Mount) -> None:
    mount.close_gate()
    job = ["--name=job", "--ioengine=libaio", f"--iodepth={BACKGROUND}", "--direct=1", "--bs=4k", "--rw=randwrite"]
    end = [f"--filesize={SIZE}", "--minimal", "--thread", f"--filename={mount.path / 'disk'}"]
    fio = subprocess.Popen(["fio", *job, *end], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: mount.waiting_at_gate() == BACKGROUND, "the requests wait")
        crash(mount)
        assert fio.wait(PATIENCE) != 0
    finally:
        fio.kill()
    wait_until(lambda: in_thread(slots_in_use, mount).result(PATIENCE) == BACKGROUND, "the slots of all are kept")
    for name in ("other", "disk"):
        in_thread(use, mount.path / name).result(PATIENCE)
    leave(mount)
    wait_until(lambda: slots_in_use(mount) == 0, "the slots are free again")


def test_a_call_that_does_not_return_holds_its_stack_but_not_its_caller(mount: Mount) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
    waiting = begin(mount, lambda: os.lseek(fd, 0, os.SEEK_HOLE), pending=1)
    crash(mount)
    assert [each.result(PATIENCE) for each in waiting] == [errno.EIO]
    os.close(fd)
    # The old stack may still do something to the image.
    opening = in_thread(outcome, use, mount.path / "disk")
    use(mount.path / "other")
    assert not opening.done()
    assert opening.result(PATIENCE) == errno.EBUSY
    leave(mount)
    use(mount.path / "disk")


@pytest.mark.parametrize("call", ["write", "seek"])
def test_a_mount_ends_in_time_though_something_hangs_in_an_image_that_failed(mount: Mount, call: str) -> None:
    fd = os.open(mount.path / "disk", os.O_RDWR | os.O_DIRECT)
    calls = {"write": write(fd, 0), "seek": lambda: os.lseek(fd, 0, os.SEEK_HOLE)}
    waiting = begin(mount, calls[call], pending=1)
    crash(mount)
    assert [each.result(PATIENCE) for each in waiting] == [errno.EIO]
    os.close(fd)
    began = time.monotonic()
    # Nothing can be written back to an image that cannot be opened.
    result = fusecache("unmount", "--keep", mount.path)
    assert (result.returncode, mount.wait()) == (0, 0), result.stderr
    # Only a stack that is still open has to be left behind.
    assert time.monotonic() - began < (4 if call == "write" else 10)
    assert ("leaving behind" in mount.log.read_text()) == (call == "seek")
    assert not mount.path.is_mount()
