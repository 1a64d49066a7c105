"""Plugins are found without being imported, and refused with the reason where they do not fit."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fusecache.api.errors import PluginMissing
from fusecache.stack.discover import InstalledPlugin, installed, load

Install = Callable[..., None]

PLUGIN = """
from dataclasses import dataclass
from fusecache.api import LayerPlugin

@dataclass
class Config:
    pass

class Plugin(LayerPlugin):
    name = "{name}"
    api_version = {api_version}
    config_model = {config_model}

    def open(self, context, below):
        raise NotImplementedError

plugin = Plugin()
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with one plugin, whose module holds *code*, for the length of the test."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(
        name: str,
        code: str | None = None,
        *,
        distribution: str | None = None,
        attribute: str = "plugin",
        api_version: object = 1,
        config_model: str = "Config",
        own_name: str | None = None,
    ) -> None:
        distribution = distribution or f"fusecache-{name}"
        module = f"{distribution.replace('-', '_')}_module"
        info = tmp_path / f"{distribution.replace('-', '_')}-2.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.5\n")
        (info / "entry_points.txt").write_text(f"[fusecache.layers]\n{name} = {module}:{attribute}\n")
        values = {"name": own_name or name, "api_version": api_version, "config_model": config_model}
        (tmp_path / f"{module}.py").write_text(PLUGIN.format(**values) if code is None else code)

    return install


def test_a_plugin_is_listed_without_importing_it(install: Install) -> None:
    install("listed", "raise SystemExit('imported')")
    assert InstalledPlugin("listed", "fusecache-listed", "2.5") in installed()
    assert "fusecache_listed_module" not in sys.modules


def test_plugins_are_listed_by_name(install: Install) -> None:
    for name in ("zebra", "ant", "mole"):
        install(name)
    names = [plugin.name for plugin in installed()]
    assert names == sorted(names)
    assert {"ant", "mole", "zebra"} <= set(names)


def test_only_the_named_plugin_is_imported(install: Install) -> None:
    install("wanted")
    install("unwanted", "raise AssertionError('imported')")
    plugin = load("wanted")
    assert plugin.name == "wanted"
    assert load("wanted") is plugin


def test_one_that_is_not_installed_is_named_with_those_that_are(install: Install) -> None:
    install("present")
    with pytest.raises(PluginMissing, match=r"'absent' is not installed; installed are: .*present"):
        load("absent")


@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("broken1", "import no_such_library", "No module named 'no_such_library'"),
        ("broken2", "1 / 0", "ZeroDivisionError: division by zero"),
        ("broken3", "raise SystemExit('no pmem here')", "SystemExit: no pmem here"),
        ("broken4", "other = 1", "AttributeError"),
        ("broken5", "def plugin(:", "SyntaxError"),
    ],
)
def test_one_that_does_not_import_is_refused_with_the_cause(
    install: Install, name: str, code: str, reason: str
) -> None:
    install(name, code)
    with pytest.raises(PluginMissing, match=f"'{name}' does not load: .*{reason}") as caught:
        load(name)
    assert caught.value.__cause__ is not None
    assert type(caught.value.__cause__).__name__ in str(caught.value)


def test_a_failure_is_tried_again(install: Install, tmp_path: Path) -> None:
    with pytest.raises(PluginMissing):
        load("late")
    install("late")
    assert load("late").name == "late"


@pytest.mark.parametrize(
    ("name", "given", "mismatch"),
    [
        ("astring", {"code": "plugin = 'text'"}, "found 'text', allowed: an instance of LayerPlugin"),
        ("aclass", {"attribute": "Plugin"}, "allowed: an instance of LayerPlugin"),
        ("older", {"api_version": 0}, "found api_version 0, allowed: 1"),
        ("newer", {"api_version": 2}, "found api_version 2, allowed: 1"),
        ("renamed", {"own_name": "another"}, "found the name 'another', allowed: the entry point's, 'renamed'"),
        ("nomodel", {"config_model": "None"}, "found config_model None, allowed: a dataclass or a pydantic model"),
        ("adict", {"config_model": "dict"}, "found config_model <class 'dict'>"),
    ],
)
def test_one_that_does_not_fit_is_refused_with_the_mismatch(
    install: Install, name: str, given: dict[str, object], mismatch: str
) -> None:
    install(name, **given)
    with pytest.raises(PluginMissing, match=f"'{name}' of fusecache-{name} 2.5 does not fit: .*{mismatch}"):
        load(name)


@pytest.mark.parametrize("declaration", ["name", "api_version", "config_model"])
def test_one_that_declares_too_little_is_refused(install: Install, declaration: str) -> None:
    name = f"without{declaration.replace('_', '')}"
    lines = PLUGIN.format(name=name, api_version=1, config_model="Config").splitlines()
    install(name, "\n".join(line for line in lines if not line.startswith(f"    {declaration} =")))
    with pytest.raises(PluginMissing, match=r"does not fit: .*None"):
        load(name)


def test_a_name_that_two_distributions_claim_is_refused(install: Install) -> None:
    install("claimed", distribution="one-claimant")
    install("claimed", distribution="two-claimant")
    claims = [plugin.distribution for plugin in installed() if plugin.name == "claimed"]
    assert claims == ["one-claimant", "two-claimant"]
    with pytest.raises(PluginMissing, match=r"claimed by one-claimant 2\.5 and two-claimant 2\.5"):
        load("claimed")


def test_discovery_itself_imports_no_layer() -> None:
    code = "import sys, fusecache.stack.discover as d; d.installed(); assert 'fusecache_passthrough' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
