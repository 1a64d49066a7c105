"""Metrics read from the open images when somebody asks.

Owns how counts kept elsewhere become metrics. Nothing is added to the path of a request: its counts are plain numbers,
read here at each scrape. It must not know images, stacks or files; it is given hops.

A thousand images are many megabytes of text, so a scrape is made in steps, between which requests are served. All of
one image is read in one step, and so its figures agree with each other.
"""

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Final, Protocol, TypeAlias

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from fusecache.api.layer import LayerState, LayerStatus
from fusecache.metrics import names
from fusecache.metrics.export import prometheus_text
from fusecache.metrics.names import Metric

_FIRST_BUCKET: Final = 10
_LAST_BUCKET: Final = 34
_STEP: Final = 50
"""Samples that are written at one step, some more where a hop has many; each takes some ten microseconds."""

_Make: TypeAlias = Callable[[], Family]
_Fill: TypeAlias = "Callable[[Any, _Row], None]"
"""Adds a hop's samples to a family, if it has any."""


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


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the figures come from; each is called at every scrape and never waits.

    Attributes:
        operations: what a hop's figures are indexed with; the names become labels.
        hops: the hops of each open image, one image after another, read when it is their turn.
    """

    version: str
    backend: str
    operations: Sequence[enum.Enum]
    hops: Callable[[], Iterable[Sequence[Hop]]]
    open_images: Callable[[], int]
    running_commands: Callable[[], int]
    slots_in_use: Callable[[], int]


def scrape(sources: Sources) -> Iterator[str]:
    """Yield the text of all metrics in pieces, some of them empty. Each step takes a few milliseconds at most."""
    build = _gauge(names.BUILD)
    build.add_metric((sources.version, _encodable(sources.backend)), 1)
    yield prometheus_text(build)
    for metric, read in (
        (names.OPEN_IMAGES, sources.open_images),
        (names.RUNNING_COMMANDS, sources.running_commands),
        (names.SLOTS_IN_USE, sources.slots_in_use),
    ):
        gauge = _gauge(metric)
        gauge.add_metric((), read())
        yield prometheus_text(gauge)
    rows: list[_Row] = []
    for hops in sources.hops():
        rows += [_Row(hop, sources.operations) for hop in hops]
        yield ""
    for make, fill in (*_REQUEST_FAMILIES, *_LAYER_FAMILIES):
        yield from _in_steps(make, fill, rows)


class _Row:
    """What a hop counted, as of one moment.

    Attributes:
        labels: the values of the labels image, layer, plugin.
        operations: of each the value of its label, and its requests, bytes, errors and latency; the last one only
            where there were any.
    """

    __slots__ = ("in_flight", "labels", "operations", "status")

    def __init__(self, hop: Hop, operations: Sequence[enum.Enum]) -> None:
        self.labels = (_encodable(hop.image), hop.layer, hop.plugin)
        self.in_flight = hop.figures.in_flight
        self.operations = [_counted(operation, hop.figures[operation]) for operation in operations]
        self.status = hop.status


def _counted(operation: enum.Enum, figures: OperationFigures) -> tuple[str, int, int, int, Sequence[int]]:
    count = figures.count
    # Most hops never see most operations, and a histogram is long.
    return operation.name.lower(), count, figures.bytes, figures.errors, figures.latency.copy() if count else ()


def _in_steps(make: _Make, fill: _Fill, rows: Iterable[_Row]) -> Iterator[str]:
    """Yield the text of one family."""
    family, heading = make(), True
    for row in rows:
        fill(family, row)
        if len(family.samples) >= _STEP:
            yield prometheus_text(family, heading=heading)
            family, heading = make(), False
    if family.samples or heading:
        yield prometheus_text(family, heading=heading)


def _fill_in_flight(family: Any, row: _Row) -> None:
    family.add_metric(row.labels, row.in_flight)


def _fill_operation(which: int) -> _Fill:
    def fill(family: Any, row: _Row) -> None:
        for operation in row.operations:
            family.add_metric((*row.labels, operation[0]), operation[which])

    return fill


def _fill_duration(family: Any, row: _Row) -> None:
    for name, _, _, _, latency in row.operations:
        if latency:
            family.add_metric((*row.labels, name), _buckets(latency), _estimated_seconds(latency))


def _fill_state(family: Any, row: _Row) -> None:
    if row.status is not None:
        for each in LayerState:
            family.add_metric((*row.labels, each.value), int(row.status.state is each))


def _fill_layer(read: Callable[[LayerStatus], float | None]) -> _Fill:
    def fill(family: Any, row: _Row) -> None:
        if row.status is not None and (value := read(row.status)) is not None:
            family.add_metric(row.labels, value)

    return fill


def _gauge(metric: Metric) -> GaugeMetricFamily:
    return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)


def _counter(metric: Metric) -> CounterMetricFamily:
    return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)


def _histogram(metric: Metric) -> HistogramMetricFamily:
    return HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)


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


_REQUEST_FAMILIES: Final[Sequence[tuple[_Make, _Fill]]] = (
    (partial(_counter, names.REQUESTS), _fill_operation(1)),
    (partial(_counter, names.BYTES), _fill_operation(2)),
    (partial(_counter, names.ERRORS), _fill_operation(3)),
    (partial(_gauge, names.IN_FLIGHT), _fill_in_flight),
    (partial(_histogram, names.DURATION), _fill_duration),
)
_LAYER_FAMILIES: Final[Sequence[tuple[_Make, _Fill]]] = (
    (partial(_gauge, names.STATE), _fill_state),
    (partial(_gauge, names.DIRTY), _fill_layer(lambda status: status.dirty_bytes)),
    (partial(_gauge, names.USED), _fill_layer(lambda status: status.used_bytes)),
    (partial(_gauge, names.SIZE), _fill_layer(lambda status: status.size_bytes)),
    (partial(_gauge, names.OLDEST_DIRTY), _fill_layer(lambda status: status.oldest_dirty_seconds)),
    (partial(_counter, names.HITS), _fill_layer(lambda status: status.hits)),
    (partial(_counter, names.MISSES), _fill_layer(lambda status: status.misses)),
    (partial(_counter, names.WRITEBACK), _fill_layer(lambda status: status.writeback_bytes)),
    (partial(_counter, names.LAYER_ERRORS), _fill_layer(lambda status: status.errors)),
)
