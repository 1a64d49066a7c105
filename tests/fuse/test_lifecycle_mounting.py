"""How a mount begins: in the background, only where it may, and beside other mounts."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.callers import shell
from tests.support.mounts import PATIENCE, Mount, Place, environment, fusecache


@pytest.fixture
def background(place: Place) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs ``fusecache mount`` for *place*; what it mounted is unmounted at the end."""

    def mount(*options: str, **arguments: object) -> subprocess.CompletedProcess[str]:
        return fusecache("mount", *options, place.write_config(), place.mountpoint, **arguments)

    yield mount
    while place.mountpoint.is_mount() and is_ours(place.mountpoint):
        assert fusecache("unmount", place.mountpoint).returncode == 0


def is_ours(path: Path) -> bool:
    return any(
        line.split()[4] == str(path) and " fuse.fusecache " in line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    )


def is_running(pid: int) -> bool:
    try:
        # Where nobody reaps it, a process that has ended stays, without a command line.
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except FileNotFoundError:
        return False


def daemon_of(place: Place) -> int:
    return int(
        shell(
            "cat .control/status.json | python3 -c 'import json, sys; print(json.load(sys.stdin)[\"pid\"])'",
            place.mountpoint,
        ).stdout
    )


def test_mount_returns_when_the_mount_serves(
    place: Place, background: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    place.image("disk", b"content")
    result = background()
    assert result.returncode == 0, result.stderr
    assert is_ours(place.mountpoint)
    assert (place.mountpoint / "disk").read_bytes() == b"content"
    pid = daemon_of(place)
    assert os.getsid(pid) == pid
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    assert fusecache("unmount", place.mountpoint).returncode == 0
    assert not is_running(pid)


def test_the_daemon_keeps_no_descriptor_of_its_caller(
    place: Place, background: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    reader, writer = os.pipe()
    file = os.open(place.root / "held", os.O_CREAT | os.O_RDWR)
    for fd in (writer, file):
        os.set_inheritable(fd, True)
    assert background(pass_fds=(writer, file)).returncode == 0
    pid = daemon_of(place)
    os.close(writer)
    os.close(file)
    assert os.read(reader, 1) == b"", "nobody holds the pipe's other end"
    os.close(reader)
    held = [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    assert str(place.root / "held") not in held
    assert not any(target.startswith(("/dev/pts", "/dev/tty")) for target in held)


def test_a_config_that_is_wrong_is_exit_2_and_mounts_nothing(place: Place) -> None:
    place.write_config().write_text('[backend]\ntype = "directory"\n')
    result = fusecache("mount", place.config, place.mountpoint)
    assert result.returncode == 2
    assert "path" in result.stderr
    assert fusecache("mount", place.root / "nothing.toml", place.mountpoint).returncode == 2
    assert fusecache("mount", place.config).returncode == 2
    assert not place.mountpoint.is_mount()


def assert_refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1
    for word in words:
        assert word in result.stderr


def test_a_directory_with_something_in_it_is_refused(
    place: Place, background: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (place.mountpoint / "precious").touch()
    assert_refused(background(), str(place.mountpoint), "found a directory with files in it", "an empty directory")
    assert [path.name for path in place.mountpoint.iterdir()] == ["precious"]
    assert not place.mountpoint.is_mount()


def test_what_is_no_directory_is_refused(
    place: Place, background: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    place.mountpoint.rmdir()
    assert_refused(background(), "found nothing")
    assert not place.mountpoint.exists()
    place.mountpoint.write_text("content")
    assert_refused(background(), "found a file")
    assert place.mountpoint.read_text() == "content"
    place.mountpoint.unlink()
    place.mountpoint.symlink_to("nowhere")
    assert background().returncode == 1


def test_the_mount_of_another_file_system_is_refused(
    place: Place, background: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "foreign", place.mountpoint], check=True)
    try:
        assert_refused(background(), "found a mount of type tmpfs")
        assert place.mountpoint.is_mount()
        assert not is_ours(place.mountpoint)
        assert_refused(fusecache("unmount", place.mountpoint))
        assert place.mountpoint.is_mount()
    finally:
        subprocess.run(["umount", place.mountpoint], check=True)
    assert not place.mountpoint.is_mount()


def test_a_mount_that_is_being_served_is_refused_and_goes_on(
    place: Place, mounted: Callable[..., Mount], background: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    place.image("disk", b"content")
    mount = mounted()
    assert_refused(background(), "found a mount of fusecache that is being served")
    assert mount.status()["pid"] == mount.process.pid
    assert (mount.path / "disk").read_bytes() == b"content"
    assert shell(f"grep -c ' {mount.path} ' /proc/self/mountinfo", place.root).stdout == "1\n"


def test_unmount_of_what_is_not_mounted_is_refused(place: Place) -> None:
    assert_refused(fusecache("unmount", place.mountpoint), str(place.mountpoint))
    assert fusecache("unmount", place.root / "nothing").returncode == 1


def test_a_mountpoint_is_found_through_links_and_relative_paths(
    place: Place, background: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    place.image("disk", b"content")
    (place.root / "link").symlink_to(place.root)
    place.write_config()
    result = fusecache("mount", "config.toml", "link/mnt", cwd=place.root)
    assert result.returncode == 0, result.stderr
    assert (place.mountpoint / "disk").read_bytes() == b"content"
    result = fusecache("unmount", "./mnt/../link/mnt", cwd=place.root)
    assert result.returncode == 0, result.stderr
    assert not place.mountpoint.is_mount()


def test_names_with_blanks_and_backslashes_are_mounted(tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    place = Place(tmp_path / "a b\\040c\td")
    place.image("disk", b"content")
    mount = mounted(place)
    assert (mount.path / "disk").read_bytes() == b"content"
    assert mount.status()["mountpoint"] == str(mount.path)
    mount.unmount()
    assert not mount.path.is_mount()


def test_the_second_mount_of_a_directory_finds_open_images_busy_and_names_their_owner(
    place: Place, tmp_path: Path, mounted: Callable[..., Mount]
) -> None:
    place.image("disk", b"content")
    place.image("free", b"free")
    first = mounted()
    other = Place(tmp_path / "second")
    other.images.rmdir()
    other.images.symlink_to(place.images)
    second = mounted(other)
    with (first.path / "disk").open("rb") as file:
        with pytest.raises(OSError, match="busy"):
            (second.path / "disk").read_bytes()
        last_error = second.control / "images/disk/last_error"
        assert re.match(rf"open: .*pid {first.process.pid} ", last_error.read_text())
        result = shell("echo all > .control/images/disk/flush", second.path)
        assert "busy" in result.stderr
        assert re.match(rf"flush all: .*pid {first.process.pid} ", last_error.read_text())
        assert (second.path / "disk").stat().st_size == 7
        assert (second.path / "free").read_bytes() == b"free"
        assert file.read() == b"content"
    second.unmount()
    first.unmount()


def test_mount_fusecache_works_as_mount_8_calls_it(place: Place) -> None:
    place.image("disk", b"content")
    code = "import sys; from fusecache.cli.mount import mount_helper; sys.argv[0] = 'mount.fusecache'; mount_helper()"
    command: list[str | Path] = [sys.executable, "-c", code, place.write_config(), place.mountpoint, "-o", "rw,noauto"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=environment(), check=False)
    assert result.returncode == 0, result.stderr
    assert (place.mountpoint / "disk").read_bytes() == b"content"
    assert fusecache("unmount", place.mountpoint).returncode == 0
