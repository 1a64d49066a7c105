"""``scripts/bench``: the command line of the benchmark.

Owns its options, the length of a run, and the files of the report.
"""

import argparse
import json
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from bench import chart, fio
from bench.costs import Cost, Spans, costs
from bench.machine import machine, versions
from bench.report import markdown
from bench.results import Result, by_place, judged
from bench.session import Measured, Plan, run, say
from bench.targets import TargetFailed
from bench.workloads import (
    COST,
    MEANING,
    NAMES,
    PMEM,
    SSD,
    TIMED,
    TIMED_ON_SSD,
    WORKLOADS,
    Goal,
    Workload,
    chosen,
)

FORMAT: Final = 2
LONG: Final = Plan(rounds=5, seconds=1.0)
QUICK: Final = Plan(rounds=3, seconds=0.3, quick=True, mebibytes=128)


def main() -> int:
    """Run the command; return its exit code: 0 where it measured, whatever the goals say."""
    arguments = _parsed(sys.argv[1:])
    # As Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    plan = QUICK if arguments.quick else LONG
    goals, workloads = chosen(arguments.only)
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="fusecache-bench-") as name:
            about = machine(Path(name))
            measured = run(plan, workloads, Path(name))
    except (fio.FioFailed, TargetFailed, subprocess.CalledProcessError, OSError) as error:
        say(f"scripts/bench: {error}")
        return 1
    report = _report(plan, about, goals, workloads, measured)
    _write(report, arguments.compare, arguments.output)
    missed = sum(not goal["met"] for goal in report["goals"])
    print(f"{len(goals) - missed} of {len(goals)} goals met; see {arguments.output / 'bench.md'}")
    return 0


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures fusecache and whichever peers this machine has, taking turns, and writes bench.json, "
        "bench.md, bench.png and bench.svg. The files that are measured lie below TMPDIR.",
        epilog="Exit codes: 0 measured, also where goals are missed; 1 failed; 2 wrong usage.",
    )
    parser.add_argument(
        "--quick", action="store_true", help="some minutes, less certain; B and L only where a goal needs them"
    )
    parser.add_argument("--only", metavar="NAME", choices=NAMES, help=f"only one goal: {', '.join(NAMES)}")
    parser.add_argument("--compare", metavar="OLD.json", type=_older, help="say what has changed since")
    parser.add_argument(
        "--output", metavar="DIR", type=_directory, required=True, help="where to write; made if need be"
    )
    return parser.parse_args(words)


def _directory(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: found a file, allowed: a directory, or what does not exist yet")
    return path


def _older(text: str) -> Mapping[str, Any]:
    """Return the report at a path."""
    try:
        report = json.loads(Path(text).read_text())
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error
    if not isinstance(report, dict) or report.get("format") != FORMAT:
        raise argparse.ArgumentTypeError(f"{text}: found something else, allowed: a bench.json of format {FORMAT}")
    return report


def _report(
    plan: Plan, about: Mapping[str, Any], goals: Sequence[Goal], workloads: Sequence[Workload], measured: Measured
) -> dict[str, Any]:
    results = by_place(measured.results)
    load = fio.command(["..."], workloads[0], seconds=plan.seconds, seed=1)
    return {
        "format": FORMAT,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "machine": about,
        "versions": versions(),
        "targets": [
            {"place": place, "name": name, "what": MEANING[place, name], "options": text}
            for (place, name), text in measured.options.items()
        ],
        "fio": shlex.join(load),
        "results": [result.as_json() for result in measured.results],
        "goals": [asdict(judged(goal, results)) for goal in goals],
        "hops": [asdict(hop) for hop in measured.hops],
        "costs": [asdict(cost) for cost in _costs(measured.spans, results)],
    }


def _costs(spans: Mapping[str, Spans], results: Mapping[tuple[str, str], Result]) -> Iterator[Cost]:
    """Yield what each hop costs, of each daemon with stopwatches."""
    (workload,) = (workload.name for workload in WORKLOADS if workload.place == COST)
    for media, name in ((PMEM, TIMED), (SSD, TIMED_ON_SSD)):
        if name in spans:
            yield from costs(media, spans[name], results[workload, name].median_of("cpu_us"))


def _write(report: Mapping[str, Any], old: Mapping[str, Any] | None, directory: Path) -> None:
    (directory / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    (directory / "bench.md").write_text(markdown(report, old))
    chart.draw(report, [directory / "bench.png", directory / "bench.svg"])


if __name__ == "__main__":
    sys.exit(main())
