"""The contestants: images that something serves as files, and the processes that serve them.

Owns how processes are started and ended. It must not know where images live, nor what is measured.
"""

import ctypes
import errno
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Final, TypeAlias

from bench import fio
from bench.workloads import FUSECACHE, Before

PATIENCE: Final = 30.0
"""Seconds to wait for a contestant to serve."""

_QEMU: Final = "qemu-storage-daemon"
_WRONG_CONFIG: Final = 2
"""The exit code with which fusecache refuses its config."""
_LAYERS_OWN: Final = "stack[0].layer[0]."
"""What the options of the layer are called then."""


class TargetMissing(Exception):
    """The machine has not what the contestant needs; the message says what."""


class TargetFailed(Exception):
    """fusecache does not serve; the message says why."""


Settle: TypeAlias = Callable[[Before], None]
"""Brings what lies below to the same state before each measurement."""


def _nothing(before: Before) -> None:
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
        write_back: has all that is dirty written back, and returns when it is; None where nothing ever is.
        spans: where a daemon with stopwatches leaves what they said when it ends; None for others.
    """

    name: str
    load: Sequence[str]
    options: str
    pid: int | None = None
    metrics: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    settle: Settle = _nothing
    write_back: Callable[[], object] | None = None
    spans: Path | None = None

    def cpu_seconds(self) -> float | None:
        """Return the CPU time that the serving process has used: its own and the kernel's on its behalf."""
        if self.pid is None:
            return None
        # proc_pid_stat(5) counts in hundredths of a second.
        clock = ctypes.c_int()
        error = ctypes.CDLL(None).clock_getcpuclockid(self.pid, ctypes.byref(clock))
        if error:
            raise OSError(error, f"the CPU time of process {self.pid}: {os.strerror(error)}")
        return time.clock_gettime(clock.value)


CONFIG: Final = """\
[mount]
state_dir = "state"
control_wait = "10min"

[backend]
{backend}

[[stack]]
images = ["*"]
[[stack.layer]]
index = 0
required = true
{layer}
"""
PASSTHROUGH: Final = 'plugin = "passthrough"'


@dataclass(frozen=True, slots=True)
class Setup:
    """How fusecache is run.

    Attributes:
        backend: the lines of the table ``[backend]``; *shown* is what of them the report shows.
        layer: the lines of the layer's table.
        environment: for the daemon, beside this process's.
        pinned: the daemon and fio have one CPU, the same: to wake another one takes longer than a request.
        timed: the daemon has a stopwatch at each hop.
    """

    backend: str
    shown: str
    layer: str = PASSTHROUGH
    environment: Mapping[str, str] = field(default_factory=dict)
    pinned: bool = False
    timed: bool = False


@contextmanager
def fusecache(
    directory: Path, image: str, setup: Setup, settle: Settle = _nothing, name: str = FUSECACHE
) -> Iterator[Target]:
    """Mount a backend through one layer.

    Args:
        directory: empty, for its own files.
        image: the name of the one that is measured.

    Raises:
        TargetMissing: the layer is not installed, or refuses its options.
        TargetFailed: it does not serve.
    """
    directory.mkdir()
    mountpoint, config, spans = directory / "mnt", directory / "fusecache.toml", directory / "spans.json"
    mountpoint.mkdir()
    config.write_text(CONFIG.format(backend=setup.backend, layer=setup.layer))
    control, file = mountpoint / ".control", mountpoint / image
    program = ["bench.stopwatch", str(spans)] if setup.timed else ["fusecache"]
    cpu = min(os.sched_getaffinity(0)) if setup.pinned else None
    pin = ["taskset", "--cpu-list", str(cpu)] if setup.pinned else []
    words = [*pin, sys.executable, "-m", *program, "mount", "--foreground", str(config), str(mountpoint)]
    log = directory / "log"
    with log.open("w") as stderr:
        daemon = subprocess.Popen(words, stderr=stderr, env={**os.environ, **setup.environment})
    try:
        if not _await(daemon, (control / "status.json").exists, FUSECACHE):
            raise _refusal(daemon.returncode, log.read_text().strip())
        # An image that stays open keeps its stack, and with it the figures of its hops.
        with _opened(file):
            yield Target(
                name,
                fio.on_file(file, cpu),
                CONFIG.format(backend=setup.shown, layer=setup.layer),
                daemon.pid,
                control / "metrics",
                settle=settle,
                write_back=partial((control / "images" / image / "flush").write_text, "all"),
                spans=spans if setup.timed else None,
            )
    finally:
        # As "fusecache unmount --keep": nothing is written back.
        daemon.terminate()
        daemon.wait()


def _refusal(code: int, said: str) -> Exception:
    if code == _WRONG_CONFIG and _LAYERS_OWN in said:
        return TargetMissing(f"the layer refuses {said.rpartition(_LAYERS_OWN)[2]}")
    return TargetFailed(f"fusecache ended with {code}: {said}")


def _opened(file: Path) -> IO[bytes]:
    try:
        return file.open("rb")
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise TargetMissing(f"the layer's plugin does not load: {error}") from error
        raise


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
    daemon = subprocess.Popen(words, stderr=subprocess.PIPE)
    try:
        if not _await(daemon, pid_file.exists, _QEMU):
            assert daemon.stderr is not None
            said = daemon.stderr.read().decode(errors="replace").strip()
            raise TargetMissing(f"{_QEMU} ended with {daemon.returncode}: {said}")
        yield Target(name, fio.on_file(file), shlex.join(command(shown, "FILE")), daemon.pid, settle=settle)
    finally:
        daemon.terminate()
        daemon.communicate()


def _await(daemon: subprocess.Popen[bytes], served: Callable[[], bool], name: str) -> bool:
    """Return whether it serves, or has ended."""
    deadline = time.monotonic() + PATIENCE
    while not served():
        if daemon.poll() is not None:
            return False
        if time.monotonic() > deadline:
            raise TargetMissing(f"{name} did not serve within {PATIENCE:g} s")
        time.sleep(0.02)
    return True
