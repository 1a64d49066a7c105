"""``scripts/setup``, ``scripts/soak`` and ``scripts/check``: what they say, and that looking changes nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.project import ROOT


def run(script: Path | str, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a script of the checkout without a terminal or input, with *path* in front of PATH."""
    environment = {**os.environ, "PATH": f"{path}{os.environ['PATH']}"}
    command: list[str | Path] = [ROOT / "scripts" / script, *arguments]
    return subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.fixture
def fresh(tmp_path: Path) -> Path:
    """A checkout in which nothing was set up."""
    (tmp_path / "checkout" / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "checkout")
    shutil.copy(ROOT / "scripts" / "setup", tmp_path / "checkout" / "scripts")
    return tmp_path / "checkout"


@pytest.fixture
def bare_machine(tmp_path: Path) -> str:
    """A PATH on which no Debian package is installed, and where installing one leaves the file ``installed``."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, action in {"dpkg-query": "exit 1", "apt-get": f"touch {tmp_path}/installed"}.items():
        (tools / name).write_text(f"#!/bin/sh\n{action}\n")
        (tools / name).chmod(0o755)
    return f"{tools}:"


def test_check_lists_what_is_missing_and_changes_nothing(fresh: Path, bare_machine: str) -> None:
    before = sorted(fresh.rglob("*"))
    result = run(fresh / "scripts" / "setup", "--check", path=bare_machine)
    assert result.returncode == 1
    listed = result.stdout.splitlines()
    assert {"missing: Debian package libfuse3-dev", "missing: Debian package fio", "missing: .venv"} <= set(listed)
    assert sorted(fresh.rglob("*")) == before
    assert not (fresh.parent / "installed").exists()


@pytest.mark.parametrize(
    ("without", "wanted"), [([], True), (["rbd"], True), (["pmem"], False), (["rwl"], False), (["rwl", "rbd"], False)]
)
def test_libpmem_is_needed_for_the_binding_that_serves_the_rwl_layer(
    fresh: Path, bare_machine: str, without: list[str], wanted: bool
) -> None:
    arguments = [argument for part in without for argument in ("--without", part)]
    result = run(fresh / "scripts" / "setup", "--check", *arguments, path=bare_machine)
    assert ("missing: Debian package libpmem-dev" in result.stdout.splitlines()) == wanted


def test_nothing_is_missing_after_setup() -> None:
    result = run("setup", "--check")
    assert result.returncode == 0, result.stdout + result.stderr + "run scripts/setup, then this test"
    assert result.stdout == "nothing is missing\n"


@pytest.mark.parametrize("part", ["", "cache", "rwl,pmem", "RWL", "rwl pmem"])
def test_an_unknown_part_is_refused(part: str) -> None:
    result = run("setup", "--check", "--without", part)
    assert result.returncode == 2
    assert f"found '{part}', allowed: rwl pmem fabric rbd" in result.stderr


@pytest.mark.parametrize("part", ["rwl", "pmem", "fabric", "rbd"])
def test_a_part_left_out_belongs_to_the_choice(part: str) -> None:
    result = run("setup", "--check", "--without", part)
    assert (result.returncode, result.stdout) == (1, "missing: .venv that fits pyproject.toml, Python and --without\n")


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("setup", ["--without"]),
        ("setup", ["--frobnicate"]),
        ("demo", ["stop"]),
        ("check", ["everything"]),
        ("soak", ["--minutes"]),
        ("soak", ["--minutes", "0"]),
        ("soak", ["--minutes", "ten"]),
        ("soak", ["kill", "fsync"]),
        ("soak", ["--frobnicate"]),
    ],
)
def test_wrong_usage_is_told_before_anything_is_done(script: str, arguments: list[str]) -> None:
    result = run(script, *arguments)
    assert result.returncode == 2
    assert result.stderr
    assert not result.stdout


@pytest.mark.parametrize("script", ["setup", "demo", "soak", "new-layer"])
def test_help_tells_the_usage(script: str) -> None:
    result = run(script, "--help")
    assert result.returncode == 0
    assert f"scripts/{script}" in result.stdout
