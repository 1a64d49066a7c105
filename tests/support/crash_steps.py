"""What a process that dies between two system calls leaves behind.

Owns which system calls change files, and when a test may look. It must not know what is tested.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

_CALLS: Final = ((Path, ("unlink", "rename", "touch")), (os, ("fsync", "write", "link", "unlink")))


def before_each_change(patch: pytest.MonkeyPatch, look: Callable[[str, tuple[Any, ...]], None]) -> None:
    """Call *look* before each system call that changes files or makes a change durable, with its name and arguments.

    It must make none of these calls itself. What Path makes of os's is seen twice.
    """

    def before(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def looking(*args: Any, **options: Any) -> Any:
            look(name, args)
            return call(*args, **options)

        patch.setattr(owner, name, looking)

    for owner, names in _CALLS:
        for name in names:
            before(owner, name)


class Seen:
    """Copies of a directory in its states, one after the other; what is the same as before is not copied again.

    Args:
        copies: where they go.

    Attributes:
        steps: the copies, each with what else was found in that state.
    """

    def __init__(self, directory: Path, copies: Path) -> None:
        self.steps: list[tuple[Path, object]] = []
        self._directory = directory
        self._copies = copies
        self._last: object = None

    def look(self, beside: object = None) -> None:
        """Copy the directory if it, or what is found *beside* it, has changed."""
        content = {path: path.read_bytes() for path in self._directory.rglob("*") if path.is_file()}
        if (content, beside) != self._last:
            self._last = (content, beside)
            copy = self._copies / str(len(self.steps))
            shutil.copytree(self._directory, copy)
            self.steps.append((copy, beside))
