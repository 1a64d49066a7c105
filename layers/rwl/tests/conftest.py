"""What most tests of the layer begin with."""

from collections.abc import Iterator

import pytest
from trio.testing import MockClock

from layers.rwl.tests.support.bench import Bench, benched


@pytest.fixture
def bench() -> Iterator[Bench]:
    with benched() as made:
        yield made


@pytest.fixture
def hurried_clock() -> MockClock:
    """A clock that jumps to the next deadline when everybody waits, for longer than any thread of the pool works."""
    return MockClock(autojump_threshold=0.1)
