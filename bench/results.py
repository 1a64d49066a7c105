"""From samples to medians, ratios and verdicts.

Owns the arithmetic, and the form of ``results`` and ``goals`` in the JSON report. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.workloads import FUSECACHE, Goal


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of one workload on one contestant gave.

    Attributes:
        iops: requests per second.
        mib_per_second: of data.
        latency_p50_us, latency_p99_us: microseconds from submission to completion, as fio saw them; None where fio did
            not see it.
        cpu_us: microseconds of CPU that the serving process spent on a request; None where none serves.
    """

    iops: float
    mib_per_second: float
    latency_p50_us: float | None
    latency_p99_us: float | None
    cpu_us: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """All samples of one workload on one contestant.

    Attributes:
        reason: why there are no samples; None where there are.
    """

    workload: str
    target: str
    samples: Sequence[Sample]
    reason: str | None = None

    def median_of(self, field: str) -> float | None:
        """Return the median of one field of the samples; None where there is none."""
        values = [value for sample in self.samples if (value := getattr(sample, field)) is not None]
        return median(values) if values else None

    def as_json(self) -> dict[str, Any]:
        """Return the result for the report."""
        return {
            "workload": self.workload,
            "target": self.target,
            "median": {field: self.median_of(field) for field in Sample.__slots__} if self.samples else None,
            "rounds": [asdict(sample) for sample in self.samples],
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a goal came out.

    Attributes:
        ratio: see :attr:`Goal.goal` and :attr:`Goal.cpu_us`, of medians; None where a figure is missing.
        reason: what the ratio was made of, or why there is none.
    """

    name: str
    peer: str
    workload: str
    goal: float
    ratio: float | None
    met: bool
    reason: str


def by_place(results: Iterable[Result]) -> Mapping[tuple[str, str], Result]:
    """Return *results* by workload and target."""
    return {(result.workload, result.target): result for result in results}


def judged(goal: Goal, results: Mapping[tuple[str, str], Result]) -> Verdict:
    """Return how *goal* came out."""
    figures = []
    of = [(FUSECACHE, "cpu_us")] if goal.cpu_us else [(FUSECACHE, "iops"), (goal.peer, "iops")]
    for target, field in of:
        result = results.get((goal.workload, target))
        figure = result.median_of(field) if result is not None else None
        if not figure:
            reason = (result.reason if result is not None else None) or "not measured"
            return Verdict(goal.name, goal.peer, goal.workload, goal.goal, None, False, f"{target}: {reason}")
        figures.append(figure)
    if goal.cpu_us:
        ratio, reason = goal.cpu_us / figures[0], f"{figures[0]:.1f} µs of CPU time per request"
    else:
        ratio, reason = figures[0] / figures[1], f"{figures[0]:.0f} requests/s to {figures[1]:.0f}"
    return Verdict(goal.name, goal.peer, goal.workload, goal.goal, ratio, ratio >= goal.goal, reason)
