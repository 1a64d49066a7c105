"""Dropping layers, dirty or not, mounted or not, with the plugin or without."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import mounts
from tests.support.callers import shell
from tests.support.dirty import NEW, OLD, kept_place, make_dirty, pool
from tests.support.mounts import Mount, Place, fusecache

OTHER_HOST = "f" * 32


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return kept_place(tmp_path)


@pytest.fixture
def left(place: Place, mounted: Callable[..., Mount]) -> Place:
    """A place whose image an earlier mount left dirty."""
    leave_dirty(mounted())
    return place


def leave_dirty(mount: Mount) -> None:
    make_dirty(mount)
    assert fusecache("unmount", "--keep", mount.path).returncode == 0
    assert mount.wait() == 0


def discard(target: Path, *options: str, layer: int = 0) -> tuple[int, str]:
    result = fusecache("discard", target, "disk", "--layer", str(layer), *options)
    return result.returncode, result.stderr


def without_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "environment", lambda: dict(os.environ))


def errno_of_open(mount: Mount) -> int:
    try:
        (mount.path / "disk").open("rb").close()
    except OSError as error:
        return error.errno or 0
    return 0


def assert_as_below(mount: Mount) -> None:
    assert (mount.path / "disk").read_bytes() == OLD
    assert mount.status()["images"][0]["state"] == "clean"


def test_a_dirty_layer_of_an_open_image_is_dropped_only_when_told(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted()
    with (mount.path / "disk").open("rb") as file:
        make_dirty(mount)
        code, reason = discard(mount.path)
        assert code == 3
        assert "bytes are dirty" in reason
        assert "Device or resource busy" in shell("echo 0 > .control/images/disk/discard", mount.path).stderr
        assert file.read() == NEW + OLD[len(NEW) :]
        assert discard(mount.path, "--dirty", "--yes") == (0, "")
        file.seek(0)
        assert file.read() == OLD
    assert_as_below(mount)


def test_a_dirty_layer_is_not_dropped_under_a_writer(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted()
    with (mount.path / "disk").open("r+b") as file:
        file.write(NEW)
        file.flush()
        os.fsync(file.fileno())
        for target in (mount.path, place.config):
            code, reason = discard(target, "--dirty", "--yes")
            assert code == 1
            assert "open for writing" in reason
    assert discard(mount.path, "--dirty", "--yes") == (0, "")
    assert_as_below(mount)


def test_a_clean_layer_is_dropped(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted()
    make_dirty(mount)
    assert fusecache("flush", mount.path).returncode == 0
    assert discard(mount.path) == (0, "")
    mount.unmount()
    assert discard(place.config) == (0, "")
    assert not list(place.pools.iterdir())
    assert (place.images / "disk").read_bytes()[: len(NEW)] == NEW


def test_an_image_left_dirty_loses_it_only_when_told(left: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted()
    for target in (left.config, mount.path):
        code, reason = discard(target)
        assert code == 3
        assert "layer 0 is dirty" in reason
    assert (mount.path / "disk").read_bytes()[: len(NEW)] == NEW
    mount.terminate()
    assert discard(left.config, "--dirty", "--yes") == (0, "")
    assert_as_below(mounted())


def test_without_a_terminal_dirty_data_is_not_dropped_unasked(left: Place) -> None:
    assert discard(left.config, "--dirty")[0] == 2
    assert pool(left).stat().st_size > len(NEW)


@pytest.mark.parametrize("by", ["mount", "config"])
def test_a_layer_whose_pool_is_gone_is_dropped(left: Place, mounted: Callable[..., Mount], by: str) -> None:
    pool(left).unlink()
    mount = mounted()
    assert errno_of_open(mount) == errno.ENODATA
    target = mount.path if by == "mount" else left.config
    assert discard(target)[0] == 3
    assert discard(target, "--dirty", "--yes") == (0, "")
    assert_as_below(mount)


@pytest.mark.parametrize("by", ["mount", "config"])
def test_a_layer_whose_plugin_is_gone_is_dropped(
    left: Place, mounted: Callable[..., Mount], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    without_plugin(monkeypatch)
    mount = mounted()
    assert errno_of_open(mount) == errno.ENODEV
    target = mount.path if by == "mount" else left.config
    assert discard(target)[0] == 3
    assert discard(target, "--dirty", "--yes") == (0, "")
    assert not list(left.pools.iterdir())
    assert (mount.path / "disk").read_bytes() == OLD


def test_a_clean_layer_that_an_open_image_was_opened_without_is_dropped(
    place: Place, mounted: Callable[..., Mount], monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = mounted()
    make_dirty(mount)
    mount.unmount()
    without_plugin(monkeypatch)
    mount = mounted()
    with (mount.path / "disk").open("rb"):
        assert pool(place).exists()
        assert discard(mount.path) == (0, "")
        assert not list(place.pools.iterdir())


def other_host(place: Place) -> Place:
    """Return a place of another host over the same images."""
    other = Place(place.root / "other", layers=place.layers)
    other.backend_options = {"type": "directory", "path": str(place.images)}
    other.state.mkdir()
    (other.state / "machine-id").write_text(f"{OTHER_HOST}\n")
    return other


@pytest.mark.parametrize("by", ["mount", "config"])
def test_what_another_host_holds_can_be_given_up_and_never_comes_back(
    left: Place, mounted: Callable[..., Mount], by: str
) -> None:
    other = other_host(left)
    there = mounted(other)
    assert errno_of_open(there) == errno.EBUSY
    target = there.path if by == "mount" else other.config
    assert discard(target)[0] == 3
    assert discard(target, "--dirty", "--yes") == (0, "")
    assert_as_below(there)
    there.unmount()

    mount = mounted()
    assert errno_of_open(mount) == errno.ESTALE
    assert mount.status()["images"][0]["layers"][0]["state"] == "fenced"
    assert discard(mount.path)[0] == 3
    assert discard(mount.path, "--dirty", "--yes") == (0, "")
    assert_as_below(mount)


def test_a_layer_under_dirty_ones_is_not_dropped(tmp_path: Path, mounted: Callable[..., Mount]) -> None:
    place = kept_place(tmp_path, layers=2)
    mount = mounted(place)
    with (mount.path / "disk").open("rb") as file:
        make_dirty(mount)
        assert fusecache("flush", mount.path, "disk", "--layer", "1").returncode == 0
        make_dirty(mount)
        code, reason = discard(mount.path, "--dirty", "--yes")
        assert code == 3
        assert "under dirty layers" in reason
        assert discard(mount.path, "--dirty", "--yes", layer=1) == (0, "")
        assert file.read() == NEW + OLD[len(NEW) :]
        assert discard(mount.path, "--dirty", "--yes", layer=0) == (0, "")
        file.seek(0)
        assert file.read() == OLD


def test_an_unknown_layer_is_a_mistake(left: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted()
    assert "Invalid argument" in shell("echo 7 > .control/images/disk/discard", mount.path).stderr
    for target in (mount.path, left.config):
        code, reason = discard(target, layer=7)
        assert code == 1
        assert "found layer 7, allowed: 0" in reason
