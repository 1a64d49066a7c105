"""Why commands failed, for who asks later.

Owns which failure a ``last_error`` shows: the latest that no success of the same kind has followed. It must
not know what commands do.
"""

from typing import Final

from fusecache.control.commands import CommandFile
from fusecache.metrics.text import printable

MOUNT: Final = ""
"""The key of the mount's own commands; no image has it."""


class LastErrors:
    """The failures by image key and control file."""

    def __init__(self) -> None:
        self._reasons: dict[str, dict[CommandFile | None, str]] = {}

    def failed(self, key: str, file: CommandFile | None, reason: str) -> None:
        """A command failed, or with None as *file* an open."""
        reasons = self._reasons.setdefault(key, {})
        # The latest comes last.
        reasons.pop(file, None)
        reasons[file] = printable(reason)

    def succeeded(self, key: str, file: CommandFile | None) -> None:
        """A command, or an open, succeeded: what was told of *file* before is over."""
        reasons = self._reasons.get(key, {})
        reasons.pop(file, None)
        if not reasons:
            self._reasons.pop(key, None)

    def all_flushed(self) -> None:
        """Everything of all images was written back."""
        for key in list(self._reasons):
            self.succeeded(key, CommandFile.FLUSH)

    def latest(self, key: str) -> str:
        """Return the reason; empty where there is none."""
        return next(reversed(self._reasons.get(key, {}).values()), "")
