"""A round of a soak run: it ends in time, leaves nothing out, and says what repeats a failure."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import soak
from tests.support.project import ROOT

PATIENCE = 60.0

CONFTEST = (ROOT / "conftest.py").read_text()

HEADER = """
import pytest
from hypothesis import given, strategies as st
from tests.support import mounts
"""


def run_round(directory: Path, tests: str, *, seconds: float, seed: int) -> tuple[int, str]:
    """Run *tests* as a round; return the exit status and what was printed."""
    directory.mkdir(exist_ok=True)
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(HEADER + tests)
    arguments = ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-v", "--strict-skips", str(directory)]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--rootdir", str(directory), *arguments],
        cwd=ROOT,
        env={**os.environ, "FUSECACHE_SOAK_SECONDS": str(seconds), "FUSECACHE_SEED": str(seed)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def test_the_time_that_is_left_is_shared_evenly() -> None:
    assert soak.share(60.0, 4) == 15.0


@pytest.mark.parametrize("left", [0.0, -100.0])
def test_nothing_is_left_out_where_the_time_is_over(left: float) -> None:
    assert soak.share(left, 4) == soak.LEAST


def test_scenarios_that_end_by_themselves_come_first_and_the_others_use_the_rest(tmp_path: Path) -> None:
    status, said = run_round(
        tmp_path / "tests",
        """
@given(st.integers())
def test_any_number(number): pass

def test_for_a_time(soak_seconds):
    assert soak_seconds >= 1
    assert mounts.LIFETIME == 90 + soak_seconds

def test_once(seed):
    assert seed == 7
""",
        seconds=3,
        seed=7,
    )
    assert status == 0, said
    # How many seeds there is time for is the machine's business.
    assert re.search(r"::test_any_number: \d+\.\d s, \d+ seeds? from 7\n", said), said
    assert re.findall(r"::(\w+) PASSED", said) == ["test_once", "test_any_number", "test_for_a_time"]


def test_a_failure_after_many_seeds_is_told_with_the_seed_that_repeats_it(tmp_path: Path) -> None:
    tests = """
@pytest.mark.parametrize("remainder", [17])
@given(st.integers(0, 10**9))
def test_seldom(remainder, number): assert number % 1009 != remainder
"""
    status, said = run_round(tmp_path / "tests", tests, seconds=40, seed=1)
    assert status == 1, said
    told = re.search(r"::test_seldom\[17\]; again with: FUSECACHE_SEED=(\d+) scripts/soak 'test_seldom\[17\]'\n", said)
    assert told, said
    found = int(told[1])
    assert found > 1
    status, said = run_round(tmp_path / "tests", tests, seconds=1, seed=found)
    assert status == 1, said
    assert f"again with: FUSECACHE_SEED={found} " in said


@pytest.mark.parametrize("body", ["raise OSError", "pytest.skip('not here')"], ids=["failure", "skip"])
def test_what_fails_or_did_not_run_fails_the_round_and_is_told(tmp_path: Path, body: str) -> None:
    status, said = run_round(tmp_path / "tests", f"\ndef test_it(seed):\n    {body}\n", seconds=1, seed=3)
    assert status == 1, said
    assert "::test_it; again with: FUSECACHE_SEED=3 scripts/soak test_it\n" in said


def test_a_name_that_pytest_takes_for_an_expression_is_told_without_its_parameters() -> None:
    assert soak.command("test_x[a b]", 5) == "FUSECACHE_SEED=5 scripts/soak test_x"
