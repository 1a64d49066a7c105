"""How long requests took at each hop of fusecache's stack.

Owns the reading of the mount's metrics and what is derived from them. Pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from prometheus_client.parser import text_string_to_metric_families

_DURATION: Final = "fusecache_request_duration_seconds"

Place: TypeAlias = tuple[str, str, str]
"""Layer index or ``backend``, plugin or the backend's type, operation."""


@dataclass(frozen=True, slots=True)
class Total:
    """What a histogram counted: requests, and the sum of their durations in seconds."""

    requests: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Hop:
    """A hop during one workload.

    Attributes:
        mean_us: microseconds that a request took there, all hops below included.
    """

    workload: str
    layer: str
    plugin: str
    operation: str
    requests: int
    mean_us: float


def totals(metrics: str) -> Mapping[Place, Total]:
    """Return the durations in *metrics*, in Prometheus' text format, over all images."""
    counts: dict[Place, float] = {}
    sums: dict[Place, float] = {}
    for family in text_string_to_metric_families(metrics):
        if family.name != _DURATION:
            continue
        for sample in family.samples:
            place = (sample.labels["layer"], sample.labels["plugin"], sample.labels["operation"])
            for suffix, into in (("_count", counts), ("_sum", sums)):
                if sample.name == _DURATION + suffix:
                    into[place] = into.get(place, 0.0) + sample.value
    return {place: Total(count, sums[place]) for place, count in counts.items()}


def between(workload: str, before: Mapping[Place, Total], after: Mapping[Place, Total]) -> Sequence[Hop]:
    """Return what each hop did between two readings, top first; the hop into the backend is the last."""
    found = []
    for place, total in after.items():
        earlier = before.get(place, Total())
        requests = total.requests - earlier.requests
        if requests > 0:
            mean = (total.seconds - earlier.seconds) / requests * 1e6
            found.append(Hop(workload, *place, int(requests), mean))
    return sorted(found, key=lambda hop: (hop.operation, int(hop.layer) * -1 if hop.layer.isdigit() else 1))
