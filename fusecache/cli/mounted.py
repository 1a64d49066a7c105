"""A running mount, as its control directory shows it.

Owns how commands are given to a mount and how their end is learned. It must not know verbs, nor anything of a mount
but its control directory.
"""

import errno
import json
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fusecache.cli.failure import EXIT_DATA_LOSS, EXIT_FAILED, Failure
from fusecache.cli.output import progress
from fusecache.metrics.text import printable

ANSWER_WITHIN: Final = 5.0
"""Seconds after which a mount that does not answer is given up."""

_POLL_EVERY: Final = 0.5
_ENDINGS: Final = ("command-done", "command-failed", "command-refused")


class NotAnswering(Failure):
    """The mount's daemon is there and does not answer."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a command ended, as the event of its end says.

    Attributes:
        kind: of the event.
        reason: why the command failed.
    """

    kind: str = "command-done"
    reason: str = ""

    @property
    def failed(self) -> bool:
        """It was not carried out, or not wholly."""
        return self.kind != "command-done"

    @property
    def refused(self) -> bool:
        """It was not carried out because data would have been lost."""
        return self.kind == "command-refused"


class _Write(threading.Thread):
    """The one ``write(2)`` of a command; it may take as long as the mount's ``control_wait``.

    A thread of its own, so that progress can be shown meanwhile.

    Attributes:
        error: why it failed, once it has ended.
    """

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._text = text
        self.error: OSError | None = None

    def run(self) -> None:
        """Write."""
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, self._text.encode())
            finally:
                os.close(fd)
        except OSError as error:
            self.error = error

    def unfinished(self, seconds: float) -> bool:
        """Wait, but not longer than that, and say whether the write still goes on."""
        self.join(seconds)
        return self.is_alive()


class Mounted:
    """The fusecache mount at a mountpoint."""

    def __init__(self, mountpoint: Path) -> None:
        self.mountpoint = mountpoint
        self._control = mountpoint / ".control"

    def read(self, *names: str) -> str:
        """Return the content of a control file.

        Raises:
            NotAnswering: not within :data:`ANSWER_WITHIN` seconds.
            Failure: it cannot be read.
        """
        # Not even SIGKILL ends the wait for a hung daemon that has taken the request: the reader is left behind.
        reader = subprocess.Popen(
            ["cat", "--", self._control.joinpath(*names)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            content, complaint = reader.communicate(timeout=ANSWER_WITHIN)
        except subprocess.TimeoutExpired:
            reader.kill()
            raise NotAnswering(f"{self.mountpoint}: the mount does not answer within {ANSWER_WITHIN:g} s") from None
        if reader.returncode:
            raise Failure(complaint.decode(errors="replace").strip().removeprefix("cat: "))
        return content.decode(errors="replace")

    def status(self) -> dict[str, Any]:
        """Return the object in ``status.json``."""
        status = json.loads(self.read("status.json"))
        assert isinstance(status, dict)
        return status

    def image_status(self, image: str) -> dict[str, Any]:
        """Return an image's object of ``status.json``.

        Raises:
            Failure: the mount has no such image, or none that is open, and the backend does not say what else there is.
        """
        mount = self.status()
        images: list[dict[str, Any]] = mount["images"]
        for status in images:
            if status["name"] == image:
                return status
        if not mount["complete"]:
            raise Failure(
                f"{self.mountpoint}: the backend does not answer: whether there is an image {image!r}, which is not "
                "open, is not known"
            )
        raise self._no_image(image)

    def events(self) -> list[str]:
        """Return the retained events, oldest first."""
        return self.read("events").splitlines()

    def flush(self, image: str | None, layer: int | None) -> None:
        """Write back: everything, an image, or one layer of it to the level below. Shows progress.

        Raises:
            Failure: with the mount's reason.
        """
        title = str(self.mountpoint) if image is None else printable(image)
        ending = self._command(image, "flush", "all" if layer is None else str(layer), f"writing back {title}")
        if ending.failed:
            raise Failure(f"{title}: not written back: {ending.reason}")

    def discard(self, image: str, layer: int, *, dirty: bool, torn: bool) -> None:
        """Drop a layer's content, with its dirty data if *dirty*, even if the level below is torn if *torn*.

        Raises:
            Failure: with the mount's reason; exit code 3 where data would have been lost.
        """
        text = f"{layer}{' dirty' if dirty else ''}{' torn' if torn else ''}"
        ending = self._command(image, "discard", text, f"discarding layer {layer} of {printable(image)}")
        if ending.failed:
            code = EXIT_DATA_LOSS if ending.refused else EXIT_FAILED
            raise Failure(f"{printable(image)}: layer {layer} not discarded: {ending.reason}", code)

    def _command(self, image: str | None, file: str, text: str, title: str) -> "Ending":
        """Write a command and wait for its end, however long."""
        if image is not None and ("/" in image or image in ("", ".", "..")):
            raise self._no_image(image)
        names = [] if image is None else ["images", image]
        target = f"{'.control' if image is None else printable(image)}/{file}"
        before = self.events()
        writing = _Write(self._control.joinpath(*names, file), text)
        with progress(title) as line:
            writing.start()
            while writing.unfinished(_POLL_EVERY):
                if file == "flush":
                    line.show(self.read(*names, file).strip())
            error = writing.error
            if error is not None and error.errno == errno.EINPROGRESS:
                while self._runs(image, f"{file} {text}"):
                    time.sleep(_POLL_EVERY)
                    if file == "flush":
                        line.show(self.read(*names, file).strip())
                return ending_of(appended(before, self.events()), f"{target}: {file} {text}") or Ending()
        if error is None:
            return Ending()
        if error.errno == errno.ENOENT and image is not None:
            raise self._no_image(image)
        ending = ending_of(appended(before, self.events()), target)
        # Where others give commands too, or events are many, the one that is found may not be this one's.
        return ending if ending and ending.failed else Ending("command-failed", error.strerror or str(error))

    def _runs(self, image: str | None, command: str) -> bool:
        running: Sequence[dict[str, Any]] = self.status()["commands"]
        return any(one["image"] == image and one["command"] == command for one in running)

    def _no_image(self, image: str) -> Failure:
        return Failure(f"{self.mountpoint}: there is no image {image!r}")


def appended(old: Sequence[str], new: Sequence[str]) -> Sequence[str]:
    """Return the lines of *new* that came after those of *old*, of which the first may have been dropped since."""
    for dropped in range(len(old) + 1):
        kept = len(old) - dropped
        if kept <= len(new) and list(new[:kept]) == list(old[dropped:]):
            return new[kept:]
    raise AssertionError("no lines at all begin every sequence")


def ending_of(events: Sequence[str], command: str) -> Ending | None:
    """Return how the command of that beginning that ended last ended; None where none has."""
    ending = None
    for event in events:
        _time, kind, text = event.split(" ", 2)
        if kind in _ENDINGS and f"{text}: ".startswith(f"{command}: "):
            ending = Ending(kind, text.removeprefix(f"{command}: "))
    return ending
