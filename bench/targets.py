"""The contestants: files that something serves, and the processes that serve them.

Owns how each is started and ended, and its exact options. It must not know what is measured.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.workloads import BARE, FUSECACHE, QEMU

PATIENCE: Final = 30.0
"""Seconds to wait for a contestant to serve."""

_QEMU: Final = "qemu-storage-daemon"


class TargetMissing(Exception):
    """The machine has not what the contestant needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Target:
    """A contestant that can be measured.

    Attributes:
        file: what fio uses.
        backing: the raw file below, whose pages are brought to the same state before each measurement.
        options: how it was started, for the report.
        pid: of the serving process; None where none serves.
        metrics: fusecache's; None for others.
    """

    name: str
    file: Path
    backing: Path
    options: str
    pid: int | None = None
    metrics: Path | None = None

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that the serving process has used: its own and the kernel's on its behalf."""
        if self.pid is None:
            return None
        # The name, in brackets, may hold blanks; fields 14 and 15 of proc_pid_stat(5) are utime and stime.
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


CONFIG: Final = """\
[mount]
state_dir = "state"

[backend]
type = "directory"
path = {images}

[[stack]]
images = ["*"]
[[stack.layer]]
index = 0
plugin = "passthrough"
"""


@contextmanager
def fusecache(place: Path, raw: Path) -> Iterator[Target]:
    """Mount the directory of *raw* through one passthrough layer."""
    mountpoint = place / "mnt"
    mountpoint.mkdir()
    config = place / "fusecache.toml"
    config.write_text(CONFIG.format(images=json.dumps(str(raw.parent))))
    cli = [sys.executable, "-m", "fusecache"]
    subprocess.run([*cli, "mount", config, mountpoint], check=True)
    control = mountpoint / ".control"
    pid = json.loads((control / "status.json").read_text())["pid"]
    file = mountpoint / raw.name
    try:
        # An image that stays open keeps its stack, and with it the figures of its hops.
        with file.open("rb"):
            yield Target(FUSECACHE, file, raw, CONFIG.format(images='"DIR"'), pid, control / "metrics")
    finally:
        subprocess.run([*cli, "unmount", mountpoint], check=True)


@contextmanager
def qemu_export(place: Path, raw: Path) -> Iterator[Target]:
    """Let qemu's storage daemon export *raw* by FUSE.

    Raises:
        TargetMissing: it is not installed, or does not start.
    """
    if shutil.which(_QEMU) is None:
        raise TargetMissing(f"{_QEMU} is not installed")
    file, pid_file = place / "qemu", place / "qemu.pid"
    file.touch()
    command = [
        _QEMU,
        *("--blockdev", f"driver=file,node-name=f,filename={raw},cache.direct=off"),
        *("--blockdev", "driver=raw,node-name=r,file=f"),
        *("--export", f"type=fuse,id=e,node-name=r,mountpoint={file},writable=on,growable=off"),
    ]
    shown = shlex.join(command).replace(str(file), "FILE").replace(str(raw), "RAW")
    daemon = subprocess.Popen([*command, "--pidfile", str(pid_file)], stderr=subprocess.PIPE, text=True)
    try:
        _await(daemon, pid_file)
        yield Target(QEMU, file, raw, shown, daemon.pid)
    finally:
        daemon.terminate()
        daemon.communicate()


def _await(daemon: subprocess.Popen[str], pid_file: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not pid_file.exists():
        if daemon.poll() is not None:
            assert daemon.stderr is not None
            raise TargetMissing(f"{_QEMU} ended with {daemon.returncode}: {daemon.stderr.read().strip()}")
        if time.monotonic() > deadline:
            raise TargetMissing(f"{_QEMU} did not serve within {PATIENCE:g} s")
        time.sleep(0.02)


@contextmanager
def bare_file(place: Path, raw: Path) -> Iterator[Target]:
    """Give *raw* itself."""
    yield Target(BARE, raw, raw, "nothing is started")


STARTERS: Final[dict[str, Callable[[Path, Path], AbstractContextManager[Target]]]] = {
    FUSECACHE: fusecache,
    QEMU: qemu_export,
    BARE: bare_file,
}
"""How each contestant is started: with an empty directory for its own files, and the raw file to serve."""
