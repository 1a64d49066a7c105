"""A directory backend with its event loop parts, for tests.

Owns how tests open one, and the file systems of their own that some need. It must not know what is tested.
"""

import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from fusecache.api import Attempt, Backend, Completions, Done
from fusecache.backends import open_backend
from fusecache.config.schema import DirectoryConfig


def config(path: Path, **changes: Any) -> DirectoryConfig:
    """Return a config that nobody has checked."""
    return DirectoryConfig.model_construct(path=path, **changes)


@dataclass
class Events:
    """Records emitted events."""

    kinds: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def emit(self, kind: str, text: str) -> None:
        self.kinds.append(kind)
        self.texts.append(text)


@asynccontextmanager
async def delivered() -> AsyncIterator[Completions]:
    """Deliver completions in the background."""
    completions = Completions()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(completions.run)
        yield completions
        nursery.cancel_scope.cancel()
    completions.close()


@asynccontextmanager
async def opened(path: Path, *, direct: bool = False, events: Events | None = None) -> AsyncIterator[Backend]:
    """Open the directory *path* as a backend."""
    events = events or Events()
    async with (
        delivered() as completions,
        open_backend(config(path, direct=direct), completions, events.emit) as backend,
    ):
        yield backend


async def finished(attempt: Callable[[Done], Attempt]) -> Attempt:
    """Run an attempt to its end and return what it returned at first."""
    ended = trio.Event()
    errors: list[BaseException | None] = []

    def done(error: BaseException | None) -> None:
        errors.append(error)
        ended.set()

    result = attempt(done)
    if result is Attempt.PENDING:
        assert not ended.is_set()
        await ended.wait()
    if errors and errors[0] is not None:
        raise errors[0]
    return result


def requires_direct(path: Path) -> None:
    """Skip the test where the file system of *path* refuses O_DIRECT."""
    probe = path / "probe"
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600))
    except OSError:
        pytest.skip("the file system of the temporary directory refuses O_DIRECT")
    finally:
        probe.unlink(missing_ok=True)


def requires_attributes(path: Path) -> None:
    """Skip the test where the file system of *path* has no user attributes."""
    try:
        os.setxattr(path, "user.probe", b"1")
    except OSError:
        pytest.skip("the file system of the temporary directory has no user attributes")
    os.removexattr(path, "user.probe")


@contextmanager
def small_tmpfs(path: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of *size* on the new directory *path*."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


@contextmanager
def failing_ext4(path: Path) -> Iterator[Path]:
    """Mount an ext4 of 16 MiB on the new directory *path*, whose disk can take only some of that."""
    with small_tmpfs(path.with_name(f"{path.name}.disk"), "3m") as disk:
        image = disk / "image"
        image.touch()
        os.truncate(image, 16 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
        path.mkdir()
        try:
            subprocess.run(["mount", "-o", "loop", image, path], check=True, capture_output=True)
        except subprocess.CalledProcessError:
            pytest.skip("mounting needs loop devices")
        try:
            yield path
        finally:
            subprocess.run(["umount", path], check=True)
