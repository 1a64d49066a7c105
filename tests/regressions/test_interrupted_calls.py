"""Calls that a timer interrupted failed with EINTR, which programs do not expect of an ordinary file.

It broke ``qemu-img convert`` to a new name, whose asynchronous I/O interrupts its own ``open`` now and then.
"""

import subprocess
import sys
from collections.abc import Callable

from tests.support.mounts import Mount, Place

PROGRAM = """
import ctypes, os, signal, sys

libc = ctypes.CDLL(None, use_errno=True)
path = os.fsencode(sys.argv[1])
buffer = ctypes.create_string_buffer(65536)

def checked(result):
    if result < 0:
        sys.exit(f"call {number}: {os.strerror(ctypes.get_errno())}")
    return result

# The kernel repeats interrupted calls of ordinary files by itself; libc's are not repeated by Python.
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
for number in range(300):
    fd = checked(libc.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
    checked(libc.access(path, os.R_OK))
    checked(libc.pread(fd, buffer, 65536, 0))
    checked(libc.lseek(fd, 0, os.SEEK_HOLE))
    checked(libc.close(fd))
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_a_program_with_a_timer_never_gets_eintr(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", b"content" * 20_000)
    disk = mounted(create=True, release_after="0s").path / "disk"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, disk], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
