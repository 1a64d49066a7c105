"""The metrics, as Prometheus reads them."""

import math
from collections.abc import Sequence

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from fusecache.api.layer import LayerState, LayerStatus
from fusecache.metrics import names
from fusecache.metrics.registry import Hop, Sources, scrape
from fusecache.stack.stats import LinkStats, Op


def scraped(hops: Sequence[Hop] = (), *, backend: str = "directory", running: int = 0) -> dict[str, Metric]:
    sources = Sources(
        version="1.2.3",
        backend=backend,
        operations=tuple(Op),
        hops=lambda: [[hop] for hop in hops],
        open_images=lambda: len({hop.image for hop in hops}),
        running_commands=lambda: running,
        slots_in_use=lambda: 5,
    )
    return {family.name: family for family in text_string_to_metric_families("".join(scrape(sources)))}


def value(families: dict[str, Metric], sample: str, **labels: str) -> float:
    found = [
        each.value
        for family in families.values()
        for each in family.samples
        if each.name == sample and labels.items() <= each.labels.items()
    ]
    assert len(found) == 1, f"{sample} {labels}: {found}"
    return found[0]


def hop(image: str = "disk", status: LayerStatus | None = None) -> Hop:
    return Hop(image, names.BACKEND_LAYER if status is None else "0", "held", LinkStats(), status)


def test_a_mount_without_open_images_tells_of_itself() -> None:
    families = scraped(running=2)
    assert value(families, "fusecache_build", version="1.2.3", backend="directory") == 1
    assert value(families, "fusecache_open_images") == 0
    assert value(families, "fusecache_running_commands") == 2
    assert value(families, "fusecache_request_slots_in_use") == 5


def test_all_names_begin_alike_and_are_in_the_one_file() -> None:
    known = {each.name for each in vars(names).values() if isinstance(each, names.Metric)}
    shown = scraped([hop(), hop(status=LayerStatus())])
    assert {name for name in shown if not name.startswith("fusecache_")} == set()
    assert set(shown) == known


def test_requests_are_counted_by_image_layer_and_operation() -> None:
    top = hop(status=LayerStatus())
    writes = top.figures[Op.WRITE]
    writes.bytes, writes.errors = 8192, 1
    writes.latency[12] += 2
    families = scraped([top, hop(), hop("other")])
    labels = {"image": "disk", "layer": "0", "plugin": "held", "operation": "write"}
    assert value(families, "fusecache_requests_total", **labels) == 2
    assert value(families, "fusecache_request_bytes_total", **labels) == 8192
    assert value(families, "fusecache_request_errors_total", **labels) == 1
    assert value(families, "fusecache_requests_total", image="disk", layer="backend", operation="write") == 0
    assert value(families, "fusecache_requests_total", image="other", operation="read") == 0


def test_durations_are_a_cumulative_histogram() -> None:
    one = hop()
    latency = one.figures[Op.READ].latency
    latency[3], latency[12], latency[13], latency[60] = 1, 2, 4, 8
    families = scraped([one])
    name = "fusecache_request_duration_seconds"
    buckets = {float(each.labels["le"]): each.value for each in families[name].samples if each.name == f"{name}_bucket"}
    assert buckets[2**10 / 1e9] == 1
    assert buckets[2**12 / 1e9] == 3
    assert buckets[2**13 / 1e9] == 7
    assert buckets[2**34 / 1e9] == 7
    assert buckets[math.inf] == value(families, f"{name}_count") == 15
    assert list(buckets.values()) == sorted(buckets.values())
    middles = 6 + 2 * 3072 + 4 * 6144 + 8 * 0.75 * 2**60
    assert value(families, f"{name}_sum") == pytest.approx(middles / 1e9)


def test_layers_tell_their_state_and_sizes() -> None:
    status = LayerStatus(state=LayerState.DIRTY, dirty_bytes=1, used_bytes=2, size_bytes=3, hits=4, misses=5)
    families = scraped([hop(status=status)])
    assert value(families, "fusecache_layer_state", state="dirty") == 1
    assert value(families, "fusecache_layer_state", state="clean") == 0
    assert value(families, "fusecache_layer_dirty_bytes") == 1
    assert value(families, "fusecache_layer_used_bytes") == 2
    assert value(families, "fusecache_layer_size_bytes") == 3
    assert value(families, "fusecache_layer_hits_total") == 4
    assert value(families, "fusecache_layer_misses_total") == 5


def test_the_age_of_dirty_data_shows_only_where_there_is_any() -> None:
    assert not scraped([hop(status=LayerStatus())])["fusecache_layer_oldest_dirty_seconds"].samples
    families = scraped([hop(status=LayerStatus(oldest_dirty_seconds=1.5))])
    assert value(families, "fusecache_layer_oldest_dirty_seconds") == 1.5


@pytest.mark.parametrize(("name", "label"), [('a"b\\c', 'a"b\\c'), ("two\nlines", "two\nlines"), ("\udc80", "\\udc80")])
def test_any_image_name_makes_a_label(name: str, label: str) -> None:
    assert value(scraped([hop(name)]), "fusecache_requests_in_flight", image=label) == 0


def test_what_looks_like_a_comment_in_an_image_name_is_none() -> None:
    hops = [hop(f"{number}\u2028# x") for number in range(200)]
    (in_flight,) = (family for name, family in scraped(hops).items() if name == "fusecache_requests_in_flight")
    assert [sample.labels["image"] for sample in in_flight.samples] == [each.image for each in hops]
