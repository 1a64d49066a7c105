"""What a test run leaves behind on the machine: processes and mounts.

Owns how both are recognised: a process by an environment variable that everything started by the run inherits, a
mount by its type and place. It must not know which test started what.
"""

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

RUN_VARIABLE = "FUSECACHE_TEST_RUN"
"""Names the run in the environment of every process that it starts."""

PATIENCE = 5.0
"""Seconds that a process has for an end that is under way when the run ends."""


def clear(run: str, directory: Path) -> list[str]:
    """End the processes of *run* and undo the mounts below *directory*; return a line for each."""
    remaining = _outliving(processes_of(run))
    found = [f"process {pid}: {command}" for pid, command in remaining.items()]
    for pid in remaining:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for mountpoint in mounts_below(directory, Path("/proc/self/mountinfo").read_text()):
        found.append(f"mount {mountpoint}")
        undo = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*undo, mountpoint], check=False)
    return found


def processes_of(run: str) -> dict[int, str]:
    """Return pid and command line of every process that *run* started, directly or not, and that is not a zombie."""
    mark = f"{RUN_VARIABLE}={run}".encode()
    found = {}
    for entry in Path("/proc").iterdir():
        # Processes end while we look, and those of other users do not show their environment.
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                found[int(entry.name)] = command
    return found


def _outliving(processes: dict[int, str]) -> dict[int, str]:
    deadline = time.monotonic() + PATIENCE
    return {pid: command for pid, command in processes.items() if not _ended_by(pid, deadline)}


def _ended_by(pid: int, deadline: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
    finally:
        os.close(descriptor)


def mounts_below(directory: Path, mountinfo: str) -> Iterable[str]:
    """Return the mountpoints of fusecache below *directory*, by *mountinfo* in the format of proc_pid_mountinfo(5)."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        # The kernel writes blank, tab, newline and backslash in octal.
        mountpoint = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split()[4])
        if after.split()[0] == "fuse.fusecache" and Path(mountpoint).is_relative_to(directory):
            yield mountpoint
