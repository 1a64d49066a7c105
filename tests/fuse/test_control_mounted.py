"""The control directory on a real mount, as shells and programs use it."""

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.callers import in_thread, outcome, shell
from tests.support.mounts import PATIENCE, Mount, Place


@pytest.fixture
def mount(place: Place, mounted: Callable[..., Mount]) -> Mount:
    """A mount of two images, none of them open."""
    place.image("disk", size=1 << 20)
    place.image("other", size=4096)
    return mounted()


def write(path: Path, content: bytes, flags: int = 0) -> int:
    """Make one ``write(2)``; return its errno, 0 for success. Neither open nor close may fail."""
    fd = os.open(path, os.O_WRONLY | flags)
    try:
        return outcome(os.write, fd, content)
    finally:
        os.close(fd)


def test_a_shell_gives_commands(mount: Mount) -> None:
    for command in (
        "echo all > .control/flush",
        "printf all > .control/flush",
        "echo all >> .control/flush",
        "echo all | tee .control/flush",
        "echo all | dd of=.control/flush status=none",
        "echo all > .control/images/disk/flush",
        "echo 0 > .control/images/disk/flush",
        "echo 0 > .control/images/disk/discard",
        "echo 0 dirty > .control/images/disk/discard",
        "echo 1MiB > .control/images/disk/layers/0/writeback_rate",
        ": > .control/flush",
        "truncate -s 0 .control/flush",
        "truncate -s 100 .control/images/disk/discard",
    ):
        result = shell(command, mount.path)
        assert result.returncode == 0, f"{command}: {result.stderr}"
    assert shell("cat .control/images/disk/last_error", mount.path).stdout == ""


def test_cat_shows_every_report(mount: Mount) -> None:
    result = shell("find .control -type f -print0 | xargs -0 -n1 cat", mount.path)
    assert (result.returncode, result.stderr) == (0, "")
    files = shell("find .control -type f | sort", mount.path).stdout.split()
    reports = ["config", "dirty_bytes", "plugin", "size_bytes", "state"]
    layer = [f"layers/0/{name}" for name in [*reports, "writeback_rate"]]
    image = ["discard", "flush", "last_error", *layer, "snapshot", "status", "status.json"]
    assert files == sorted(
        [f".control/{name}" for name in ("events", "flush", "last_error", "metrics", "status", "status.json")]
        + [f".control/images/{name}/{file}" for name in ("disk", "other") for file in image]
    )


def test_reports_say_what_is(mount: Mount) -> None:
    def said(path: str) -> str:
        return (mount.control / path).read_text()

    assert said("flush") == "idle\n"
    assert said("images/disk/flush") == "idle\n"
    assert said("images/disk/layers/0/plugin") == "passthrough\n"
    assert said("images/disk/layers/0/state") == "clean\n"
    assert said("images/disk/layers/0/dirty_bytes") == "0\n"
    assert "fusecache_" in said("metrics")
    assert " mounted " in said("events").splitlines()[0]
    status = mount.status()
    assert status["pid"] == mount.process.pid
    assert status["mountpoint"] == str(mount.path)
    assert [(image["name"], image["size"], image["open"]) for image in status["images"]] == [
        ("disk", 1 << 20, False),
        ("other", 4096, False),
    ]
    assert json.loads(said("images/disk/status.json")) == status["images"][0]


def test_a_rate_is_read_back(mount: Mount) -> None:
    rate = mount.control / "images/disk/layers/0/writeback_rate"
    for text in ("0", "max", "50MiB"):
        assert write(rate, text.encode()) == 0
        assert rate.read_text() == f"{text}\n"


MISTAKES: dict[str, list[bytes]] = {
    "flush": [b"\n", b" ", b"ALL", b"all\nall", b"all\n\n", b"0", b"all ", b"\xff", b"all\0"],
    "images/disk/flush": [b"\n", b"  ", b"1", b"-1", b"0x0", b"ALL", b"0\n0\n", b"+0", b"00", b"now", b"all\r\n"],
    "images/disk/discard": [b"\n", b"all", b"1", b"0 clean", b"dirty", b"0 torn", b"-1", b"0x0", b"0  dirty", b"0\n0"],
    "images/disk/layers/0/writeback_rate": [b"\n", b"fast", b"-1", b"1 parsec", b"5s"],
    "images/disk/snapshot": [b"\n", b"a b", b"a/b", b"a@b"],
}


def test_what_is_not_understood_is_einval_and_last_error_repeats_it(mount: Mount) -> None:
    last_error = mount.control / "images/disk/last_error"
    for file, mistakes in MISTAKES.items():
        for content in mistakes:
            assert write(mount.control / file, content) == errno.EINVAL, (file, content)
            if file.startswith("images/"):
                assert f"found {content.decode()!r}"[:-1].removesuffix("\\n") in last_error.read_text().replace(
                    "found layer ", "found '"
                )


def test_an_empty_write_is_no_command(mount: Mount) -> None:
    # The kernel does not pass on a write of no bytes.
    assert write(mount.control / "flush", b"") == 0


def test_a_command_is_at_most_4_kib(mount: Mount) -> None:
    for length in (4097, 5000, 65536, 1 << 20):
        assert write(mount.control / "flush", b"all".ljust(length)) == errno.EINVAL
    assert write(mount.control / "flush", b"x" * 4096) == errno.EINVAL


def test_echo_prints_the_reason(mount: Mount) -> None:
    result = shell("echo 7 > .control/images/disk/discard", mount.path)
    assert result.returncode == 1
    assert "Invalid argument" in result.stderr


def test_a_snapshot_of_a_directorys_image_is_not_supported(mount: Mount) -> None:
    assert write(mount.control / "images/disk/snapshot", b"monday\n") == errno.EOPNOTSUPP
    result = shell("echo monday > .control/images/disk/snapshot", mount.path)
    assert (result.returncode, "Operation not supported" in result.stderr) == (1, True)
    assert (mount.control / "images/disk/snapshot").read_text() == "idle\n"
    assert "snapshot" in (mount.control / "images/disk/last_error").read_text()


def test_flags_and_offset_have_no_effect(mount: Mount) -> None:
    for flags in (os.O_TRUNC, os.O_APPEND, os.O_DIRECT, os.O_SYNC):
        assert write(mount.control / "flush", b"all\n", flags) == 0
    fd = os.open(mount.control / "flush", os.O_WRONLY)
    try:
        for offset in (0, 1, 4095, 1 << 40):
            assert os.pwrite(fd, b"all", offset) == 3
        assert os.write(fd, b"all") == os.write(fd, b"all\n") - 1
        os.ftruncate(fd, 0)
        os.ftruncate(fd, 1000)
        os.fsync(fd)
    finally:
        os.close(fd)


def test_reports_are_not_written_and_commands_not_deleted(mount: Mount) -> None:
    for path in mount.control.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o222 == 0:
            with path.open("rb") as file, pytest.raises(OSError, match="Bad file descriptor"):
                os.write(file.fileno(), b"x")
    for name, mode in {"flush": 0o600, "status": 0o444, "status.json": 0o444, "events": 0o444}.items():
        assert (mount.control / name).stat().st_mode & 0o777 == mode


def test_one_reader_sees_one_report_and_the_next_a_fresh_one(mount: Mount) -> None:
    with (mount.control / "events").open() as file:
        first = file.read(10)
        assert write(mount.control / "images/disk/flush", b"7") == errno.EINVAL
        text = first + file.read()
    assert "command-failed" not in text
    assert "command-failed" in mount.events()


def test_control_files_of_an_image_follow_its_name(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", size=4096)
    mount = mounted(rename=True)
    assert write(mount.control / "images/disk/flush", b"7") == errno.EINVAL
    (mount.path / "disk").rename(mount.path / "moved")
    assert sorted(path.name for path in (mount.control / "images").iterdir()) == ["moved"]
    assert "layer 7" in (mount.control / "images/moved/last_error").read_text()
    assert write(mount.control / "images/moved/flush", b"all") == 0
    assert (mount.control / "images/moved/last_error").read_text() == ""
    with pytest.raises(FileNotFoundError):
        (mount.control / "images/disk").stat()


def test_commands_work_whether_or_not_the_image_is_open(mount: Mount) -> None:
    for file in ("flush", "discard"):
        assert write(mount.control / "images/disk" / file, b"0\n") == 0
        with (mount.path / "disk").open("r+b") as opened:
            opened.write(b"x")
            opened.flush()
            assert write(mount.control / "images/disk" / file, b"0\n") == 0


def test_fifty_processes_write_one_control_file_at_once(mount: Mount) -> None:
    command = "for i in 1 2 3 4; do echo all > .control/images/disk/flush || exit 1; done"
    writers = [subprocess.Popen(["sh", "-c", command], cwd=mount.path) for _ in range(50)]
    assert [writer.wait(PATIENCE) for writer in writers] == [0] * 50
    assert (mount.control / "flush").read_text() == "idle\n"


def test_fifty_threads_give_commands_right_and_wrong_and_each_gets_its_own_answer(mount: Mount) -> None:
    commands = {b"all": 0, b"0": 0, b"1": errno.EINVAL, b"junk\n": errno.EINVAL, b"0\n": 0}
    futures = [
        (expected, in_thread(write, mount.control / "images/disk/flush", content))
        for _ in range(10)
        for content, expected in commands.items()
    ]
    for expected, future in futures:
        assert future.result(PATIENCE) == expected


def test_control_files_are_never_cached(mount: Mount) -> None:
    path = mount.control / "images/disk/status.json"
    assert json.loads(path.read_text())["open"] is False
    with (mount.path / "disk").open("rb"):
        assert json.loads(path.read_text())["open"] is True
        (mount.path / "disk").read_bytes()
    before = (mount.control / "metrics").read_text()
    (mount.path / "other").read_bytes()
    assert (mount.control / "metrics").read_text() != before
