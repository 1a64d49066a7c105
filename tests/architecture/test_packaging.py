"""What gets installed."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from tests.support.project import ROOT

PACKAGES = {"fusecache": ROOT / "fusecache", "fusecache_passthrough": ROOT / "layers/passthrough/fusecache_passthrough"}


def test_every_package_of_the_core_is_listed_for_installation() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    there = {
        ".".join([name, *init.parent.relative_to(folder).parts])
        for name, folder in PACKAGES.items()
        for init in folder.rglob("__init__.py")
    }
    assert set(listed) == there


def test_every_installed_entry_point_resolves() -> None:
    names = set()
    for entry_point in distribution("fusecache").entry_points:
        assert entry_point.load() is not None, entry_point
        names.add((entry_point.group, entry_point.name))
    assert names == {
        ("console_scripts", "fusecache"),
        ("console_scripts", "mount.fusecache"),
        ("fusecache.layers", "passthrough"),
    }


def test_the_wheel_holds_the_core_the_passthrough_layer_and_the_licence(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    # A build leaves files beside its sources, so it gets its own.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fusecache", "layers"):
        shutil.copytree(ROOT / name, source / name)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", tmp_path, source], check=True)

    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for name, folder in PACKAGES.items():
        assert {f"{name}/{path.relative_to(folder)}" for path in folder.rglob("*.py")} <= held
    assert "fusecache/py.typed" in held
    assert any(name.endswith("licenses/LICENSE") for name in held)
