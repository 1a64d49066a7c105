"""What several modules begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fusecache.api import Completions
from tests.support.dirty_stacks import NAME, SIZE, host, writeback_installed
from tests.support.places import directory_backend


@pytest.fixture
def completions() -> Iterator[Completions]:
    """The queue of results of an event loop that nobody runs yet."""
    completions = Completions()
    yield completions
    completions.close()


@pytest.fixture
def installed() -> Iterator[None]:
    """Let stacks load the write-back layer."""
    with writeback_installed():
        yield


@pytest.fixture
async def images(tmp_path: Path) -> Path:
    """A directory with the image that stacks are opened over."""
    path = tmp_path / "images"
    path.mkdir()
    async with directory_backend(path) as backend:
        await backend.create(NAME, SIZE)
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The state directory of a host."""
    return host(tmp_path / "here", "a")
