"""The build variable: whether the compiled module is built, and what is left without it."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("setuptools", reason="the build needs setuptools")
pytest.importorskip("cffi", reason="the build needs cffi")

PROJECT = Path(__file__).parents[1]
COMPILED = "pmdk/_libpmem.abi3.so"


def copy_source(tmp_path: Path) -> None:
    """Make ``source``: a build leaves files beside its sources, so it gets its own."""
    leftovers = shutil.ignore_patterns("*.so", "build", "*.egg-info", "__pycache__")
    shutil.copytree(PROJECT, tmp_path / "source", ignore=leftovers)


def build(tmp_path: Path, wanted: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Make a wheel in *tmp_path* with ``FUSECACHE_WITH_PMEM`` set to *wanted*."""
    copy_source(tmp_path)
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    return subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *offline, "--wheel-dir", tmp_path, tmp_path / "source"],
        env={**os.environ, "FUSECACHE_WITH_PMEM": wanted, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def held(tmp_path: Path) -> set[str]:
    """Return what the wheel in *tmp_path* holds, and unpack it to ``installed``."""
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
        return set(archive.namelist())


USE = """
import pmdk
print(pmdk.available())
try:
    pmdk.map_file("file", 4096, create=True).close()
except ImportError as error:
    print(error)
"""


def use(tmp_path: Path) -> list[str]:
    """Use what was unpacked; return what it printed."""
    # Without site no other pmdk is in the way, nor one that is installed for development; cffi must still be found.
    backend = find_spec("_cffi_backend")
    assert backend is not None
    assert backend.origin is not None
    path = f"{tmp_path / 'installed'}:{Path(backend.origin).parent}"
    result = subprocess.run(
        [sys.executable, "-S", "-c", USE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("wanted", "environment"),
    [("off", {}), ("auto", {"CC": "false"})],
    ids=["off", "auto where nothing can be compiled"],
)
def test_without_the_compiled_module_the_import_works_and_a_map_says_what_to_do(
    tmp_path: Path, wanted: str, environment: dict[str, str]
) -> None:
    result = build(tmp_path, wanted, **environment)
    assert result.returncode == 0, result.stderr
    assert COMPILED not in held(tmp_path)
    available, error = use(tmp_path)
    assert available == "False"
    assert "install libpmem-dev" in error
    assert "FUSECACHE_WITH_PMEM=on" in error
    assert not (tmp_path / "file").exists()


def test_on_fails_the_build_where_the_module_cannot_be_compiled(tmp_path: Path) -> None:
    assert build(tmp_path, "on", CC="false").returncode != 0
    assert not list(tmp_path.glob("*.whl"))


@pytest.mark.skipif(not Path("/usr/include/libpmem.h").exists(), reason="libpmem's headers are not installed")
@pytest.mark.parametrize("wanted", ["on", "auto"])
def test_with_the_headers_the_module_is_built_once_for_all_newer_pythons(tmp_path: Path, wanted: str) -> None:
    result = build(tmp_path, wanted)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    assert {COMPILED, "pmdk/__init__.py", "pmdk/_libpmem.pyi", "pmdk/py.typed"} <= held(tmp_path)
    assert use(tmp_path) == ["True"]


def test_a_value_that_is_not_known_is_refused(tmp_path: Path) -> None:
    result = build(tmp_path, "yes")
    assert result.returncode != 0
    assert "FUSECACHE_WITH_PMEM: found 'yes', allowed: on, off, auto" in result.stdout + result.stderr


def test_the_source_distribution_holds_what_the_build_needs(tmp_path: Path) -> None:
    copy_source(tmp_path)
    script = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    environment = {**os.environ, "FUSECACHE_WITH_PMEM": "off"}
    command = [sys.executable, "-c", script]
    subprocess.run(command, cwd=tmp_path / "source", env=environment, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
    assert {"setup.py", "build_libpmem.py", "pmdk/__init__.py", "pmdk/_libpmem.pyi", "README.md", "LICENSE"} <= names
