"""Signals while a program uses a mount: those that do not kill are not noticed, those that do leave nothing behind."""

import random
import subprocess
import sys
from collections.abc import Callable

from tests.support.callers import Caller
from tests.support.mounts import PATIENCE, Mount, Place, wait_until

SIZE = 1 << 20

UNDER_A_TIMER = """
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
path, rounds = sys.argv[1], int(sys.argv[2])
block = mmap.mmap(-1, 65536)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for number in range(rounds):
    fd = os.open(path, os.O_RDWR | (os.O_DIRECT if number % 2 else 0))
    offset = number * 65536 % (1 << 20)
    block[:] = bytes([number % 256]) * 65536
    assert os.pwrite(fd, block, offset) == 65536
    assert os.preadv(fd, [block], offset) == 65536
    assert block[:] == bytes([number % 256]) * 65536
    os.fsync(fd)
    assert os.stat(path).st_size == os.fstat(fd).st_size == 1 << 20
    assert len(os.listdir(os.path.dirname(path))) == 2
    os.close(fd)
say("done")
"""

UNTIL_KILLED = """
import os, sys
path = sys.argv[1]
while True:
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    os.stat(os.path.dirname(path) + "/.control/status")
    os.pread(fd, 4096, 0)
    os.pwrite(fd, b"w" * 5000, 123)
    os.fsync(fd)
    control = os.open(os.path.dirname(path) + "/.control/flush", os.O_WRONLY)
    os.write(control, b"all")
    os.close(control)
    os.close(fd)
"""


def is_idle(mount: Mount) -> bool:
    metrics = (mount.control / "metrics").read_text().splitlines()
    (slots,) = [line.split()[-1] for line in metrics if line.startswith("fusecache_request_slots_in_use")]
    # The request that asks is under way itself.
    return float(slots) <= 1 and not any(image["open"] for image in mount.status()["images"])


def test_a_program_with_a_timer_does_not_notice_that_it_interrupts(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", size=SIZE)
    mount = mounted(release_after="0s")
    with Caller(UNDER_A_TIMER, mount.path / "disk", 150) as caller:
        assert caller.answer() == "done"
    wait_until(lambda: is_idle(mount), "nothing is left open or under way")
    mount.unmount()


def test_programs_that_are_killed_leave_nothing_open_and_nothing_under_way(
    place: Place, mounted: Callable[..., Mount], seed: int
) -> None:
    chance = random.Random(seed)
    for name in ("one", "two"):
        place.image(name, size=SIZE)
    mount = mounted(release_after="0s")
    for _ in range(5):
        users = [
            subprocess.Popen([sys.executable, "-S", "-c", UNTIL_KILLED, mount.path / name])
            for name in ("one", "two", "one", "two")
        ]
        wait_until(lambda: all(image["open"] for image in mount.status()["images"]), "both images are in use")
        for _ in range(chance.randrange(20)):
            (mount.control / "status").stat()
        for user in users:
            user.kill()
        for user in users:
            user.wait(PATIENCE)
    wait_until(lambda: is_idle(mount), "nothing is left open or under way")
    mount.unmount()
    assert "Traceback" not in mount.log.read_text()
