"""Who may import whom."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.project import ROOT, name_of, python_files


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the absolute name of every module that *path* imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name_of(path)}:{node.lineno}: a relative import"
            assert node.module is not None
            yield node.module


def test_the_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    # A layer that was not installed keeps to the rules as well.
    environment = {**os.environ, "PYTHONPATH": "layers/rwl"}
    result = subprocess.run(
        [lint, "--no-cache"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_contract_imports_the_standard_library_and_trio_only() -> None:
    strange = [
        f"{name_of(path)} imports {module}"
        for path in python_files("fusecache/api")
        for module in imported_modules(path)
        if module.split(".")[0] not in {*sys.stdlib_module_names, "trio"} and not module.startswith("fusecache.api")
    ]
    assert not strange


def test_the_rwl_layer_imports_what_its_distribution_depends_on_only() -> None:
    allowed = {*sys.stdlib_module_names, "crc32c", "fusecache", "fusecache_rwl", "pmdk", "pydantic", "trio"}
    strange = [
        f"{name_of(path)} imports {module}"
        for path in python_files("layers/rwl/fusecache_rwl")
        for module in imported_modules(path)
        if module.split(".")[0] not in allowed
    ]
    assert not strange


def test_the_binding_of_libpmem_knows_nothing_of_fusecache() -> None:
    allowed = {*sys.stdlib_module_names, "cffi", "pmdk", "setuptools"}
    strange = [
        f"{name_of(path)} imports {module}"
        for path in python_files("layers/rwl/bindings/pmdk-python")
        for module in imported_modules(path)
        if module.split(".")[0] not in (allowed | {"pytest"} if "tests" in path.parts else allowed)
    ]
    assert not strange


@pytest.mark.parametrize(
    ("module", "place"),
    [
        ("pyfuse3", "fusecache/fuse/"),
        ("rados", "fusecache/backends/rbd/"),
        ("rbd", "fusecache/backends/rbd/"),
        ("pmdk", "layers/rwl/"),
    ],
)
def test_a_binding_is_imported_in_one_package_only(module: str, place: str) -> None:
    importers = {
        name_of(path)
        for path in python_files("fusecache", "layers")
        if any(imported.split(".")[0] == module for imported in imported_modules(path))
    }
    assert importers
    assert {name for name in importers if not name.startswith(place)} == set()


def test_a_layer_imports_nothing_of_the_core_but_its_contract() -> None:
    strange = []
    for path in python_files("layers"):
        allowed = ["fusecache.api"] + (["fusecache.testing"] if "tests" in path.parts else [])
        for module in imported_modules(path):
            of_core = module.split(".")[0] == "fusecache"
            if of_core and not any(f"{module}.".startswith(f"{prefix}.") for prefix in allowed):
                strange.append(f"{name_of(path)} imports {module}")
    assert not strange
