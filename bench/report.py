"""The report in words: a Markdown page made from the JSON report.

Owns the tables. It reads nothing but the JSON report, and an older one to compare with. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.workloads import FUSECACHE

_NOTHING = "–"
_COSTS = (
    "At depth 16, daemon and fio pinned to the same CPU; each hop without those below it. Taken with a stopwatch at "
    "each hop: means without the slowest fiftieth. The sum is the CPU time of that daemon, the line above it what "
    "the hops do not explain. What a stopwatch takes when nothing else runs is subtracted; it takes more beside "
    "all else, so a daemon without stopwatches, in the table above, needs less."
)


def markdown(report: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> str:
    """Return the page for *report*; with *old*, also how the ratios have changed since."""
    parts = [
        "# fusecache and its peers",
        _introduction(report),
        "\n".join(f"- **{target['name']}** ({target['place']}): {target['what']}" for target in report["targets"]),
        "## Goals",
        _goals(report["goals"]),
        *(["## Since the older report", _changes(report["goals"], old["goals"])] if old is not None else []),
        "## Requests per second",
        _figures(report["results"]),
        "## Latency, and CPU time of the serving process, in microseconds per request",
        _costs(report["results"]),
        "## Hops of fusecache's stack",
        "Mean time of a request, all hops below included; estimated from a histogram whose buckets double.",
        _hops(report["hops"]),
        *(
            ["## Where the time of a 4k write goes, in nanoseconds per request", _COSTS, _own_costs(report)]
            if report["costs"]
            else []
        ),
        "## How each was started",
        *(
            f"{target['name']} ({target['place']}):\n\n```\n{target['options'].strip()}\n```"
            for target in report["targets"]
        ),
        f"The load:\n\n```\n{report['fio']}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def table(texts: int, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; the first *texts* columns are text, the others stand to the right."""
    lines = [heads, ["---"] * texts + ["---:"] * (len(heads) - texts), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def number(value: float | None, digits: int = 0) -> str:
    """Return *value* with *digits* decimals, or a dash where there is none."""
    return _NOTHING if value is None else f"{value:,.{digits}f}"


def changes(goals: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]]) -> Sequence[Sequence[str]]:
    """Return a row for each goal: name, workload, peer, old and new ratio, change in percent."""
    earlier = {(goal["name"], goal["peer"], goal["workload"]): goal["ratio"] for goal in old}
    rows = []
    for goal in goals:
        before, now = earlier.get((goal["name"], goal["peer"], goal["workload"])), goal["ratio"]
        change = f"{(now / before - 1) * 100:+.0f} %" if before and now is not None else _NOTHING
        rows.append([goal["name"], goal["workload"], goal["peer"], number(before, 2), number(now, 2), change])
    return rows


def _introduction(report: Mapping[str, Any]) -> str:
    machine, versions = report["machine"], report["versions"]
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    awake = (
        " fusecache keeps idle CPUs awake while it is at work, the others do not."
        if machine["keeps_cpus_awake"]
        else ""
    )
    return (
        f"{report['finished']}, {machine['cpus']} CPUs ({machine['cpu']}), Linux {machine['kernel']}, files on "
        f"{machine['filesystem']}; {told}. Medians of {report['rounds']} rounds of {report['seconds']:g} s, in which "
        "all took turns. Figures of one run compare with each other; ratios carry over to other machines, absolute "
        f"figures do not.{awake}"
    )


def _goals(goals: Sequence[Mapping[str, Any]]) -> str:
    heads = ["goal", "workload", "peer", "ratio", "needed", "met", "figures"]
    return table(
        3,
        heads,
        (
            [
                goal["name"],
                goal["workload"],
                goal["peer"],
                number(goal["ratio"], 2),
                number(goal["goal"], 2),
                "yes" if goal["met"] else "no",
                goal["reason"],
            ]
            for goal in goals
        ),
    )


def _changes(goals: Sequence[Mapping[str, Any]], old: Sequence[Mapping[str, Any]]) -> str:
    return table(3, ["goal", "workload", "peer", "ratio then", "ratio now", "change"], changes(goals, old))


def _medians(results: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Mapping[str, float | None]]]:
    """Return the medians by workload and target."""
    found: dict[str, dict[str, Mapping[str, float | None]]] = {}
    for result in results:
        found.setdefault(result["workload"], {})[result["target"]] = result["median"] or {}
    return found


def _figures(results: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for workload, of in _medians(results).items():
        ours = of.get(FUSECACHE, {}).get("iops")
        for target, median in of.items():
            iops = median.get("iops")
            rows.append([workload, target, number(iops), number(ours / iops if ours and iops else None, 2)])
    return table(2, ["workload", "contestant", "requests/s", f"{FUSECACHE} to it"], rows)


def _costs(results: Sequence[Mapping[str, Any]]) -> str:
    fields = ["latency_p50_us", "latency_p99_us", "cpu_us"]
    rows = [
        [workload, target, *(number(median.get(field), 1) for field in fields)]
        for workload, of in _medians(results).items()
        for target, median in of.items()
    ]
    return table(2, ["workload", "contestant", "p50", "p99", "CPU"], rows)


def _hops(hops: Sequence[Mapping[str, Any]]) -> str:
    heads = ["workload", "layer", "plugin", "operation", "requests", "µs"]
    fields = heads[:4]
    rows = [[*(hop[field] for field in fields), number(hop["requests"]), number(hop["mean_us"], 1)] for hop in hops]
    return table(4, heads, rows)


def _own_costs(report: Mapping[str, Any]) -> str:
    media = list(dict.fromkeys(cost["media"] for cost in report["costs"]))
    own = {(cost["hop"], cost["media"]): cost["ns"] for cost in report["costs"]}
    rows = [[hop, *(number(own.get((hop, each))) for each in media)] for hop in dict.fromkeys(hop for hop, _ in own)]
    sums = [number(sum(cost["ns"] for cost in report["costs"] if cost["media"] == each)) for each in media]
    return table(1, ["hop", *media], [*rows, ["all", *sums]])
