"""Programs and threads that use a mount, and may have to wait for it.

Owns how a test makes a call that may block, sees that it does, interrupts it, and gets its result without ever waiting
for longer than :data:`tests.support.mounts.PATIENCE`. It must not know what is called.
"""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tests.support.mounts import PATIENCE, wait_until

T = TypeVar("T")

GONE = re.compile("not connected|abort")
"""What a call says whose daemon has ended."""

PROLOGUE = """
import ctypes, errno, fcntl, json, mmap, os, signal, sys

# A signal interrupts a call and has no other effect; calls made through libc are not repeated then.
signal.signal(signal.SIGINT, lambda *_: None)
signal.siginterrupt(signal.SIGINT, True)
libc = ctypes.CDLL(None, use_errno=True)

def say(answer):
    print(json.dumps(answer), flush=True)

def errno_of(function, *arguments):
    result = function(*arguments)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "done"
"""


class Caller:
    """A process of its own that runs a piece of Python, for calls that block; killed at the end of the block.

    The code has the names of :data:`PROLOGUE`, its arguments as ``sys.argv[1:]``, and answers with ``say(value)``.
    """

    def __init__(self, code: str, *arguments: object, prefix: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", PROLOGUE + code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        # Where it waits beyond the reach of signals, it ends with the daemon.
        in_thread(self.process.wait)

    def wait_until_blocked(self) -> None:
        """Wait until the process waits for an answer to a FUSE request."""
        wait_until(lambda: waits_for_fuse(self.process.pid), "the call blocks")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def answer(self) -> Any:
        """Return the next answer, as soon as it is there."""
        assert self.process.stdout
        line = in_thread(self.process.stdout.readline).result(PATIENCE)
        assert line, f"ended with {self.process.wait(PATIENCE)} and said nothing"
        return json.loads(line)

    def go_on(self) -> None:
        """Let code that waits in ``sys.stdin.readline()`` go on."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def waits_for_fuse(pid: int) -> bool:
    """Say whether a process waits for the answer to a FUSE request, by the kernel function that it sleeps in."""
    place = Path(f"/proc/{pid}/wchan").read_text()
    return "fuse" in place or place == "request_wait_answer"


def in_thread(function: Callable[..., T], *arguments: Any) -> "Future[T]":
    """Run *function* in a thread that may block for ever without anybody noticing."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def outcome(call: Callable[..., object], *arguments: object) -> int:
    """Make a call that may block; return its errno, 0 for success."""
    try:
        in_thread(call, *arguments).result(PATIENCE)
    except OSError as error:
        return error.errno or -1
    return 0


def shell(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell command in *directory* to its end."""
    return subprocess.run(
        ["bash", "-c", command], cwd=directory, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
