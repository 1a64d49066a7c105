"""One run of the benchmark: contestants started together, measured in turn.

Owns the order of measurements. It must not know how results are shown.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import fio
from bench.costs import Spans
from bench.hops import Hop, Place, Total, between, totals
from bench.places import PLACES
from bench.results import Result, Sample
from bench.targets import Target, TargetFailed, TargetMissing
from bench.workloads import CONTESTANTS, FUSECACHE, Workload, contestants


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a run is.

    Attributes:
        seconds: of each measurement, unless its workload needs more.
        quick: see :func:`bench.workloads.contestants`.
        mebibytes: of each image; of a raw file all is to fit into the page cache.
    """

    rounds: int
    seconds: float
    quick: bool = False
    mebibytes: int = 256


@dataclass
class Measured:
    """What a run found.

    Attributes:
        options: how each contestant was started, by place and name.
        spans: what the daemons with stopwatches said, by name.
    """

    results: list[Result] = field(default_factory=list)
    hops: list[Hop] = field(default_factory=list)
    options: dict[tuple[str, str], str] = field(default_factory=dict)
    spans: dict[str, Spans] = field(default_factory=dict)


def run(plan: Plan, workloads: Sequence[Workload], directory: Path) -> Measured:
    """Measure all *workloads*, with files below the empty *directory*.

    A contestant that is missing, or a peer that fails, has a result that says why.

    Raises:
        fio.FioFailed: fio failed on fusecache.
        TargetFailed: fusecache does not serve.
    """
    measured = Measured()
    for place in PLACES:
        here = [workload for workload in workloads if workload.place == place]
        if here:
            (directory / place).mkdir()
            _run_place(plan, place, here, directory / place, measured)
    return measured


def _run_place(plan: Plan, place: str, workloads: Sequence[Workload], directory: Path, measured: Measured) -> None:
    takers = {workload: contestants(workload, quick=plan.quick) for workload in workloads}
    names = [name for name in CONTESTANTS[place] if any(name in each for each in takers.values())]
    with ExitStack() as stack:
        targets, missing = _start(plan, place, names, directory, stack)
        measured.options |= {(place, target.name): target.options for target in targets}
        for workload in workloads:
            before = _totals(targets)
            measured.results += _rounds(plan, workload, [each for each in targets if each.name in takers[workload]])
            measured.hops += between(workload.name, before, _totals(targets))
    for target in targets:
        if target.spans is not None and target.spans.exists():
            measured.spans[target.name] = Spans(**json.loads(target.spans.read_text()))
    measured.results += [
        Result(workload.name, name, (), reason)
        for workload in workloads
        for name, reason in missing.items()
        if name in takers[workload]
    ]


def _start(
    plan: Plan, place: str, names: Sequence[str], directory: Path, stack: ExitStack
) -> tuple[Sequence[Target], Mapping[str, str]]:
    """Return who serves, and why the others do not."""
    targets: list[Target] = []
    missing: dict[str, str] = {}
    try:
        start = stack.enter_context(PLACES[place](directory, plan.mebibytes))
    except TargetMissing as error:
        say(f"nothing is measured on {place}: {error}")
        return targets, dict.fromkeys(names, str(error))
    for name in names:
        try:
            targets.append(stack.enter_context(start(name)))
        except (TargetMissing, TargetFailed) as error:
            if name == FUSECACHE and isinstance(error, TargetFailed):
                raise
            missing[name] = str(error)
            say(f"{name} takes no part in {place}: {error}")
    return targets, missing


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
    target.settle(workload.before)
    if workload.drained and target.write_back is not None:
        return _drained(target, target.write_back, workload, seed)
    seconds = max(seconds, workload.seconds)
    before = target.cpu_seconds()
    job = fio.measure(target.load, workload, seconds=seconds, seed=seed, environment=target.environment)
    after = target.cpu_seconds()
    # What comes before the measurement takes CPU time, too, and fio does not count its requests.
    if before is None or after is None or workload.ramp:
        return fio.sample_of(job, None)
    return fio.sample_of(job, after - before)


def _drained(target: Target, write_back: Callable[[], object], workload: Workload, seed: int) -> Sample:
    """Have the log filled, and measure how fast it is emptied."""
    fio.measure(target.load, workload, seconds=0, seed=seed, environment=target.environment)
    before, start = target.cpu_seconds(), time.perf_counter()
    write_back()
    took, after = time.perf_counter() - start, target.cpu_seconds()
    cpu = (after - before) / workload.drained * 1e6 if before is not None and after is not None else None
    iops = workload.drained / took
    return Sample(iops, iops * workload.block / (1 << 20), None, None, cpu)


def say(line: str) -> None:
    """Tell the user how far it is."""
    print(line, file=sys.stderr, flush=True)
