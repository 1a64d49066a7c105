"""Running fio.

Owns its command line and the meaning of its report. It must not know what serves what it uses.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.results import Sample
from bench.workloads import Workload

_SLACK: Final = 60.0
"""Seconds beyond its time after which fio counts as hanging."""


class FioFailed(Exception):
    """fio did not run, or ended with an error."""


def command(load: Sequence[str], workload: Workload, *, seconds: float, seed: int) -> Sequence[str]:
    """Return the command line of one measurement; *load* says what fio uses, and how.

    Args:
        seconds: that it takes, unless it loops; 0 where it ends with the requests of ``workload.drained``, each to
            another block.
    """
    looped = [f"--loops={workload.loops}"]
    timed = ["--norandommap", "--time_based", f"--runtime={seconds * 1000:.0f}ms"]
    counted = [f"--io_size={workload.drained * workload.block}"]
    return [
        *("fio", "--name=bench", "--output-format=json", *load),
        *(f"--rw={workload.access}", f"--bs={workload.block}", f"--iodepth={workload.depth}"),
        *(["--fsync=1"] if workload.sync else []),
        *([f"--ramp_time={workload.ramp * 1000:.0f}ms"] if workload.ramp else []),
        *(f"--randseed={seed}", *(looped if workload.loops else timed if seconds else counted)),
    ]


def on_file(file: Path, cpu: int | None = None) -> Sequence[str]:
    """Return what makes fio use *file* with direct I/O, and run on one *cpu* only; None for any."""
    # fio must not drop the pages that both sides are to read from.
    keep = ("--invalidate=0", "--fallocate=none", "--allow_file_create=0")
    pin = [] if cpu is None else [f"--cpus_allowed={cpu}"]
    return [f"--filename={file}", "--ioengine=libaio", "--direct=1", *keep, *pin]


def on_rbd(pool: str, image: str) -> Sequence[str]:
    """Return what makes fio use an image through librbd, of the cluster that ``CEPH_CONF`` names."""
    return ["--ioengine=rbd", "--clientname=admin", f"--pool={pool}", f"--rbdname={image}"]


def measure(
    load: Sequence[str], workload: Workload, *, seconds: float, seed: int, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run a workload on *load* and return fio's report on its job.

    Args:
        environment: added to this process's.

    Raises:
        FioFailed: see the message.
    """
    words = command(load, workload, seconds=seconds, seed=seed)
    around = {**os.environ, **(environment or {})}
    try:
        result = subprocess.run(
            words, capture_output=True, text=True, timeout=seconds + workload.ramp + _SLACK, check=False, env=around
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FioFailed(str(error)) from error
    if result.returncode:
        raise FioFailed(f"fio ended with {result.returncode}: {result.stderr.strip() or result.stdout.strip()}")
    job: dict[str, Any] = json.loads(result.stdout[result.stdout.index("{") :])["jobs"][0]
    return job


def sample_of(job: dict[str, Any], cpu_seconds: float | None) -> Sample:
    """Return the figures of a job whose server spent *cpu_seconds* on it; None where none serves."""
    side = job["read"] if job["read"]["total_ios"] else job["write"]
    percentile = side["clat_ns"]["percentile"]
    return Sample(
        iops=side["iops"],
        mib_per_second=side["bw_bytes"] / (1 << 20),
        latency_p50_us=percentile["50.000000"] / 1000,
        latency_p99_us=percentile["99.000000"] / 1000,
        cpu_us=cpu_seconds * 1e6 / side["total_ios"] if cpu_seconds is not None else None,
    )
