"""``scripts/new-layer``: what it writes installs, and passes its tests at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.project import ROOT


def new_layer(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run ``scripts/new-layer``."""
    command: list[str | Path] = [sys.executable, ROOT / "scripts" / "new-layer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_new_layer_installs_and_passes_its_tests(tmp_path: Path) -> None:
    layer, installed = tmp_path / "layer", tmp_path / "installed"
    result = new_layer("read_ahead", layer)
    assert result.returncode == 0, result.stderr

    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", installed, layer], check=True)

    environment = {**os.environ, "PYTHONPATH": f"{installed}:{ROOT}"}
    pytest_ = [sys.executable, "-m", "pytest", "--verbose", "-p", "no:cacheprovider"]
    tests = subprocess.run(pytest_, cwd=layer, env=environment, capture_output=True, text=True, check=False)
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert " passed" in tests.stdout
    assert "skipped" not in tests.stdout


def test_a_new_layer_keeps_to_the_style_of_the_project(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    assert new_layer("read_ahead", layer).returncode == 0
    tools = Path(sys.executable).parent
    config = ROOT / "pyproject.toml"
    for command in (["ruff", "format", "--check"], ["ruff", "check"]):
        linted: list[str | Path] = [tools / command[0], *command[1:], "--config", config, layer]
        result = subprocess.run(linted, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    typed: list[str | Path] = [tools / "mypy", "--config-file", config, layer / "fusecache_read_ahead"]
    result = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "name", ["", "Cache", "1st", "read-ahead", "read__ahead", "_a", "a_", "a/b", "../a", "class", "ä"]
)
def test_a_bad_name_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    result = new_layer(name, tmp_path / "layer")
    assert result.returncode == 2
    assert f"found {name!r}, allowed: lower-case words" in result.stderr
    assert not (tmp_path / "layer").exists()


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    result = new_layer("read_ahead", tmp_path / "layer")
    assert result.returncode == 1
    assert "exists already" in result.stderr
    assert not any((tmp_path / "layer").iterdir())


def test_the_name_of_a_layer_of_the_project_is_taken(tmp_path: Path) -> None:
    result = new_layer("passthrough", tmp_path / "layer")
    assert result.returncode == 1
    assert "layers/passthrough exists already" in result.stderr
    assert not (tmp_path / "layer").exists()
