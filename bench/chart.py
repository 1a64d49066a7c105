"""The report as a picture.

Owns what the chart looks like. It reads nothing but the JSON report.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.workloads import FUSECACHE, QEMU, QEMU_RBD

_COLORS: Final = {FUSECACHE: "#20639b", QEMU: "#c77b30", QEMU_RBD: "#c77b30"}
_MET: Final = {True: "#3a7d44", False: "#b23a48"}


def draw(report: Mapping[str, Any], paths: Sequence[Path]) -> None:
    """Write the chart to *paths*, in the format that each one's suffix names."""
    figure = Figure(figsize=(16, 10), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    _draw_goals(upper, [goal for goal in report["goals"] if goal["ratio"] is not None])
    _draw_cpu(lower, report["results"])
    figure.suptitle(f"fusecache {report['versions']['fusecache']}, {report['machine']['cpu']}, {report['finished']}")
    for path in paths:
        figure.savefig(path, dpi=120)


def _draw_goals(axes: Axes, goals: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("Requests per second, fusecache to its peer; the line is the goal")
    for place, goal in enumerate(goals):
        axes.bar(place, goal["ratio"], width=0.6, color=_MET[goal["met"]])
        axes.hlines(goal["goal"], place - 0.4, place + 0.4, colors="black", linewidth=2)
        axes.annotate(f"{goal['ratio']:.2f}", (place, goal["ratio"]), ha="center", va="bottom")
    labels = [f"{goal['workload']} to {goal['peer']}" for goal in goals]
    axes.set_xticks(range(len(goals)), labels, rotation=30, ha="right")
    axes.set_ylabel("ratio")
    axes.margins(y=0.12)


def _draw_cpu(axes: Axes, results: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title("CPU time of the serving process")
    workloads = list(dict.fromkeys(result["workload"] for result in results))
    for number, (target, color) in enumerate(_COLORS.items()):
        spent = {
            result["workload"]: result["median"]["cpu_us"]
            for result in results
            if result["target"] == target and result["median"] and result["median"]["cpu_us"] is not None
        }
        places = [
            place + (min(number, 1) - 0.5) * 0.36 for place, workload in enumerate(workloads) if workload in spent
        ]
        if places:
            axes.bar(places, list(spent.values()), width=0.34, color=color, label=target)
    axes.set_xticks(range(len(workloads)), workloads, rotation=30, ha="right")
    axes.set_ylabel("µs per request, logarithmic")
    if axes.containers:
        axes.set_yscale("log")
        axes.legend()
