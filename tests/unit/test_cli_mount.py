"""Mount options, mount(8)'s helper, and how a daemon reports to whoever started it."""

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fusecache.cli import daemon
from fusecache.cli.failure import Failure
from fusecache.cli.mount import allows_other, mount_helper
from tests.support.command_line import write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path)


@pytest.mark.parametrize(
    ("options", "others"),
    [
        ([], False),
        (["defaults,rw,noauto,nofail,_netdev,user,users"], False),
        (["dev,nodev,suid,nosuid,exec,noexec,x-systemd.automount,x-y=1"], False),
        (["rw", "allow_other,nofail"], True),
    ],
)
def test_generic_mount_options_mean_nothing_here(options: list[str], others: bool) -> None:
    assert allows_other(options) is others


@pytest.mark.parametrize("option", ["ro", "allow-other", "size=1", "allow_other=1", "y-x"])
def test_any_other_mount_option_is_refused_by_name(option: str) -> None:
    with pytest.raises(click.BadParameter, match=f"found '{option}', allowed: allow_other"):
        allows_other(["rw", option])


def test_the_helper_takes_what_mount_8_passes_and_fakes_when_asked(config: Path) -> None:
    arguments = [str(config), "/nowhere", "-sfnv", "-o", "rw,noauto"]
    result = CliRunner().invoke(mount_helper, arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    result = CliRunner().invoke(mount_helper, [*arguments, "-o", "ro"])
    assert result.exit_code == 2
    assert "found 'ro'" in result.stderr


def test_the_helper_exits_like_the_command(config: Path) -> None:
    result = CliRunner().invoke(mount_helper, [f"{config}.gone", "/nowhere", "-f"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    result = CliRunner().invoke(mount_helper, [str(config), str(config.parent / "nowhere")])
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_a_daemon_says_one_thing_and_closes_the_pipe() -> None:
    reader, writer = os.pipe()
    ready = daemon.Readiness(writer)
    ready.serving()
    ready.failed(Failure("too late"))
    with os.fdopen(reader) as pipe:
        assert pipe.read() == "ok\n"


def test_programs_that_a_daemon_starts_do_not_get_the_pipe() -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    ready = daemon.Readiness(writer)
    assert not os.get_inheritable(writer)
    os.close(reader)
    ready.serving()


def test_the_daemons_error_and_exit_code_reach_whoever_started_it(tmp_path: Path) -> None:
    config, log = tmp_path / "gone.toml", tmp_path / "log"
    with pytest.raises(Failure) as caught:
        daemon.start(["mount", "-f", str(config), str(tmp_path)], log)
    assert caught.value.exit_code == 2
    assert caught.value.message.startswith(f"{config}: found a file that cannot be read")
    assert caught.value.message in log.read_text()


def test_of_a_daemon_that_ends_without_a_word_the_log_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier mount\n")
    with pytest.raises(Failure) as caught:
        daemon.start(["nonsense"], log)
    assert caught.value.exit_code == 1
    assert "ended with status 2 before it served" in caught.value.message
    assert "No such command 'nonsense'" in caught.value.message
    assert "of an earlier mount" not in caught.value.message
    assert log.read_text().startswith("of an earlier mount\n")
