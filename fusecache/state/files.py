"""Small files that change as a whole and stay.

Owns the order of system calls that makes a replaced file durable. It must not know what is in the files.

All functions block, for no longer than a few system calls; only those that write wait for a device.
"""

import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_TEMPORARY: Final = ".new"


def replace_file(path: Path, data: bytes) -> None:
    """Replace or create the file at *path*, atomically; it is durable when this returns. One writer at a time.

    Steps, and what a crash after each leaves at *path*:

    1. create or empty the temporary file beside it: the old content;
    2. write the new content there: the old content;
    3. fsync it: the old content;
    4. rename it to *path*: the new content, or after loss of power perhaps the old;
    5. fsync the directory: the new content.

    A crash after steps 1 to 3 leaves the temporary file; the next call overwrites it.

    Raises:
        OSError: of the step that failed, which leaves what a crash before it leaves.
    """
    temporary = temporary_of(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    sync_directory(path.parent)


def create_file(path: Path, data: bytes) -> None:
    """Create the file at *path*, durably; of several who do so at once, one wins and the others change nothing."""
    temporary = path.with_name(f"{path.name}.{threading.get_native_id()}{_TEMPORARY}")
    replace_file(temporary, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        log.info("%s was made by another process at the same time", path)
    finally:
        temporary.unlink()
    sync_directory(path.parent)


def read_text(path: Path) -> str:
    """Return a small file's text without surrounding blanks; empty where there is no such file."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def sync_directory(path: Path) -> None:
    """Make the names in the directory at *path* durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_files(files: Iterable[str]) -> None:
    """Remove files, durably, and what a crash left of making them; those that are gone already are passed over. Blocks.

    Raises:
        OSError: of the first that cannot be removed; those before it are gone.
    """
    for path in map(Path, files):
        temporary_of(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        log.info("%s was removed", path)
        if path.parent.is_dir():
            sync_directory(path.parent)


def temporary_of(path: Path) -> Path:
    """Return where what will be at *path* is written first, here and by layers (:meth:`LayerPlugin.artifacts`)."""
    return path.with_name(path.name + _TEMPORARY)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
