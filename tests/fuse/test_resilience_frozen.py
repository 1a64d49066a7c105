"""One image whose storage does not answer stops nobody but those who want something of it."""

import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.callers import Caller, in_thread, shell
from tests.support.mounts import GATE, PATIENCE, Mount, Place, wait_until

COUNT = 256
BACKGROUND, SLOTS = 960, 1024
"""How many requests the kernel sends for nobody who waits, and all that are read from it."""
BLOCK = 4096


@pytest.fixture
def mount(place: Place, mounted: Callable[..., Mount]) -> Iterator[Mount]:
    """A mount with an image behind a gate, which is closed, and another one without."""
    place.image("frozen", b"".join(bytes([number % 251]) * BLOCK for number in range(2 * COUNT)))
    place.image("other", size=1 << 20)
    place.stacks = {"frozen": [GATE]}
    mount = mounted(resize=True)
    mount.close_gate()
    yield mount
    mount.open_gate()


def request(fd: int, number: int) -> bytes:
    """Read one block, or overwrite one with its complement."""
    with mmap.mmap(-1, BLOCK) as block:
        if number % 2:
            assert os.preadv(fd, [block], number * BLOCK) == BLOCK
        else:
            block[:] = bytes([~number & 0xFF]) * BLOCK
            assert os.pwrite(fd, block, number * BLOCK) == BLOCK
        return bytes(block[:])


def use_the_rest_of(mount: Mount) -> None:
    """Do with the other image and the control directory whatever can be done."""
    other = mount.path / "other"
    with other.open("r+b", buffering=0) as file:
        assert file.write(b"w" * 10000) == 10000
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 10001, 0) == b"w" * 10000 + b"\0"
        os.ftruncate(file.fileno(), 1 << 19)
    assert other.stat().st_size == 1 << 19
    assert sorted(path.name for path in mount.path.iterdir()) == [".control", "frozen", "other"]
    assert "frozen" in (mount.control / "status").read_text()
    assert {image["name"]: image["open"] for image in mount.status()["images"]} == {"frozen": True, "other": True}
    assert shell("echo all > .control/images/other/flush", mount.path).returncode == 0
    assert (mount.path / "frozen").stat().st_size == 2 * COUNT * BLOCK
    # Another opener that would use the page cache would have to wait, in the kernel, for direct writes to end.
    os.close(os.open(mount.path / "frozen", os.O_RDONLY | os.O_DIRECT))


def test_everything_else_goes_on_while_one_image_is_frozen_under_256_requests(mount: Mount, place: Place) -> None:
    before = (place.images / "frozen").read_bytes()
    fd = os.open(mount.path / "frozen", os.O_RDWR | os.O_DIRECT)
    requests = [in_thread(request, fd, number) for number in range(COUNT)]
    wait_until(lambda: mount.waiting_at_gate() == COUNT, "all requests wait")
    in_thread(use_the_rest_of, mount).result(PATIENCE)
    assert mount.waiting_at_gate() == COUNT
    assert not any(each.done() for each in requests)
    mount.open_gate()
    blocks = [each.result(PATIENCE) for each in requests]
    for number, block in enumerate(blocks):
        expected = before[number * BLOCK : (number + 1) * BLOCK] if number % 2 else bytes([~number & 0xFF]) * BLOCK
        assert block == expected
    os.fsync(fd)
    os.close(fd)
    assert (place.images / "frozen").read_bytes() == b"".join(blocks) + before[COUNT * BLOCK :]


READ = """
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 4096)
say("open")
sys.stdin.readline()
address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
say(errno_of(libc.pread, fd, address, 4096, ctypes.c_long(0)))
"""


def test_under_any_number_of_asynchronous_requests_who_waits_is_heard(mount: Mount) -> None:
    job = ["--name=job", "--ioengine=libaio", "--iodepth=400", "--numjobs=3", "--direct=1", "--bs=4k", "--rw=randread"]
    end = ["--filesize=2m", "--minimal", "--thread"]
    with Caller(READ, mount.path / "frozen") as reader:
        assert reader.answer() == "open"
        fio = subprocess.Popen(
            ["fio", *job, *end, f"--filename={mount.path / 'frozen'}"], stdout=subprocess.DEVNULL, cwd=mount.place.root
        )
        try:
            wait_until(lambda: mount.waiting_at_gate() == BACKGROUND, "as many requests wait as the kernel sends")
            assert in_thread(mount.status).result(PATIENCE)["images"]
            reader.go_on()
            wait_until(lambda: mount.waiting_at_gate() == BACKGROUND + 1, "the reader waits as well")
            reader.interrupt()
            assert reader.answer() == "EINTR"
            mount.open_gate()
            assert fio.wait(PATIENCE) == 0
        finally:
            fio.kill()


def test_asynchronous_requests_do_not_use_up_what_the_kernel_keeps_for_all(mount: Mount) -> None:
    job = ["--name=job", "--ioengine=libaio", f"--iodepth={COUNT}", "--direct=1", "--bs=4k", "--rw=randread"]
    end = [f"--number_ios={COUNT}", "--filesize=2m", "--minimal", "--thread"]
    fio = subprocess.Popen(
        ["fio", *job, *end, f"--filename={mount.path / 'frozen'}"], stdout=subprocess.DEVNULL, cwd=mount.place.root
    )
    try:
        wait_until(lambda: mount.waiting_at_gate() == COUNT, "all requests wait")
        in_thread(use_the_rest_of, mount).result(PATIENCE)
        with (mount.path / "other").open("rb") as other:
            # Read ahead is asynchronous too.
            assert len(in_thread(other.read).result(PATIENCE)) == 1 << 19
        mount.open_gate()
        assert fio.wait(PATIENCE) == 0
    finally:
        fio.kill()


def test_more_requests_than_there_are_slots_all_complete_when_it_thaws(mount: Mount, place: Place) -> None:
    fd = os.open(mount.path / "frozen", os.O_RDONLY | os.O_DIRECT)
    requests = [in_thread(request, fd, number % COUNT | 1) for number in range(1100)]
    wait_until(lambda: mount.waiting_at_gate() == SLOTS, "all slots are taken")
    (record,) = (place.state / "mounts").glob("*.json")
    wait_until(lambda: '"slots_full": true' in record.read_text(), "the mount's record says so")
    mount.open_gate()
    for each in requests:
        assert len(each.result(PATIENCE)) == BLOCK
    os.close(fd)
    use_the_rest_of_status = in_thread(mount.status).result(PATIENCE)
    assert use_the_rest_of_status["images"]
    wait_until(lambda: '"slots_full": false' in record.read_text(), "the mount's record says so")


def test_ls_of_a_frozen_image_does_not_wait(mount: Mount) -> None:
    reader = in_thread(Path.read_bytes, mount.path / "frozen")
    wait_until(lambda: mount.waiting_at_gate() > 0, "the reader waits")
    assert in_thread(shell, "ls -l && stat frozen", mount.path).result(PATIENCE).returncode == 0
    mount.open_gate()
    assert len(reader.result(PATIENCE)) == 2 * COUNT * BLOCK
