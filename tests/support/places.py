"""Directories of images for tests.

Owns how a directory backend is opened outside a mount, and what can be done to it behind its back. It must not know
what is tested.
"""

import os
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fusecache.api import Backend, Volume
from fusecache.backends import open_backend
from fusecache.config.schema import DirectoryConfig
from fusecache.mount import running_completions
from fusecache.testing.claims import FreeClaim


@asynccontextmanager
async def directory_backend(path: Path, *, direct: bool = False) -> AsyncIterator[Backend]:
    """Open the directory *path* as a backend."""
    config = DirectoryConfig.model_validate({"path": str(path), "direct": direct}, context=path)
    async with (
        running_completions() as completions,
        open_backend(config, completions, lambda kind, text: None) as backend,
    ):
        yield backend


@asynccontextmanager
async def fresh_directory(parent: Path, *, direct: bool = False) -> AsyncIterator[Backend]:
    """Open an empty directory below *parent* as a backend; its description ends in the directory's path."""
    with tempfile.TemporaryDirectory(dir=parent) as path:
        async with directory_backend(Path(path), direct=direct) as backend:
            yield backend


@asynccontextmanager
async def directory_image(size: int, *, parent: Path, direct: bool = False) -> AsyncIterator[Volume]:
    """Open a new image in an empty directory below *parent*."""
    async with fresh_directory(parent, direct=direct) as backend:
        await backend.create("image", size)
        async with backend.open("image", FreeClaim()) as image:
            yield image


def copy_image(backend: Backend, old: str, new: str) -> None:
    """Copy an image behind the backend's back, with all its attributes."""
    place = _path_of(backend)
    subprocess.run(["cp", "-a", place / old, place / new], check=True)


def fingerprint(backend: Backend) -> object:
    """Return everything that is stored in the directory: names, attributes, times and bytes."""
    return [_print_of(path) for path in (_path_of(backend), *sorted(_path_of(backend).rglob("*")))]


def _print_of(path: Path) -> object:
    found = path.stat()
    attributes = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    times = found.st_mtime_ns, found.st_ctime_ns
    return path, found.st_ino, found.st_mode, times, attributes, path.read_bytes() if path.is_file() else b""


def _path_of(backend: Backend) -> Path:
    return Path(backend.description.removeprefix("directory:"))
