"""Metrics in the text format that Prometheus scrapes.

Owns the format, by way of prometheus-client. It must not know what is measured.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector


def prometheus_text(family: Family, *, heading: bool = True) -> str:
    """Return a metric's samples in Prometheus' text format, version 0.0.4.

    Args:
        heading: begin with the lines that tell its meaning and type; only once before all samples of a metric.
    """
    # Of its own, as it must hold nothing of the process that it is in.
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_One(family))
    # Not splitlines(): a label may have what else Unicode calls the end of a line.
    lines = generate_latest(registry).decode().split("\n")
    return "\n".join(line for line in lines if heading or not line.startswith("# "))


class _One(Collector):
    def __init__(self, family: Family) -> None:
        self._family = family

    def describe(self) -> Iterable[Family]:
        return ()

    def collect(self) -> Iterable[Family]:
        return (self._family,)
