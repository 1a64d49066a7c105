"""The serving process in the background: how it is started, and how it says that it serves.

Owns the pipe between the two processes. The daemon writes one message to it: ``ok``, or ``error EXITCODE MESSAGE``,
and closes it. It must not know what is mounted.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fusecache.cli.failure import Failure

_SERVING: Final = b"ok\n"
_LOG_LINES: Final = 20


class Readiness:
    """The daemon's end of the pipe, or nothing where nobody waits.

    Args:
        fd: the pipe's descriptor; None in the foreground.
    """

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            # Programs that the daemon starts would keep whoever waits at the other end waiting.
            os.set_inheritable(fd, False)

    def serving(self) -> None:
        """Say that requests are served."""
        self._say(_SERVING)

    def failed(self, failure: Failure) -> None:
        """Say why requests will not be served. Without effect once they have been."""
        self._say(f"error {failure.exit_code} {failure.message}".encode())

    def _say(self, message: bytes) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            # Whoever started the mount may be gone; the mount is there for others.
            with contextlib.suppress(BrokenPipeError):
                os.write(fd, message)
            os.close(fd)


def start(arguments: Sequence[str], log_file: Path) -> None:
    """Run ``fusecache`` with *arguments* in the background and return when it serves.

    The daemon has a session of its own, ``/`` as its directory, its standard error appended to *log_file*, and no
    descriptor of this process.

    Args:
        arguments: must lead to a :class:`Readiness` of the descriptor that is appended as ``--ready-fd``.

    Raises:
        Failure: it does not serve; with its message and exit code, or the end of its log where it said nothing.
    """
    reader, writer = os.pipe()
    with log_file.open("ab") as log:
        begin = log.tell()
        daemon = subprocess.Popen(
            [sys.executable, "-m", "fusecache", *arguments, "--ready-fd", str(writer)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            start_new_session=True,
            close_fds=True,
            pass_fds=[writer],
        )
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            message = pipe.read()
    except BaseException:
        daemon.terminate()
        raise
    if message == _SERVING:
        return
    daemon.wait()
    if message:
        _error, code, reason = message.decode().split(" ", 2)
        raise Failure(reason, int(code))
    raise Failure(
        f"the daemon ended with status {daemon.returncode} before it served; the end of {log_file}:\n"
        + _tail(log_file, begin)
    )


def _tail(log_file: Path, begin: int) -> str:
    with log_file.open("rb") as log:
        log.seek(begin)
        lines = log.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-_LOG_LINES:])
