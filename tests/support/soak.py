"""A round of ``scripts/soak``: how its scenarios share the time, and what repeats those that failed.

Owns the order of a round, each scenario's share of its time, the seeds of Hypothesis scenarios and the summary. It must
not know what a scenario is about, nor how many rounds there are.

``FUSECACHE_SOAK_SECONDS`` makes a pytest run such a round, and says how long it is; ``FUSECACHE_SEED`` is its seed.
What has no use for more time (a program that is run once) comes first, and takes what it takes. The others share what
is left: whatever the machine's speed, a round that can end in time does, and nothing is left out.
"""

import inspect
import itertools
import os
import re
import shlex
import time
from collections.abc import Generator
from typing import Final

import hypothesis
import pytest

LEAST: Final = 1.0
"""Seconds that a scenario has even where the time is over."""

SHRINKING: Final = 420.0
"""Seconds over its share after which a scenario hangs: Hypothesis has 300 for making a failure small."""

SHARE: Final = pytest.StashKey[float]()
"""Of an item: the seconds it has."""

SEED: Final = pytest.StashKey[int]()
"""Of an item: the seed it runs with, unless that is the round's."""

SEEDS: Final = pytest.StashKey[int]()
"""Of an item: how many seeds it ran with."""


def seconds() -> float:
    """How long this round is; 0 outside of a soak run."""
    return float(os.environ.get("FUSECACHE_SOAK_SECONDS", "0"))


def seed() -> int:
    """The seed of this run: 1, or FUSECACHE_SEED."""
    return int(os.environ.get("FUSECACHE_SEED", "1"))


def takes_what_time_it_has(item: pytest.Item) -> bool:
    """Say whether a scenario goes on for as long as it is told to."""
    return "soak_seconds" in getattr(item, "fixturenames", ()) or is_hypothesis_test(item)


def is_hypothesis_test(item: pytest.Item) -> bool:
    """Say whether Hypothesis makes up the test's arguments."""
    return isinstance(item, pytest.Function) and hypothesis.is_hypothesis_test(item.obj)


def share(left: float, waiting: int) -> float:
    """Return the seconds of the next of *waiting* scenarios where *left* are left for all."""
    return max(LEAST, left / waiting)


def command(name: str, with_seed: int) -> str:
    """Return what repeats the scenario *name*."""
    # What pytest -k takes for more than a name is left out; the name without its parameters finds it as well.
    if not re.fullmatch(r"[\w.+\[\]-]+", name):
        name = name.partition("[")[0]
    return f"FUSECACHE_SEED={with_seed} scripts/soak {shlex.quote(name)}"


class Round:
    """The pytest plugin that makes a run a round."""

    def __init__(self, length: float) -> None:
        self._length = length
        self._end = time.monotonic() + length
        self._waiting: list[pytest.Item] = []
        self._lines: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put those last that take what time there is."""
        items.sort(key=takes_what_time_it_has)
        self._waiting = [item for item in items if takes_what_time_it_has(item)]
        for item in self._waiting:
            item.add_marker(pytest.mark.timeout(self._length + SHRINKING), append=False)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Give the next one its share."""
        if item in self._waiting:
            item.stash[SHARE] = share(self._end - time.monotonic(), len(self._waiting))
            self._waiting.remove(item)

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool | None:
        """Run a Hypothesis test with one seed after the other, until its share is over or it fails."""
        if not is_hypothesis_test(pyfuncitem):
            return None
        test = pyfuncitem.obj
        arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
        end = time.monotonic() + pyfuncitem.stash[SHARE]
        for number in itertools.count():
            # The seed alone repeats a failure: it is the first of a round that is given it.
            pyfuncitem.stash[SEED] = seed() + number
            pyfuncitem.stash[SEEDS] = number + 1
            hypothesis.seed(pyfuncitem.stash[SEED])(test)(**arguments)
            if time.monotonic() >= end:
                break
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Keep a line about each scenario that had a share, or failed."""
        report = yield
        if report.failed:
            again = command(item.name, item.stash.get(SEED, seed()))
            self._lines.append(f"FAILED {item.nodeid}; again with: {again}")
        elif report.when == "call" and SHARE in item.stash:
            seeds = item.stash.get(SEEDS, 1)
            self._lines.append(f"{item.nodeid}: {report.duration:.1f} s, {seeds} seed{'s' * (seeds > 1)} from {seed()}")
        return report

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show those lines, failures last."""
        terminalreporter.section(f"soak: seed {seed()}, {self._length:g} s")
        for line in sorted(self._lines, key=lambda line: line.startswith("FAILED ")):
            terminalreporter.write_line(line)
