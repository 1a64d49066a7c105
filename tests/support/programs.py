"""Programs of others, run by tests.

Owns how a program is run to its end, and what a test needs of the machine for those that only root may run. It must not
know what the programs are run on.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PATIENCE = 60.0
"""Seconds after which a program counts as hanging."""

BLOCK = 512
"""The unit of ``st_blocks``, in bytes."""


def attempt(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever that is."""
    words = [str(word) for word in command]
    # Ordinary users do not have the folders of mkfs and its like on their path.
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    environment = {**os.environ, "PATH": path, "LC_ALL": "C"}
    return subprocess.run(
        words, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def run(*command: str | Path) -> str:
    """Run a program, which must succeed; return what it wrote to standard output."""
    result = attempt(*command)
    assert result.returncode == 0, f"{command} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
    return result.stdout


def allocated(path: Path) -> int:
    """Return the bytes that a file takes on its file system."""
    return path.stat().st_blocks * BLOCK


@contextmanager
def loop_device(file: Path, *, direct: bool) -> Iterator[Path]:
    """Make a loop device over *file* for the length of a block."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    made = attempt("losetup", "--find", "--show", f"--direct-io={'on' if direct else 'off'}", file)
    if made.returncode:
        pytest.skip("mounting needs loop devices")
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def mounted_ext4(device: Path, path: Path) -> Iterator[Path]:
    """Mount the ext4 on *device* at the directory *path*, made if need be, for the length of a block."""
    path.mkdir(exist_ok=True)
    run("mount", "-t", "ext4", device, path)
    try:
        yield path
    finally:
        run("umount", path)
