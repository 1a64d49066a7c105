"""What gets installed."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

import pytest

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


def test_the_entry_point_of_the_rwl_layer_resolves() -> None:
    if find_spec("fusecache_rwl") is None:
        pytest.skip("the part rwl is left out")
    points = [(point.group, point.name) for point in distribution("fusecache-rwl").entry_points]
    assert points == [("fusecache.layers", "rwl")]
    (plugin,) = [point.load() for point in distribution("fusecache-rwl").entry_points]
    assert plugin.name == "rwl"


def test_a_pure_module_of_the_rwl_layer_loads_without_the_plugin() -> None:
    if find_spec("fusecache_rwl") is None:
        pytest.skip("the part rwl is left out")
    script = "import sys, fusecache_rwl.format; assert 'fusecache_rwl.plugin' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_binding_of_libpmem_is_there_with_its_compiled_module() -> None:
    # A build that may leave the module out does so silently. Neither skip is allowed where a run must be complete.
    pmdk = pytest.importorskip("pmdk", reason="the part pmem is left out")
    if not pmdk.available():
        pytest.skip("pmdk was built without its compiled module")


def make_wheel(source: Path, target: Path) -> tuple[str, set[str]]:
    """Build the distribution in *source*; return the wheel's name and what it holds."""
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", target, source], check=True)
    (wheel,) = target.glob("*.whl")
    return wheel.name, set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_the_core_the_passthrough_layer_and_the_licence(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    # A build leaves files beside its sources, so it gets its own.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fusecache", "layers"):
        shutil.copytree(ROOT / name, source / name)
    name, held = make_wheel(source, tmp_path)
    assert name.endswith("-py3-none-any.whl")
    for package, folder in PACKAGES.items():
        assert {f"{package}/{path.relative_to(folder)}" for path in folder.rglob("*.py")} <= held
    assert "fusecache/py.typed" in held
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert not any(name.startswith(("fusecache_rwl/", "pmdk/")) for name in held)


def test_the_wheel_of_the_rwl_layer_holds_all_of_it_and_no_binding(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "layers" / "rwl", tmp_path / "source")
    name, held = make_wheel(tmp_path / "source", tmp_path)
    assert name.endswith("-py3-none-any.whl")
    folder = ROOT / "layers" / "rwl" / "fusecache_rwl"
    modules = {f"fusecache_rwl/{path.relative_to(folder)}" for path in folder.rglob("*.py")}
    assert {name for name in held if not name.split("/")[0].endswith(".dist-info")} == {
        *modules,
        "fusecache_rwl/py.typed",
    }
    assert any(name.endswith("licenses/LICENSE") for name in held)
