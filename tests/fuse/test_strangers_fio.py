"""fio writes in many ways and verifies what it reads back, through the mount and then in the backend's own file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.mounts import Mount, Place
from tests.support.programs import allocated, attempt

MIB = 1 << 20
SIZE = 32 * MIB

WAYS = {
    "libaio-direct-depth-16": ["--ioengine=libaio", "--direct=1", "--iodepth=16", "--bs=4k"],
    "libaio-direct-mixed-sizes": ["--ioengine=libaio", "--direct=1", "--iodepth=16", "--bsrange=512-64k"],
    "psync-buffered": ["--ioengine=psync", "--bs=4k"],
    "psync-direct": ["--ioengine=psync", "--direct=1", "--bs=4k"],
    "psync-direct-unaligned": ["--ioengine=psync", "--direct=1", "--bsrange=512-64k", "--bs_unaligned=1"],
    "psync-buffered-unaligned": ["--ioengine=psync", "--bsrange=512-64k", "--bs_unaligned=1"],
    "psync-synchronous": ["--ioengine=psync", "--sync=1", "--bs=64k"],
    "psync-fsync": ["--ioengine=psync", "--fsync=64", "--bs=16k"],
    "mmap": ["--ioengine=mmap", "--bs=4k"],
    "libaio-direct-megabytes": ["--ioengine=libaio", "--direct=1", "--iodepth=4", "--bs=1m"],
}
SEVERAL = {
    "libaio-direct": ["--ioengine=libaio", "--direct=1", "--iodepth=8", "--bs=4k"],
    "psync-direct": ["--ioengine=psync", "--direct=1", "--bsrange=512-64k"],
    "psync-buffered": ["--ioengine=psync", "--bs=16k"],
}
IN_THE_BACKEND = ["--verify_only=1", "--direct=0", "--invalidate=0"]
"""Checks what an earlier run wrote; the backend's file system may ask more alignment of direct I/O than we do."""


def fio(*options: str) -> list[dict[str, Any]]:
    """Run fio, which must succeed; return its report on each job."""
    result = attempt(
        "fio", "--output-format=json", "--group_reporting=0", "--fallocate=none", "--allow_file_create=0", *options
    )
    report = result.stdout[result.stdout.find("{") :]
    assert result.returncode == 0, result.stdout + result.stderr
    jobs: list[dict[str, Any]] = json.loads(report)["jobs"]
    assert [job["error"] for job in jobs] == [0] * len(jobs)
    return jobs


def verifying(file: Path, seed: int, *options: str) -> list[dict[str, Any]]:
    """Run a workload of random writes, each of which carries a checksum."""
    return fio(
        "--name=strangers",
        f"--filename={file}",
        "--rw=randwrite",
        f"--randseed={seed}",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        *options,
    )


@pytest.mark.parametrize("way", WAYS)
def test_fio_finds_what_it_wrote(way: str, place: Place, mounted: Callable[..., Mount], seed: int) -> None:
    stored = place.image("disk", size=SIZE)
    mount = mounted()
    options = [*WAYS[way], f"--size={SIZE}"]
    (job,) = verifying(mount.path / "disk", seed, *options)
    assert job["read"]["io_bytes"] == job["write"]["io_bytes"] > SIZE * 0.9
    mount.unmount()
    (job,) = verifying(stored, seed, *options, *IN_THE_BACKEND)
    assert job["read"]["io_bytes"] > SIZE * 0.9


@pytest.mark.parametrize("way", SEVERAL)
def test_four_jobs_of_fio_find_what_they_wrote(
    way: str, place: Place, mounted: Callable[..., Mount], seed: int
) -> None:
    stored = place.image("disk", size=SIZE)
    mount = mounted()
    share = SIZE // 4
    options = [*SEVERAL[way], "--numjobs=4", f"--size={share}", f"--offset_increment={share}"]
    jobs = verifying(mount.path / "disk", seed, *options)
    assert len(jobs) == 4
    assert all(job["read"]["io_bytes"] == job["write"]["io_bytes"] > share * 0.9 for job in jobs)
    mount.unmount()
    assert len(verifying(stored, seed, *options, *IN_THE_BACKEND)) == 4


def test_fio_trims_one_half_while_it_verifies_the_other(place: Place, mounted: Callable[..., Mount], seed: int) -> None:
    stored = place.image("disk", b"\xff" * SIZE)
    file = mounted().path / "disk"
    half = SIZE // 2
    fio(
        f"--filename={file}",
        f"--randseed={seed}",
        f"--size={half}",
        *("--name=trim", "--ioengine=falloc", "--rw=randtrim", "--bs=64k", f"--offset={half}"),
        *("--name=write", "--ioengine=libaio", "--direct=1", "--iodepth=16", "--rw=randwrite", "--bs=4k"),
        *("--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"),
    )
    assert file.read_bytes()[half:] == bytes(half)
    # A file system may count some blocks of its own.
    assert half <= allocated(stored) < half + MIB
