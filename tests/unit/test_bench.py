"""The arithmetic and the tables of the benchmark."""

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import fio, hops
from bench.costs import CHANNEL, HOPS, REPLY, REST, Hop, Spans, costs, mean
from bench.report import changes, markdown, table
from bench.results import Result, Sample, Verdict, by_place, judged
from bench.stopwatch import Stopwatches, calibrated
from bench.targets import Setup, TargetFailed, TargetMissing, fusecache
from bench.workloads import (
    BARE,
    CONTESTANTS,
    COST,
    DIRECTORY,
    FUSECACHE,
    GOALS,
    LIBRBD,
    MEANING,
    NAMES,
    QEMU,
    WORKLOADS,
    Goal,
    Workload,
    chosen,
    contestants,
)

GOAL = Goal("reads", QEMU, "4k-read-qd16", 1.2)


def result(target: str, *iops: float) -> Result:
    """Return a result with a sample for each of *iops*."""
    return Result(GOAL.workload, target, [Sample(each, each / 256, 10.0, 20.0, 5.0) for each in iops])


def verdict(*results: Result) -> Verdict:
    """Return how :data:`GOAL` comes out with *results*."""
    return judged(GOAL, by_place(results))


def test_a_ratio_is_that_of_the_medians() -> None:
    found = verdict(result(FUSECACHE, 100, 300, 200), result(QEMU, 50, 100, 1000))
    assert found.ratio == 2.0
    assert found.met
    assert found.reason == "200 requests/s to 100"


@pytest.mark.parametrize(("ours", "met"), [(119, False), (120, True), (121, True)])
def test_a_goal_is_met_from_its_ratio_on(ours: float, met: bool) -> None:
    assert verdict(result(FUSECACHE, ours), result(QEMU, 100)).met is met


def test_a_missing_peer_leaves_no_ratio_but_a_reason() -> None:
    missing = Result(GOAL.workload, QEMU, (), "it is not installed")
    found = verdict(result(FUSECACHE, 100), missing)
    assert (found.ratio, found.met, found.reason) == (None, False, f"{QEMU}: it is not installed")
    assert verdict(result(FUSECACHE, 100)).reason == f"{QEMU}: not measured"
    assert missing.as_json()["median"] is None


def test_a_peer_without_a_single_request_leaves_no_ratio() -> None:
    assert verdict(result(FUSECACHE, 100), result(QEMU, 0)).ratio is None


def test_every_goal_has_its_workload_and_every_workload_a_goal() -> None:
    goals, workloads = chosen(None)
    assert goals == [*GOALS]
    assert [*workloads] == [*WORKLOADS]
    assert {goal.workload for goal in goals} == {workload.name for workload in workloads}


@pytest.mark.parametrize("name", NAMES)
def test_only_one_goal_takes_only_its_workloads(name: str) -> None:
    goals, workloads = chosen(name)
    assert {goal.name for goal in goals} == {name}
    assert {goal.workload for goal in goals} == {workload.name for workload in workloads}


def test_the_first_goals_are_at_depth_16() -> None:
    demanded = {goal.workload: goal.goal for goal in GOALS}
    assert demanded["rbd-4k-write-qd16"] == 1.0
    assert demanded["4k-read-qd16"] == 1.2
    assert demanded["4k-write-qd16"] == 1.0


def test_a_goal_in_microseconds_is_turned_round() -> None:
    goal = Goal("cost", "10 µs", GOAL.workload, 1.0, cpu_us=10.0)
    spent = Result(GOAL.workload, FUSECACHE, [Sample(1.0, 1.0, None, None, 8.0)])
    found = judged(goal, by_place([spent]))
    assert (found.ratio, found.met, found.reason) == (1.25, True, "8.0 µs of CPU time per request")
    assert judged(goal, {}).reason == f"{FUSECACHE}: not measured"


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.name}-{goal.workload}-{goal.peer}")
def test_whom_a_goal_names_takes_turns_also_where_time_is_short(goal: Goal) -> None:
    workload = next(each for each in WORKLOADS if each.name == goal.workload)
    taking = contestants(workload, quick=True)
    assert FUSECACHE in taking
    assert goal.cpu_us or goal.peer in taking


def test_where_time_is_short_nobody_sets_a_pace_that_no_goal_asks_for() -> None:
    def taking(place: str, depth: int, *, quick: bool) -> set[str]:
        return set(contestants(Workload("load", place, "randwrite", 4096, depth), quick=quick))

    assert taking(DIRECTORY, 16, quick=False) - taking(DIRECTORY, 16, quick=True) == {BARE}
    assert taking("rbd", 16, quick=False) - taking("rbd", 16, quick=True) == {LIBRBD}


def test_the_report_says_who_each_contestant_is() -> None:
    assert {(place, name) for place, names in CONTESTANTS.items() for name in names} == set(MEANING)


def test_fio_ends_by_time_or_by_the_number_of_its_requests() -> None:
    load = Workload("load", COST, "randwrite", 4096, 16, drained=1024, ramp=2.0)
    by_time, by_number = (fio.command([], load, seconds=seconds, seed=1) for seconds in (0.5, 0))
    assert {"--runtime=500ms", "--time_based", "--norandommap", "--ramp_time=2000ms"} <= set(by_time)
    assert "--io_size=4194304" in by_number
    # Each write to another block: what is overwritten need not be written back.
    assert "--norandommap" not in by_number


def test_a_sample_is_read_from_the_side_that_moved_data() -> None:
    idle: dict[str, Any] = {"total_ios": 0}
    busy = {
        "total_ios": 2000,
        "iops": 1000.0,
        "bw_bytes": 4 << 20,
        "clat_ns": {"percentile": {"50.000000": 5000, "99.000000": 9000}},
    }
    assert fio.sample_of({"read": idle, "write": busy}, 0.01) == Sample(1000.0, 4.0, 5.0, 9.0, 5.0)
    assert fio.sample_of({"read": busy, "write": idle}, None).cpu_us is None


def exposition(requests: int, seconds: float) -> str:
    """Return metrics in which the backend's hop has counted *requests*."""
    name = "fusecache_request_duration_seconds"
    lines = [f"# TYPE {name} histogram"]
    for layer, plugin, factor in (("backend", "directory", 1), ("0", "passthrough", 2), ("1", "other", 3)):
        labels = f'image="disk",layer="{layer}",plugin="{plugin}",operation="read"'
        lines += [
            f'{name}_bucket{{{labels},le="+Inf"}} {requests}',
            f"{name}_count{{{labels}}} {requests}",
            f"{name}_sum{{{labels}}} {seconds * factor}",
        ]
    return "\n".join(lines) + "\n"


def test_hops_are_what_was_added_between_two_readings_top_first() -> None:
    before, after = hops.totals(exposition(10, 0.5)), hops.totals(exposition(30, 0.7))
    found = hops.between("load", before, after)
    assert [(hop.layer, hop.plugin, hop.requests) for hop in found] == [
        ("1", "other", 20),
        ("0", "passthrough", 20),
        ("backend", "directory", 20),
    ]
    assert [hop.mean_us for hop in found] == pytest.approx([30_000, 20_000, 10_000])
    assert hops.between("load", after, after) == []
    assert hops.between("load", {}, before)[-1].requests == 10


def test_a_hop_costs_its_span_without_the_stopwatches() -> None:
    found = {cost.hop: cost.ns for cost in costs("pmem", Spans({hop.name: 1000.0 for hop in HOPS}, 10.0, 20.0), None)}
    assert found[CHANNEL] == 1000 - 20
    assert found["data plane"] == 1000 - 10 - 2 * 20
    assert found["rwl: log"] == 1000 - 10 - 5 * 20
    assert found[REPLY] == 1000 - 10


def test_a_mean_is_without_the_slowest_fiftieth() -> None:
    assert mean([*range(98), 10_000, 20_000]) == pytest.approx(48.5)
    assert mean([7]) == 7


def test_hops_stopwatches_and_what_they_leave_are_the_whole_cpu_time() -> None:
    spans = Spans({hop.name: 1000.0 for hop in HOPS}, 1.0, 2.0)
    assert sum(cost.ns for cost in costs("ssd", spans, 12.5)) == pytest.approx(12_500 - 3 * len(HOPS))
    assert REST not in [cost.hop for cost in costs("ssd", spans, None)]


INSTALLED = [hop for hop in HOPS if all(find_spec(module.partition(".")[0]) for module, _, _ in hop.methods)]


@pytest.mark.parametrize("hop", INSTALLED, ids=lambda hop: hop.name)
def test_every_hop_that_is_timed_exists(hop: Hop) -> None:
    for module, owner, method in hop.methods:
        # Its own, not inherited: a stopwatch at a base class would time others, too.
        assert method in vars(getattr(importlib.import_module(module), owner))


def test_a_stopwatch_adds_a_span_for_each_call_that_returns() -> None:
    watches = Stopwatches()
    watched = watches.at(REPLY, int)
    assert [watched(text) for text in ("1", "2")] == [1, 2]
    with pytest.raises(ValueError, match="invalid literal"):
        watched("x")
    assert len(watches.own[REPLY]) == 2


def test_a_span_is_without_those_below() -> None:
    watches = Stopwatches()
    below = watches.at(REPLY, lambda: sum(range(100_000)))
    assert watches.at(CHANNEL, lambda: [below(), below()])()
    assert sum(watches.own[CHANNEL]) < sum(watches.own[REPLY])


def test_a_stopwatch_knows_what_it_takes_itself() -> None:
    inside, outside = calibrated()
    assert 0 < inside + outside < 20_000


def test_a_layer_that_refuses_an_option_takes_no_part(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    backend = f'type = "directory"\npath = "{tmp_path / "images"}"'
    setup = Setup(backend, backend, layer='plugin = "passthrough"\nspeed = "high"')
    with pytest.raises(TargetMissing, match="the layer refuses speed"), fusecache(tmp_path / "a", "disk", setup):
        pass
    # What is not the layer's is a mistake of the benchmark's own.
    with pytest.raises(TargetFailed, match="backend"), fusecache(tmp_path / "b", "disk", Setup("type = 1", "")):
        pass


def goal_row(ratio: float | None) -> dict[str, Any]:
    """Return a goal as the JSON report has it."""
    row = {"name": "reads", "peer": QEMU, "workload": GOAL.workload, "goal": 1.2}
    return {**row, "ratio": ratio, "met": (ratio or 0) >= 1.2, "reason": "because"}


def test_changes_are_shown_where_both_reports_have_a_ratio() -> None:
    new, old = [goal_row(1.5)], [goal_row(1.2)]
    assert changes(new, old)[0][3:] == ["1.20", "1.50", "+25 %"]
    assert changes(new, [])[0][3:] == ["–", "1.50", "–"]
    assert changes(new, [goal_row(None)])[0][3:] == ["–", "1.50", "–"]
    assert changes([goal_row(None)], old)[0][3:] == ["1.20", "–", "–"]


def test_the_page_has_every_goal_and_says_what_is_missing() -> None:
    results = [result(FUSECACHE, 1500), Result(GOAL.workload, QEMU, (), "it is not installed")]
    report = {
        "finished": "today",
        "rounds": 3,
        "seconds": 0.5,
        "machine": {"cpus": 2, "cpu": "fast", "kernel": "6.1", "filesystem": "ext4", "keeps_cpus_awake": True},
        "versions": {"fusecache": "0.1.0", "qemu": None},
        "targets": [{"place": "directory", "name": FUSECACHE, "what": "a mount", "options": "[mount]\n"}],
        "fio": "fio --rw=randread",
        "results": [each.as_json() for each in results],
        "goals": [goal_row(None)],
        "hops": [
            {
                "workload": GOAL.workload,
                "layer": "0",
                "plugin": "passthrough",
                "operation": "read",
                "requests": 9,
                "mean_us": 1.25,
            }
        ],
        "costs": [{"media": "pmem", "hop": "link", "ns": 900.0}, {"media": "ssd", "hop": "log", "ns": 1100.0}],
    }
    page = markdown(report)
    assert "| reads | 4k-read-qd16 | Q | – | 1.20 | no | because |" in page
    assert f"| 4k-read-qd16 | {FUSECACHE} | 1,500 | 1.00 |" in page
    assert f"| 4k-read-qd16 | {QEMU} | – | – |" in page
    assert "| 4k-read-qd16 | 0 | passthrough | read | 9 | 1.2 |" in page
    assert "| link | 900 | – |" in page
    assert "| all | 900 | 1,100 |" in page
    assert "older report" not in page
    assert "+25 %" in markdown({**report, "goals": [goal_row(1.5)]}, {"goals": [goal_row(1.2)]})


def test_a_table_is_markdown() -> None:
    assert table(1, ["a", "b"], [["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
