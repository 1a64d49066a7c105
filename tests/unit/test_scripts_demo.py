"""``scripts/demo``: shows a working mount, and leaves nothing behind."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.project import ROOT

DEMO = ROOT / "demo"


def demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``scripts/demo`` without a terminal or input."""
    command: list[str | Path] = [ROOT / "scripts" / "demo", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=100)


def status_of_git() -> str:
    """Return what git sees as changed, or nothing where this is no git checkout."""
    command: list[str | Path] = ["git", "-C", ROOT, "status", "--porcelain", "--untracked-files=all"]
    return str(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


@pytest.fixture
def no_demo() -> Iterator[None]:
    """A checkout without a demo, before and after."""
    assert not DEMO.exists(), "the demo of this checkout is in use; end it with scripts/demo --stop"
    yield
    demo("--stop")


@pytest.mark.usefixtures("no_demo")
def test_the_demo_shows_a_mount_and_leaves_nothing_behind() -> None:
    before = status_of_git()

    first = demo()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "$ ls -lh demo/mnt" in first.stdout
    # Read twice: through the mount, and after the flush in the backend.
    assert first.stdout.count("\nwritten through the mount\n") == 2
    assert "\nidle\n" in first.stdout
    daemon = json.loads((DEMO / "mnt/.control/status.json").read_text())["pid"]

    for _ in range(2):
        listing = subprocess.run(["ls", "-R", DEMO / "mnt"], capture_output=True, text=True, check=False)
        assert (listing.returncode, listing.stderr) == (0, "")

    second = demo()
    assert second.returncode == 0, second.stdout + second.stderr
    assert "mounted already" in second.stdout
    assert "web.img" in second.stdout
    assert json.loads((DEMO / "mnt/.control/status.json").read_text())["pid"] == daemon

    stopped = demo("--stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert not DEMO.exists()
    assert f" {DEMO}/mnt " not in Path("/proc/self/mountinfo").read_text()
    assert not Path(f"/proc/{daemon}").exists()
    assert status_of_git() == before


@pytest.mark.usefixtures("no_demo")
def test_stopping_a_demo_that_does_not_run_is_fine() -> None:
    result = demo("--stop")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
