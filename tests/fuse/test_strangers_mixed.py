"""Several programs at once use one image in every way; nothing they wrote is lost, and nothing old comes back."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support.mounts import Mount, Place
from tests.support.project import ROOT

SIZE = (8 << 20) + 513
PROGRAMS = 6
PATIENCE = 60.0


def run_programs(file: Path, reference: Path, seed: int, seconds: float) -> int:
    """Run the programs to their end; return how many requests they made."""
    command = [sys.executable, "-m", "tests.support.mixed_load", str(file), str(reference), str(seed)]
    programs = [
        subprocess.Popen([*command, str(number), str(PROGRAMS), str(seconds)], cwd=ROOT, stdout=subprocess.PIPE)
        for number in range(PROGRAMS)
    ]
    try:
        said = [program.communicate(timeout=seconds + PATIENCE)[0] for program in programs]
    finally:
        for program in programs:
            program.kill()
            program.wait()
    assert [program.returncode for program in programs] == [0] * PROGRAMS
    return sum(int(each) for each in said)


def read_direct(path: Path) -> bytes:
    """Return what is read past the kernel's page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    with os.fdopen(fd, "rb", buffering=0) as file:
        return file.read()


def test_programs_that_mix_every_kind_of_access_read_what_they_wrote(
    tmp_path: Path, place: Place, mounted: Callable[..., Mount], seed: int, soak_seconds: float
) -> None:
    stored = place.image("disk", size=SIZE)
    mount = mounted()
    disk = mount.path / "disk"
    reference = tmp_path / "reference"
    reference.write_bytes(bytes(SIZE))
    requests = run_programs(disk, reference, seed, soak_seconds)
    assert requests > 100
    expected = reference.read_bytes()
    assert read_direct(disk) == expected
    assert disk.read_bytes() == expected
    mount.unmount()
    assert stored.read_bytes() == expected
