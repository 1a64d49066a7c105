"""The arithmetic and the tables of the benchmark."""

from typing import Any

import pytest

from bench import fio, hops
from bench.report import changes, markdown, table
from bench.results import Result, Sample, Verdict, by_place, judged
from bench.workloads import FUSECACHE, GOALS, NAMES, QEMU, WORKLOADS, Goal, chosen

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
        "machine": {"cpus": 2, "cpu": "fast", "kernel": "6.1", "filesystem": "ext4"},
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
    }
    page = markdown(report)
    assert "| reads | 4k-read-qd16 | Q | – | 1.20 | no | because |" in page
    assert f"| 4k-read-qd16 | {FUSECACHE} | 1,500 | 1.00 |" in page
    assert f"| 4k-read-qd16 | {QEMU} | – | – |" in page
    assert "| 4k-read-qd16 | 0 | passthrough | read | 9 | 1.2 |" in page
    assert "older report" not in page
    assert "+25 %" in markdown({**report, "goals": [goal_row(1.5)]}, {"goals": [goal_row(1.2)]})


def test_a_table_is_markdown() -> None:
    assert table(1, ["a", "b"], [["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
