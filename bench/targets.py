"""The contestants: images that something serves as files, and the processes that serve them.

Owns how processes are started and ended. It must not know where images live, nor what is measured.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from bench import fio
from bench.workloads import FUSECACHE

PATIENCE: Final = 30.0
"""Seconds to wait for a contestant to serve."""

_QEMU: Final = "qemu-storage-daemon"


class TargetMissing(Exception):
    """The machine has not what the contestant needs; the message says what."""


Settle: TypeAlias = Callable[[bool], None]
"""Brings what lies below to the same state before each measurement; told whether the image is to be filled."""


def _nothing(filled: bool) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Target:
    """A contestant that can be measured.

    Attributes:
        load: what fio uses, and how; arguments of fio.
        options: how it was started, for the report.
        pid: of the serving process; None where none serves.
        metrics: fusecache's; None for others.
        environment: for fio, beside this process's.
    """

    name: str
    load: Sequence[str]
    options: str
    pid: int | None = None
    metrics: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    settle: Settle = _nothing

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
{backend}

[[stack]]
images = ["*"]
[[stack.layer]]
index = 0
{layer}
"""
PASSTHROUGH: Final = 'plugin = "passthrough"'


@contextmanager
def fusecache(
    directory: Path,
    image: str,
    backend: str,
    shown: str,
    settle: Settle = _nothing,
    layer: str = PASSTHROUGH,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Target]:
    """Mount a backend through one layer.

    Args:
        directory: empty, for its own files.
        image: the name of the one that is measured.
        backend: the lines of the table ``[backend]``; *shown* is what of them the report shows.
        layer: the lines of the layer's table.
        environment: for the daemon, beside this process's.
    """
    directory.mkdir()
    mountpoint = directory / "mnt"
    mountpoint.mkdir()
    config = directory / "fusecache.toml"
    config.write_text(CONFIG.format(backend=backend, layer=layer))
    cli = [sys.executable, "-m", "fusecache"]
    subprocess.run([*cli, "mount", config, mountpoint], check=True, env={**os.environ, **(environment or {})})
    control = mountpoint / ".control"
    pid = json.loads((control / "status.json").read_text())["pid"]
    file = mountpoint / image
    try:
        # An image that stays open keeps its stack, and with it the figures of its hops.
        with file.open("rb"):
            options = CONFIG.format(backend=shown, layer=layer)
            yield Target(FUSECACHE, fio.on_file(file), options, pid, control / "metrics", settle=settle)
    finally:
        subprocess.run([*cli, "unmount", "--keep", mountpoint], check=True)


@contextmanager
def qemu_export(
    name: str,
    directory: Path,
    node: str,
    shown: str,
    settle: Settle = _nothing,
) -> Iterator[Target]:
    """Let qemu's storage daemon export an image by FUSE.

    Args:
        directory: empty, for its own files.
        node: the blockdev of the image, less its node-name; *shown* is what of it the report shows.

    Raises:
        TargetMissing: it is not installed, or does not start.
    """
    if shutil.which(_QEMU) is None:
        raise TargetMissing(f"{_QEMU} is not installed")
    directory.mkdir()
    file, pid_file = directory / "qemu", directory / "qemu.pid"
    file.touch()

    def command(node: str, file: str) -> Sequence[str]:
        return [
            _QEMU,
            *("--blockdev", f"{node},node-name=f"),
            *("--blockdev", "driver=raw,node-name=r,file=f"),
            *("--export", f"type=fuse,id=e,node-name=r,mountpoint={file},writable=on,growable=off"),
        ]

    words = [*command(node, str(file)), "--pidfile", str(pid_file)]
    daemon = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        _await(daemon, pid_file)
        yield Target(name, fio.on_file(file), shlex.join(command(shown, "FILE")), daemon.pid, settle=settle)
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
