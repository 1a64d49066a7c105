"""One run of the benchmark: contestants started together, measured in turn.

Owns the order of measurements, and the state that files are in before each. It must not know how results are shown.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import fio
from bench.hops import Hop, Place, Total, between, totals
from bench.results import Result, Sample
from bench.targets import STARTERS, Target, TargetMissing
from bench.workloads import BARE, FUSECACHE, Workload

_CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run is, and who takes part.

    Attributes:
        seconds: of each measurement.
        mebibytes: of each raw file; all of it is to fit into the page cache.
    """

    rounds: int
    seconds: float
    targets: Sequence[str]
    mebibytes: int = 256


@dataclass
class Measured:
    """What a run found.

    Attributes:
        options: how each contestant was started.
    """

    results: list[Result] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    options: dict[str, str] = field(default_factory=dict)


def run(plan: Plan, workloads: Sequence[Workload], directory: Path) -> Measured:
    """Measure all *workloads*, with files below the empty *directory*.

    A peer that is missing or fails has a result that says why.

    Raises:
        fio.FioFailed: fio failed on fusecache.
    """
    measured = Measured()
    with ExitStack() as stack:
        targets, missing = _start(plan, directory, stack)
        measured.options = {target.name: target.options for target in targets}
        for workload in workloads:
            before = _totals(targets)
            measured.results += _rounds(plan, workload, targets)
            measured.hops += between(workload.name, before, _totals(targets))
    measured.results += [
        Result(workload.name, name, (), reason) for workload in workloads for name, reason in missing.items()
    ]
    return measured


def _start(plan: Plan, directory: Path, stack: ExitStack) -> tuple[Sequence[Target], Mapping[str, str]]:
    """Return who serves, and why the others do not."""
    targets, missing = [], {}
    shared = _raw_file(directory / "images", plan.mebibytes)
    for name in plan.targets:
        # O_DIRECT writes drop pages, so the bare file is one of its own.
        raw = _raw_file(directory / "bare", plan.mebibytes) if name == BARE else shared
        place = directory / name
        place.mkdir(exist_ok=True)
        try:
            targets.append(stack.enter_context(STARTERS[name](place, raw)))
        except TargetMissing as error:
            missing[name] = str(error)
            say(f"{name} takes no part: {error}")
    return targets, missing


def _raw_file(directory: Path, mebibytes: int) -> Path:
    directory.mkdir()
    path = directory / "disk"
    chunk = os.urandom(_CHUNK)
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(chunk)
        os.fsync(file.fileno())
    return path


def _totals(targets: Sequence[Target]) -> Mapping[Place, Total]:
    return next((totals(target.metrics.read_text()) for target in targets if target.metrics), {})


def _rounds(plan: Plan, workload: Workload, targets: Sequence[Target]) -> Iterator[Result]:
    samples: dict[str, list[Sample]] = {target.name: [] for target in targets}
    failed: dict[str, str] = {}
    for number in range(plan.rounds):
        # Whoever is first in one round is last in the next.
        for target in targets[:: -1 if number % 2 else 1]:
            if target.name in failed:
                continue
            try:
                samples[target.name].append(_measured(target, workload, plan.seconds, seed=number + 1))
            except fio.FioFailed as error:
                if target.name == FUSECACHE:
                    raise
                failed[target.name] = str(error)
        latest = "  ".join(f"{name} {each[-1].iops:,.0f}/s" for name, each in samples.items() if each)
        say(f"{workload.name:16} round {number + 1} of {plan.rounds}: {latest}")
    for name, each in samples.items():
        yield Result(workload.name, name, () if name in failed else each, failed.get(name))


def _measured(target: Target, workload: Workload, seconds: float, seed: int) -> Sample:
    _settle(target.backing)
    before = target.cpu_seconds()
    job = fio.measure(target.file, workload, seconds=seconds, seed=seed)
    after = target.cpu_seconds()
    return fio.sample_of(job, after - before if before is not None and after is not None else None)


def _settle(raw: Path) -> None:
    """Write back what is dirty, and bring all of the file into the page cache."""
    with raw.open("rb") as file:
        os.fdatasync(file.fileno())
        while file.read(_CHUNK):
            pass


def say(line: str) -> None:
    """Tell the user how far it is."""
    print(line, file=sys.stderr, flush=True)
