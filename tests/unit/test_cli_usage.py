"""Exit codes and messages of the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fusecache.api.errors import FusecacheError, ImageBusy, LayerDirty
from fusecache.cli.failure import failure_of
from fusecache.cli.main import VERBS
from fusecache.config.load import ConfigError
from tests.support.command_line import CONFIG, fusecache, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    result = fusecache(verb, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {verb} ")
    assert verb in fusecache("--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["check"],
        ["mount", "only-a-config"],
        ["unmount"],
        ["flush"],
        ["flush", "place", "--layer", "0"],
        ["flush", "place", "image", "--layer", "-1"],
        ["discard", "place", "image"],
        ["discard", "place", "image", "--layer", "0", "--torn"],
        ["events"],
        ["status", "--colour"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    result = fusecache(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


@pytest.mark.parametrize(
    "arguments",
    [["check"], ["mount", "-f"], ["mount"], ["flush"], ["discard", "--layer", "0"]],
    ids=" ".join,
)
@pytest.mark.parametrize("content", [None, "a =", "[mount]\nspim = 1\nmode = 6\n"], ids=["missing", "no TOML", "wrong"])
def test_a_wrong_config_exits_2_and_tells_every_mistake(
    arguments: list[str], content: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "fusecache.toml"
    if content is not None:
        file.write_text(content)
    operand = {"mount": [str(tmp_path / "mnt")], "discard": ["image"]}.get(arguments[0], [])
    result = fusecache(arguments[0], file, *operand, *arguments[1:])
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert len(lines) == (3 if content and "spim" in content else 1)
    assert all(line.startswith(f"fusecache: {file}: ") for line in lines)
    assert {path.name for path in tmp_path.iterdir()} <= {"fusecache.toml"}


def test_wrong_options_of_a_layer_exit_2(config: Path, tmp_path: Path) -> None:
    config.write_text(CONFIG + 'sise = "1MiB"\n')
    (tmp_path / "mnt").mkdir()
    for result in (fusecache("mount", config, tmp_path / "mnt"), fusecache("check", config)):
        assert result.exit_code == 2
        assert f'{config}: stack[0].layer[0].sise: found unknown key "sise"' in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["unmount"], ["status"], ["status", "image"], ["events"], ["flush"], ["discard", "image", "--layer", "0"]],
    ids=" ".join,
)
def test_a_directory_that_is_no_mount_exits_1(arguments: list[str], tmp_path: Path) -> None:
    result = fusecache(arguments[0], tmp_path, *arguments[1:])
    assert result.exit_code == 1
    assert result.stderr == (
        f"fusecache: {tmp_path}: found nothing mounted, allowed: the mountpoint of a fusecache mount\n"
    )


def test_a_mount_of_another_kind_is_refused_by_its_type() -> None:
    result = fusecache("unmount", "/proc")
    assert result.exit_code == 1
    assert "found a mount of type proc" in result.stderr


def test_mounting_over_files_exits_1_and_mounts_nothing(config: Path) -> None:
    result = fusecache("mount", config, config.parent)
    assert result.exit_code == 1
    assert "found a directory with files in it, allowed: an empty directory" in result.stderr


def test_dirty_data_is_not_dropped_unasked(config: Path) -> None:
    result = fusecache("discard", config, "disk", "--layer", "0", "--dirty")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert not (config.parent / "state").exists()


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (FusecacheError("broken"), 1, "broken"),
        (ImageBusy("held by another"), 1, "held by another"),
        (LayerDirty("layer 1 is dirty"), 3, "layer 1 is dirty"),
        (ConfigError([]), 2, ""),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (OSError(16, "a whole sentence"), 1, "a whole sentence"),
        (ExceptionGroup("nursery", [ExceptionGroup("inner", [LayerDirty("dirty")])]), 3, "dirty"),
    ],
)
def test_every_expected_error_has_its_exit_code(error: Exception, code: int, message: str) -> None:
    failure = failure_of(error)
    assert failure is not None
    assert (failure.exit_code, failure.message) == (code, message)


@pytest.mark.parametrize(
    "error", [ValueError(), BrokenPipeError(32, "Broken pipe"), ExceptionGroup("", [OSError(), OSError()])]
)
def test_an_error_that_nobody_expects_is_not_hidden(error: Exception) -> None:
    assert failure_of(error) is None


def test_the_command_module_runs_from_any_directory(tmp_path: Path, config: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fusecache", "-v", "check", "--json", config],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout)["problems"] == []
