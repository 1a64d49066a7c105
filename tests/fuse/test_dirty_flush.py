"""Writing dirty data back by command, mounted and not."""

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fusecache.api.units import parse_size
from tests.support.callers import in_thread, shell
from tests.support.dirty import (
    NEW,
    fail_below,
    is_written_back,
    kept_place,
    make_dirty,
    stick,
    unstick,
    wait_until_stuck,
)
from tests.support.mounts import PATIENCE, Mount, Place, fusecache, wait_until

LINE = re.compile(r"([\d.]+[KM]?i?B?) left, ([\d.]+[KM]?i?B?/s, (\d+|\?) s left|nothing has moved for \d+ s)\n")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return kept_place(tmp_path, images=2)


def test_reading_flush_tells_how_far_a_write_back_has_come(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted()
    with (mount.path / "disk").open("rb"):
        make_dirty(mount)
        stick(place)
        flush = in_thread(shell, "echo all > .control/images/disk/flush", mount.path)
        wait_until_stuck(mount)
        for path in (mount.control / "images/disk/flush", mount.control / "flush"):
            match = LINE.fullmatch(path.read_text())
            assert match
            assert 0 < parse_size(match[1]) < len(NEW)
        unstick(place)
        assert flush.result(PATIENCE).returncode == 0
        assert (mount.control / "images/disk/flush").read_text() == "idle\n"
    assert is_written_back(place)


def test_a_flush_that_fails_says_why_and_keeps_the_data_dirty(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted()
    with (mount.path / "disk").open("rb"):
        make_dirty(mount)
        fail_below(place, errno.ENOSPC)
        for target in (mount.path, place.config):
            result = fusecache("flush", target, "disk")
            assert result.returncode == 1
            assert os.strerror(errno.ENOSPC) in result.stderr
        assert os.strerror(errno.ENOSPC) in shell("echo 0 > .control/images/disk/flush", mount.path).stderr
        assert mount.status()["images"][0]["layers"][0]["dirty_bytes"] == len(NEW)
        fail_below(place, None)
        assert fusecache("flush", mount.path, "disk", "--layer", "0").returncode == 0
    assert is_written_back(place)


def left_dirty(mount: Mount, *names: str) -> None:
    """Make images dirty and unmount."""
    for name in names:
        make_dirty(mount, name)
    assert fusecache("unmount", "--keep", mount.path).returncode == 0
    assert mount.wait() == 0


def test_the_mounts_flush_reaches_images_that_an_earlier_mount_left_dirty(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    left_dirty(mounted(), "disk", "disk1")
    mount = mounted(release_after="0s")
    shown = mount.status()["images"]
    assert [(image["open"], image["state"], image["layers"][0]["state"]) for image in shown] == [
        (False, "dirty", "dirty")
    ] * 2
    assert (mount.control / "images/disk/layers/0/state").read_text() == "dirty\n"
    assert shell("echo all > .control/flush", mount.path).returncode == 0
    assert is_written_back(place)
    assert is_written_back(place, "disk1")
    wait_until(lambda: {image["state"] for image in mount.status()["images"]} == {"clean"}, "both are closed")


def test_unmounted_images_are_written_back(place: Place, mounted: Callable[..., Mount]) -> None:
    left_dirty(mounted(), "disk", "disk1")
    assert fusecache("flush", place.config, "disk").returncode == 0
    assert is_written_back(place)
    assert not is_written_back(place, "disk1")
    assert fusecache("flush", place.config).returncode == 0
    assert is_written_back(place, "disk1")
    assert {image["state"] for image in mounted().status()["images"]} == {"clean"}


def test_an_image_that_fails_unmounted_does_not_keep_the_others_waiting(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    left_dirty(mounted(), "disk", "disk1")
    for path in place.pools.iterdir():
        if json.loads((place.state / "images" / path.name.split(".")[1] / "lock").read_text())["image"] == "disk":
            path.unlink()
    result = fusecache("flush", place.config)
    assert result.returncode == 1
    assert result.stderr.startswith("fusecache: disk: not written back: layer 0 (kept) is dirty and ")
    assert is_written_back(place, "disk1")


def test_a_configuration_that_is_mounted_is_flushed_by_its_mount(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted(release_after="1h")
    make_dirty(mount)
    assert fusecache("flush", place.config).returncode == 0
    assert is_written_back(place)
    assert mount.status()["images"][0]["open"]


class SecondPlace(Place):
    """Another mount of the same host over the same images."""

    @property
    def state(self) -> Path:
        return self.root.parent / "state"

    @property
    def images(self) -> Path:
        return self.root.parent / "images"

    @property
    def pools(self) -> Path:
        return self.root.parent / "pools"


def test_what_another_mount_has_open_is_for_that_one_to_write_back(place: Place, mounted: Callable[..., Mount]) -> None:
    first = mounted(release_after="1h")
    make_dirty(first)
    second = mounted(SecondPlace(place.root / "second", layers=place.layers))
    make_dirty(second, "disk1")
    second.unmount()
    assert is_written_back(place, "disk1")
    assert not is_written_back(place)
    first.unmount()
    assert is_written_back(place)


def test_inspect_reads_a_pool_and_changes_nothing(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted(release_after="1h")
    make_dirty(mount)
    (path,) = place.pools.iterdir()
    before = path.read_bytes()
    result = fusecache("inspect", path, "--verify", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["facts"]["used_bytes"] == len(before)
    assert path.read_bytes() == before
    path.write_bytes(before[:-1] + b"?")
    result = fusecache("inspect", path, "--verify")
    assert result.returncode == 1
    assert re.search(r"problem: change \d+: its checksum is wrong", result.stdout)
    assert fusecache("inspect", path).returncode == 0
