"""Real mounts for tests: the daemon in a process of its own, over a directory of images or what else a test configures.

Owns how a test starts, reaches, stops and, whatever happened, gets rid of a mount. It must not know what a test is
about.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LAYERS = Path(__file__).with_name("layers")
"""A folder with the distribution of the test layers ``gate``, ``fault``, ``park`` and ``kept``; goes on PYTHONPATH."""

PATIENCE = 30.0
"""Seconds after which a test gives up waiting for the daemon."""

LIFETIME = 90.0
"""Seconds after which a daemon is killed: whoever waits for it in the kernel gets an error instead of waiting on.

The fixture ``soak_seconds`` adds its time for the test that takes it.
"""

PASSTHROUGH: Mapping[str, Any] = {"plugin": "passthrough"}
GATE: Mapping[str, Any] = {"plugin": "gate"}
FAULT: Mapping[str, Any] = {"plugin": "fault"}
PARK: Mapping[str, Any] = {"plugin": "park"}
KEPT: Mapping[str, Any] = {"plugin": "kept"}


@dataclass
class Place:
    """A config with its directories; not mounted yet.

    Attributes:
        images: the directory backend's.
        backend_options: keys of the table ``[backend]``; with ``type`` among them, all of it.
        switches: of the test layers.
        layers: tables of layers, bottom up, without their index.
        stacks: other layers for the images of some names: pattern to layers; they come before *layers*.
    """

    root: Path
    mount_options: dict[str, Any] = field(default_factory=dict)
    layers: list[Mapping[str, Any]] = field(default_factory=lambda: [PASSTHROUGH])
    backend_options: dict[str, Any] = field(default_factory=dict)
    stacks: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for directory in (self.images, self.mountpoint, self.switches, self.pools):
            directory.mkdir(parents=True, exist_ok=True)

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def mountpoint(self) -> Path:
        return self.root / "mnt"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def switches(self) -> Path:
        return self.root / "switches"

    @property
    def pools(self) -> Path:
        """Where the pool files of ``kept`` layers are."""
        return self.root / "pools"

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    def image(self, name: str, content: bytes = b"", *, size: int | None = None) -> Path:
        """Create an image in the backend directory, without fusecache."""
        path = self.images / name
        path.write_bytes(content)
        if size is not None:
            os.truncate(path, size)
        return path

    def write_config(self) -> Path:
        lines = ["[mount]", f"state_dir = {_toml(str(self.state))}"]
        lines += [f"{key} = {_toml(value)}" for key, value in self.mount_options.items()]
        backend = dict(self.backend_options)
        if "type" not in backend:
            backend |= {"type": "directory", "path": str(self.images)}
        lines += ["[backend]", *(f"{key} = {_toml(value)}" for key, value in backend.items())]
        for pattern, layers in {**self.stacks, "*": self.layers}.items():
            lines += self._stack(pattern, layers)
        self.config.write_text("\n".join(lines) + "\n")
        return self.config

    def _stack(self, pattern: str, layers: list[Mapping[str, Any]]) -> list[str]:
        lines = ["[[stack]]", f"images = [{_toml(pattern)}]"]
        for index, layer in reversed(list(enumerate(layers))):
            lines += ["[[stack.layer]]", f"index = {index}"]
            lines += [f"{key} = {_toml(value)}" for key, value in layer.items()]
            if layer["plugin"] in ("gate", "fault", "park", "kept"):
                lines.append(f"switches = {_toml(str(self.switches))}")
            if layer["plugin"] == "kept":
                lines.append(f"path = {_toml(str(self.pools))}")
        return lines


def _toml(value: Any) -> str:
    return json.dumps(value)


def environment() -> dict[str, str]:
    """The environment in which ``fusecache`` also finds the test layers."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(LAYERS), os.environ.get("PYTHONPATH", "")])}


def fusecache(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [sys.executable, "-m", "fusecache", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=environment(), **options
    )


class Mount:
    """A mount served by a foreground daemon.

    Attributes:
        place: config and directories.
        path: the mountpoint.
        process: the daemon.
        log: what it wrote to stderr.
    """

    def __init__(self, place: Place, *, verbose: bool = False) -> None:
        self.place = place
        self.path = place.mountpoint
        self.log = place.root / "daemon.log"
        place.write_config()
        ready_r, ready_w = os.pipe()
        command = [sys.executable, "-m", "fusecache", *(["-v"] if verbose else []), "mount", "-f"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--ready-fd", str(ready_w), str(place.config), str(self.path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(ready_w,),
                env=environment(),
            )
        os.close(ready_w)
        self._end = threading.Timer(LIFETIME, self.process.kill)
        self._end.daemon = True
        self._end.start()
        with os.fdopen(ready_r, "rb") as ready:
            readable, _, _ = select.select([ready], [], [], PATIENCE)
            word = ready.readline() if readable else b"nothing"
        if word != b"ok\n":
            self.discard()
            raise AssertionError(f"the daemon said {word!r}; its log:\n{self.log.read_text()}")

    @property
    def control(self) -> Path:
        return self.path / ".control"

    def status(self) -> Any:
        return json.loads((self.control / "status.json").read_text())

    def events(self) -> str:
        return (self.control / "events").read_text()

    def unmount(self) -> None:
        """Unmount and wait for the daemon's end; it must end well."""
        result = fusecache("unmount", self.path)
        assert result.returncode == 0, result.stderr
        assert self.wait() == 0, self.log.read_text()

    def terminate(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to the daemon and return its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        """Kill the daemon as a crash would; the mount stays behind, dead."""
        self.process.kill()
        self.process.wait()

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def open_gate(self) -> None:
        (self.place.switches / "closed").unlink(missing_ok=True)

    def close_gate(self) -> None:
        (self.place.switches / "closed").touch()

    def waiting_at_gate(self) -> int:
        try:
            return int((self.place.switches / "waiting").read_text())
        except FileNotFoundError:
            return 0

    def fail_with(self, what: int | str | None) -> None:
        """Switch the fault layer: an errno, ``crash``, ``die``, or None for no fault; the park layer knows ``die``."""
        switch = self.place.switches / "errno"
        if what is None:
            switch.unlink(missing_ok=True)
        else:
            fresh = switch.with_suffix(".new")
            fresh.write_text(str(what))
            fresh.replace(switch)

    def discard(self) -> None:
        """Get rid of daemon and mount, whatever state they are in. Safe to call twice."""
        self._end.cancel()
        self.open_gate()
        self.fail_with(None)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        undo = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        while str(self.path) in (line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()):
            subprocess.run([*undo, str(self.path)], check=True)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something outside this process that cannot be waited for as an event; fail after a while."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.01)
