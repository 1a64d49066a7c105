"""The rules of every test run, and the fixtures that all tests share.

Owns seeds and lengths (short, or long under ``scripts/soak``), which skips are allowed, that nothing is left behind,
and that parts which were not installed are not tested. It must not know what any test is about.
"""

import os
import sys
import uuid
from collections.abc import Generator, Iterator
from importlib.util import find_spec

import hypothesis
import pytest

from tests.support import leftovers, mounts, skips, soak
from tests.support.project import ROOT

# Tests start hundreds of Python processes; each would compile fusecache again where the machine keeps no bytecode.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

ALLOWED_SKIPS = skips.load(ROOT / "tests" / "allowed_skips.txt")

# What "scripts/setup --without" leaves out; tests/architecture demands it all where a run must be complete.
PARTS = {"layers/rwl/tests": "fusecache_rwl", "layers/rwl/bindings/pmdk-python/tests": "pmdk"}
collect_ignore = [str(ROOT / folder) for folder, module in PARTS.items() if find_spec(module) is None]

# A short run repeats itself; a soak run does not, and goes on with new seeds for as long as it has time.
hypothesis.settings.register_profile("short", deadline=None, derandomize=True)
hypothesis.settings.register_profile("soak", deadline=None, derandomize=False, print_blob=True, database=None)
hypothesis.settings.load_profile("soak" if soak.seconds() else "short")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--strict-skips``."""
    parser.addoption(
        "--strict-skips",
        action="store_true",
        default=os.environ.get("CI") == "true",
        help="fail tests that skip for a reason that tests/allowed_skips.txt does not list (default where CI=true)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the run a round of ``scripts/soak`` where the environment says so."""
    if length := soak.seconds():
        config.pluginmanager.register(soak.Round(length), "soak")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark ``soak`` whatever a soak run makes longer or different."""
    for item in items:
        if "seed" in getattr(item, "fixturenames", ()) or soak.takes_what_time_it_has(item):
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
    value = soak.seed()
    print(f"{request.node.nodeid}: FUSECACHE_SEED={value}")
    return value


@pytest.fixture
def soak_seconds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """How long a test that is bounded by time runs: 3 s, or its share of a soak run. Its mounts live so much longer."""
    value: float = request.node.stash.get(soak.SHARE, 3.0)
    monkeypatch.setattr(mounts, "LIFETIME", mounts.LIFETIME + value)
    return value
