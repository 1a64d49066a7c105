"""The rules of a test run do what they say."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import leftovers, skips


def skipped(reason: str) -> pytest.TestReport:
    """Return the report of a test that was skipped."""
    return pytest.TestReport("a test", ("a.py", 1, "a test"), {}, "skipped", ("a.py", 1, f"Skipped: {reason}"), "call")


def test_a_skip_that_is_not_listed_fails() -> None:
    report = skipped("no fish today")
    skips.refuse(report, [re.compile("no fish")])
    assert report.failed
    assert "no fish today" in str(report.longrepr)


def test_a_listed_skip_stays_a_skip() -> None:
    report = skipped("no fish today")
    skips.refuse(report, [re.compile("no (fish|meat) .*")])
    assert report.skipped


def test_an_expected_failure_is_no_skip() -> None:
    report = skipped("no fish today")
    report.wasxfail = "reason: fish"
    skips.refuse(report, [])
    assert report.skipped


def test_a_listed_skip_needs_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "skips.txt"
    path.write_text("# An explanation.\n\nno fish\n")
    with pytest.raises(ValueError, match="3: 'no fish' has no comment above it"):
        skips.load(path)
    path.write_text("# An explanation.\nno fish\n")
    assert skips.load(path) == [re.compile("no fish")]


def test_a_process_left_behind_is_found_and_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(leftovers, "PATIENCE", 0.0)
    environment = {**os.environ, leftovers.RUN_VARIABLE: str(tmp_path)}
    with subprocess.Popen(["cat"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        # An answer shows that the program runs: in the middle of exec() a process has no environment to be known by.
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        assert leftovers.clear(str(tmp_path), tmp_path) == [f"process {process.pid}: cat"]
        assert process.wait() == -9
    assert leftovers.clear(str(tmp_path), tmp_path) == []


def test_a_mount_left_behind_is_found_by_type_and_place() -> None:
    mountinfo = r"""
    36 35 98:0 / /tmp/run/a\040b rw,noatime shared:1 master:2 - fuse.fusecache images rw
    37 35 98:1 / /tmp/run/other rw - fuse.sshfs images rw
    38 35 98:2 / /tmp/elsewhere rw - fuse.fusecache images rw
    """
    assert list(leftovers.mounts_below(Path("/tmp/run"), mountinfo.strip())) == ["/tmp/run/a b"]
