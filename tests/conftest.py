"""The rules of every test run, and the fixtures that all tests share.

Owns seeds and lengths (short, or long under ``scripts/soak``), which skips are allowed, and that nothing is left
behind. It must not know what any test is about.
"""

import os
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import leftovers, skips

ALLOWED_SKIPS = skips.load(Path(__file__).with_name("allowed_skips.txt"))

# A short run repeats itself; a soak run does not, and prints its seed.
hypothesis.settings.register_profile("short", deadline=None, derandomize=True)
hypothesis.settings.register_profile(
    "soak", deadline=None, max_examples=2000, stateful_step_count=200, print_blob=True, database=None
)
hypothesis.settings.load_profile("short")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--strict-skips``."""
    parser.addoption(
        "--strict-skips",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="fail tests that skip for a reason that tests/allowed_skips.txt does not list (default where CI=true)",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark ``soak`` whatever a soak run makes longer or different."""
    for item in items:
        varies = {"seed", "soak_seconds"}.intersection(getattr(item, "fixturenames", ()))
        if varies or (isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.obj)):
            item.add_marker("soak")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip that is not allowed into a failure."""
    report = yield
    if item.config.getoption("strict_skips"):
        skips.refuse(report, ALLOWED_SKIPS)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the skip of a whole module that is not allowed into an error."""
    report = yield
    if collector.config.getoption("strict_skips"):
        skips.refuse(report, ALLOWED_SKIPS)
    return report


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the run, at its very end, if it leaves a mount or a process behind; and clear both away."""
    run = f"{os.getpid()}-{uuid.uuid4()}"
    os.environ[leftovers.RUN_VARIABLE] = run
    yield
    found = leftovers.clear(run, tmp_path_factory.getbasetemp())
    if found:
        pytest.fail("left behind by this run, now cleared away:\n" + "\n".join(found), pytrace=False)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed for whatever the test makes at random: 1, or FUSECACHE_SEED. Shown where the test fails."""
    value = int(os.environ.get("FUSECACHE_SEED", "1"))
    print(f"{request.node.nodeid}: FUSECACHE_SEED={value}")
    return value


@pytest.fixture
def soak_seconds() -> float:
    """How long a test that is bounded by time runs: 3 s, or FUSECACHE_SOAK_SECONDS."""
    return float(os.environ.get("FUSECACHE_SOAK_SECONDS", "3"))
