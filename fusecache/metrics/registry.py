"""Metrics read from the open images when somebody asks.

Owns how counts kept elsewhere become metrics. Nothing is added to the path of a request: its counts are plain numbers,
read here at each scrape. It must not know images, stacks or files; it is given hops.
"""

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from fusecache.api.layer import LayerState, LayerStatus
from fusecache.metrics import names
from fusecache.metrics.names import Metric

_FIRST_BUCKET: Final = 10
_LAST_BUCKET: Final = 34


class OperationFigures(Protocol):
    """What a hop counted of one operation.

    Attributes:
        latency: bucket *n* counts requests that took ``[2**(n-1), 2**n)`` nanoseconds.
    """

    bytes: int
    errors: int
    latency: list[int]

    @property
    def count(self) -> int: ...


class HopFigures(Protocol):
    """What a hop counted, by operation."""

    in_flight: int

    def __getitem__(self, operation: Any, /) -> OperationFigures: ...


@dataclass(frozen=True, slots=True)
class Hop:
    """One hop of an open image's stack.

    Attributes:
        layer: the layer index below the hop, or :data:`names.BACKEND_LAYER`.
        plugin: what is below the hop: the layer's plugin, or the backend's type.
        status: the layer's figures; None for the backend.
    """

    image: str
    layer: str
    plugin: str
    figures: HopFigures
    status: LayerStatus | None = None

    @property
    def labels(self) -> Sequence[str]:
        """The values of the labels image, layer, plugin."""
        return (_encodable(self.image), self.layer, self.plugin)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the figures come from; each is called at every scrape and never waits.

    Attributes:
        operations: what a hop's figures are indexed with; the names become labels.
        hops: all hops of all open images.
    """

    version: str
    backend: str
    operations: Sequence[enum.Enum]
    hops: Callable[[], Iterable[Hop]]
    open_images: Callable[[], int]
    running_commands: Callable[[], int]
    slots_in_use: Callable[[], int]


def make_registry(sources: Sources) -> CollectorRegistry:
    """Return a registry of a mount's own, which holds nothing of the process it is in."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_MountCollector(sources))
    return registry


class _MountCollector(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterable[Family]:
        return ()

    def collect(self) -> Iterator[Family]:
        sources = self._sources
        build = _gauge(names.BUILD)
        build.add_metric((sources.version, _encodable(sources.backend)), 1)
        yield build
        for metric, read in (
            (names.OPEN_IMAGES, sources.open_images),
            (names.RUNNING_COMMANDS, sources.running_commands),
            (names.SLOTS_IN_USE, sources.slots_in_use),
        ):
            gauge = _gauge(metric)
            gauge.add_metric((), read())
            yield gauge
        hops = tuple(sources.hops())
        yield from _request_families(hops, sources.operations)
        yield from _layer_families(hops)


def _request_families(hops: Sequence[Hop], operations: Sequence[enum.Enum]) -> Iterator[Family]:
    requests, sizes, errors = _counter(names.REQUESTS), _counter(names.BYTES), _counter(names.ERRORS)
    in_flight = _gauge(names.IN_FLIGHT)
    duration = HistogramMetricFamily(names.DURATION.name, names.DURATION.help, labels=names.DURATION.labels)
    for hop in hops:
        in_flight.add_metric(hop.labels, hop.figures.in_flight)
        for operation in operations:
            figures = hop.figures[operation]
            count = figures.count
            labels = (*hop.labels, operation.name.lower())
            requests.add_metric(labels, count)
            sizes.add_metric(labels, figures.bytes)
            errors.add_metric(labels, figures.errors)
            # Most hops never see most operations, and a histogram is long.
            if count:
                duration.add_metric(labels, _buckets(figures.latency), _estimated_seconds(figures.latency))
    return iter((requests, sizes, errors, in_flight, duration))


def _layer_families(hops: Sequence[Hop]) -> Iterator[Family]:
    layers = [(hop.labels, hop.status) for hop in hops if hop.status is not None]
    state = _gauge(names.STATE)
    for labels, status in layers:
        for each in LayerState:
            state.add_metric((*labels, each.value), int(status.state is each))
    yield state
    yield _filled(_gauge(names.DIRTY), layers, lambda status: status.dirty_bytes)
    yield _filled(_gauge(names.USED), layers, lambda status: status.used_bytes)
    yield _filled(_gauge(names.SIZE), layers, lambda status: status.size_bytes)
    yield _filled(_gauge(names.OLDEST_DIRTY), layers, lambda status: status.oldest_dirty_seconds)
    yield _filled(_counter(names.HITS), layers, lambda status: status.hits)
    yield _filled(_counter(names.MISSES), layers, lambda status: status.misses)
    yield _filled(_counter(names.WRITEBACK), layers, lambda status: status.writeback_bytes)
    yield _filled(_counter(names.LAYER_ERRORS), layers, lambda status: status.errors)


def _filled(
    family: CounterMetricFamily | GaugeMetricFamily,
    layers: Iterable[tuple[Sequence[str], LayerStatus]],
    read: Callable[[LayerStatus], float | None],
) -> Family:
    for labels, status in layers:
        value = read(status)
        if value is not None:
            family.add_metric(labels, value)
    return family


def _gauge(metric: Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def _counter(metric: Metric) -> CounterMetricFamily:
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def _buckets(latency: Sequence[int]) -> Sequence[tuple[str, float]]:
    """Return cumulative buckets from a microsecond to 17 seconds, each twice the one before."""
    cumulative = list(accumulate(latency))
    shown = range(_FIRST_BUCKET, _LAST_BUCKET + 1)
    return [(repr((1 << n) / 1e9), cumulative[n]) for n in shown] + [("+Inf", cumulative[-1])]


def _estimated_seconds(latency: Sequence[int]) -> float:
    # The middle of bucket n is three quarters of its upper end.
    return sum(count * 0.75 * (1 << n) for n, count in enumerate(latency)) / 1e9


def _encodable(text: str) -> str:
    # A file name that is not UTF-8 must not make the whole scrape fail.
    return text.encode("utf-8", "backslashreplace").decode()
