"""``fusecache inspect``: whose file it is, and how what the plugin tells is shown."""

import json
from pathlib import Path
from typing import Any

import pytest

from fusecache.api import Inspection
from fusecache.api.errors import CorruptState, PluginMissing
from fusecache.stack import discover
from tests.support.command_line import fusecache
from tests.support.stacks import TellingPlugin


class InspectingPlugin(TellingPlugin):
    """Tells what a test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.result: Inspection | Exception = Inspection("a pool", {})
        self.asked: list[tuple[Path, bool]] = []

    def inspect(self, path: Path, *, verify: bool) -> Inspection:
        self.asked.append((path, verify))
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> InspectingPlugin:
    made = InspectingPlugin()

    def load(name: str) -> Any:
        if name == "telling":
            return made
        raise PluginMissing(f"layer plugin {name!r} is not installed")

    monkeypatch.setattr(discover, "load", load)
    return made


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "telling.some.image.0.pool"
    path.touch()
    return path


FOUND = Inspection(
    "a pool of\nlayer 0",
    {"state": "dirty", "in_use_by": None, "log": {"used_bytes": 7, "torn": False}},
    picture=["##..", ".."],
    problems=["record 7: its data have a wrong checksum"],
)


def test_what_the_plugin_tells_is_shown_and_a_problem_is_exit_1(plugin: InspectingPlugin, pool: Path) -> None:
    plugin.result = FOUND
    result = fusecache("inspect", pool, "--verify")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "a pool of\\nlayer 0",
        "  state:     dirty",
        "  in_use_by: -",
        "  log:",
        "    used_bytes: 7",
        "    torn:       no",
        "",
        "##..",
        "..",
        "problem: record 7: its data have a wrong checksum",
    ]
    assert plugin.asked == [(pool, True)]


def test_json_has_all_of_it(plugin: InspectingPlugin, pool: Path) -> None:
    plugin.result = FOUND
    result = fusecache("inspect", pool, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {
        "title": FOUND.title,
        "facts": {"state": "dirty", "in_use_by": None, "log": {"used_bytes": 7, "torn": False}},
        "picture": ["##..", ".."],
        "problems": ["record 7: its data have a wrong checksum"],
    }


def test_a_good_file_is_exit_0(plugin: InspectingPlugin, pool: Path) -> None:
    result = fusecache("inspect", pool)
    assert (result.exit_code, result.stdout) == (0, "a pool\n")
    assert plugin.asked == [(pool, False)]


def test_a_file_that_means_nothing_to_its_plugin_is_exit_1(plugin: InspectingPlugin, pool: Path) -> None:
    plugin.result = CorruptState("the pool has no superblock")
    result = fusecache("inspect", pool)
    assert (result.exit_code, result.stderr) == (1, "fusecache: the pool has no superblock\n")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nosuch.image.0.pool", "layer plugin 'nosuch' is not installed"),
        ("pool", "found 'pool', allowed: a pool file"),
        (".pool", "found '.pool', allowed: a pool file"),
    ],
)
def test_a_file_that_is_nobodys_is_exit_1(plugin: InspectingPlugin, tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).touch()
    result = fusecache("inspect", tmp_path / name)
    assert result.exit_code == 1
    assert reason in result.stderr


def test_a_file_that_is_not_there_is_wrong_usage(plugin: InspectingPlugin, tmp_path: Path) -> None:
    assert fusecache("inspect", tmp_path / "telling.0.pool").exit_code == 2
    assert fusecache("inspect", tmp_path).exit_code == 2
    assert fusecache("inspect").exit_code == 2


def test_a_plugin_that_cannot_inspect_says_so(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discover, "load", lambda name: TellingPlugin())
    result = fusecache("inspect", pool)
    assert result.exit_code == 1
    assert "'telling'" in result.stderr
