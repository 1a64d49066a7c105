"""Mounts for the tests of this folder; all are gone at the end of each test, also of one that failed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounts import Mount, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Directories and a config of one passthrough layer; change it before mounting."""
    return Place(tmp_path)


@pytest.fixture
def mounted(place: Place) -> Iterator[Callable[..., Mount]]:
    """Mounts: ``mounted(**options of [mount])`` mounts *place*, ``mounted(place=other)`` another one."""
    mounts: list[Mount] = []

    def mount(place: Place = place, *, verbose: bool = False, **options: Any) -> Mount:
        place.mount_options.update(options)
        made = Mount(place, verbose=verbose)
        mounts.append(made)
        return made

    yield mount
    for made in mounts:
        made.discard()
