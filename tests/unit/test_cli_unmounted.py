"""Commands that work without a mount: on the configuration, the plugins and the images themselves."""

import json
from pathlib import Path

import pytest

from fusecache.cli.target import holder_of, mount_or_config
from fusecache.config.load import load_config
from fusecache.config.schema import Config
from tests.support.command_line import CONFIG, fusecache, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


def test_layers_says_which_plugins_there_are_and_whether_they_load() -> None:
    (row,) = [row for row in json.loads(fusecache("layers", "--json").stdout) if row["name"] == "passthrough"]
    assert row["loads"] is True
    assert row["reason"] is None
    assert row["distribution"] == "fusecache"
    head, *lines = fusecache("layers").stdout.splitlines()
    assert head.split() == ["PLUGIN", "DISTRIBUTION", "VERSION", "LOADS"]
    assert ["passthrough", "fusecache", row["version"], "yes"] in [line.split() for line in lines]


def test_check_prints_each_images_stack(config: Path) -> None:
    (config.parent / "images" / "log").touch()
    config.write_text(CONFIG.replace('images = ["*"]', 'images = ["disk"]'))
    result = fusecache("check", config)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["disk: 0 passthrough > backend", "log: backend"]


def test_check_writes_nothing(config: Path) -> None:
    before = sorted(config.parent.rglob("*"))
    assert fusecache("check", config).exit_code == 0
    assert sorted(config.parent.rglob("*")) == before


def test_check_notes_a_pattern_that_matches_nothing_and_is_content(config: Path) -> None:
    config.write_text(CONFIG.replace('"*"', '"*", "db-*"'))
    result = fusecache("check", config)
    assert result.exit_code == 0
    assert 'note: stack[0]: no image matches "db-*"' in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("required", "then"), [("false", "open without it, but where it is dirty (ENODEV)"), ("true", "do not open")]
)
def test_check_tells_of_a_missing_plugin(config: Path, required: str, then: str) -> None:
    config.write_text(CONFIG.replace('"passthrough"', f'"nosuch"\nrequired = {required}'))
    result = fusecache("check", config)
    assert result.exit_code == 1
    image, problem = result.stdout.splitlines()
    assert image == "disk: 0 nosuch (missing) > backend"
    assert problem.startswith("problem: stack[0], layer 0: layer plugin 'nosuch' is not installed")
    assert problem.endswith(f"its images {then}")


def test_check_tells_of_an_image_that_the_control_directory_hides(config: Path) -> None:
    (config.parent / "images" / ".control").touch()
    result = fusecache("check", config, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert [image["name"] for image in report["images"]] == ["disk"]
    assert report["problems"] == ["image .control is not shown: the name is the control directory's"]


@pytest.mark.parametrize("arguments", [["flush"], ["flush", "disk"], ["flush", "disk", "--layer", "0"]], ids=" ".join)
def test_flush_works_unmounted(config: Path, arguments: list[str]) -> None:
    result = fusecache(arguments[0], config, *arguments[1:])
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("options", [[], ["--dirty", "--yes"]], ids=["clean", "dirty"])
def test_discard_works_unmounted(config: Path, options: list[str]) -> None:
    result = fusecache("discard", config, "disk", "--layer", "0", *options)
    assert (result.exit_code, result.stderr) == (0, "")


def test_an_unknown_image_or_layer_exits_1(config: Path) -> None:
    assert fusecache("flush", config, "nosuch").exit_code == 1
    assert fusecache("discard", config, "nosuch", "--layer", "0").exit_code == 1
    assert fusecache("flush", config, "disk", "--layer", "7").exit_code == 1
    assert fusecache("discard", config, "disk", "--layer", "7").exit_code == 1


def test_a_file_is_a_configuration_and_a_directory_is_not(config: Path) -> None:
    assert isinstance(mount_or_config(config), Config)


def test_records_of_mounts_that_are_gone_or_unreadable_are_passed_over(config: Path) -> None:
    records = config.parent / "state" / "mounts"
    records.mkdir(parents=True)
    for number, content in enumerate(["", "[]", '{"pid": 1}', json.dumps({"mountpoint": str(config.parent)})]):
        (records / f"{number}.json").write_text(content)
    assert holder_of(load_config(config), "disk") is None
