"""A cluster that demands keys: what a user needs for a mount, and what is told where it lacks it."""

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuse.test_lifecycle_ending import Writer
from tests.support.callers import outcome
from tests.support.ceph import Cluster, running_cluster
from tests.support.mounts import KEPT, Mount, Place, fusecache
from tests.support.rbd_mounts import MIB, rbd_place

PROFILE = ("mon", "profile rbd", "osd", "profile rbd pool=rbd")
"""What README.md says that a user needs, for one pool."""


@pytest.fixture(scope="module")
def cephx_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that demands keys, with an image."""
    with running_cluster(tmp_path_factory.mktemp("cephx") / "cluster", FUSECACHE_CEPH_AUTH="cephx") as cluster:
        cluster.rbd("create", "--size", f"{8 * MIB}B", "disk")
        yield cluster


def place_of(root: Path, cluster: Cluster, user: str, *caps: str) -> Place:
    """Return a config for a user with these capabilities, whose keyring is in *root*."""
    keyring = root / "keyring"
    keyring.write_text(cluster.ceph("auth", "get-or-create", f"client.{user}", *caps))
    conf = root / "ceph.conf"
    conf.write_text(re.sub(r"(?m)^keyring = .*$", f"keyring = {keyring}", cluster.conf.read_text()))
    place = rbd_place(root / "place", cluster, user=user, timeout="5s")
    place.backend_options["conf"] = str(conf)
    return place


def test_a_user_of_the_profile_for_one_pool_can_do_all_that_a_mount_does(
    cephx_cluster: Cluster, mounted: Callable[..., Mount], tmp_path: Path
) -> None:
    place = place_of(tmp_path, cephx_cluster, "guest", *PROFILE)
    # One that is dirty: its image has a record, a guard and a client of its own.
    place.layers = [KEPT]
    first = mounted(place)
    writer = Writer(first.path / "disk", sync=True)
    writer.wait_until_under_way(100)
    first.kill()
    writer.end()
    # Its lock is broken, which takes more than reading and writing.
    second = mounted(place)
    writer.check(second.path / "disk")
    (second.control / "images" / "disk" / "flush").write_text("all")
    second.unmount()
    place.layers = []
    third = mounted(place, verbose=True)
    assert "rights-missing" not in third.events()
    writer.check(third.path / "disk")
    assert outcome((third.path / "disk").read_bytes) == 0
    assert "read through librbd only" not in third.log.read_text()
    third.unmount()


def test_a_wrong_key_or_none_is_not_mounted_and_it_is_said_what_is_wrong(
    cephx_cluster: Cluster, tmp_path: Path
) -> None:
    place = place_of(tmp_path, cephx_cluster, "guest", *PROFILE)
    keyring = tmp_path / "keyring"
    other = cephx_cluster.ceph("auth", "get-or-create-key", "client.other", *PROFILE).strip()
    keyring.write_text(f"[client.guest]\nkey = {other}\n")
    told = fusecache("mount", place.write_config(), place.mountpoint)
    assert (told.returncode, "the cluster refuses the user client.guest" in told.stderr) == (1, True), told.stderr
    keyring.unlink()
    told = fusecache("mount", place.config, place.mountpoint)
    assert (told.returncode, "no keyring" in told.stderr) == (1, True), told.stderr
    place = place_of(tmp_path, cephx_cluster, "unknown-to-monitors", *PROFILE[2:])
    told = fusecache("mount", place.write_config(), place.mountpoint)
    assert (told.returncode, "lacks the capability `mon 'profile rbd'`" in told.stderr) == (1, True), told.stderr
    assert not place.mountpoint.is_mount()


@pytest.mark.parametrize(
    ("user", "osd", "namespace"),
    [
        ("reader", "allow r", ""),
        ("stranger", "profile rbd pool=other", ""),
        ("neighbour", "profile rbd pool=rbd namespace=other", "mine"),
    ],
)
def test_a_user_who_may_not_list_images_is_not_mounted_and_is_told_what_it_needs(
    cephx_cluster: Cluster, tmp_path: Path, user: str, osd: str, namespace: str
) -> None:
    place = place_of(tmp_path, cephx_cluster, user, "mon", "profile rbd", "osd", osd)
    if namespace:
        cephx_cluster.rbd("namespace", "create", f"rbd/{namespace}")
        place.backend_options["namespace"] = namespace
    told = fusecache("mount", place.write_config(), place.mountpoint)
    assert told.returncode == 1
    assert (
        f"the Ceph user client.{user} may not list the images of the pool rbd{namespace and '/' + namespace}: it needs "
        f"the capabilities `mon 'profile rbd' osd 'profile rbd pool=rbd{namespace and ' namespace=' + namespace}'`"
    ) in told.stderr
    assert not place.mountpoint.is_mount()


def test_a_user_who_may_only_read_is_told_at_the_start_and_has_the_snapshots(
    cephx_cluster: Cluster, mounted: Callable[..., Mount], tmp_path: Path
) -> None:
    cephx_cluster.rbd("snap", "create", "disk@one")
    place = place_of(tmp_path, cephx_cluster, "looker", "mon", "allow r", "osd", "profile rbd-read-only pool=rbd")
    mount = mounted(place)
    first, second, third, *_ = mount.events().splitlines()
    assert "rights-missing the Ceph user client.looker may not write to the pool rbd: only snapshots" in first
    assert "rights-missing the Ceph user client.looker may not blocklist clients" in second
    assert " mounted " in third
    assert outcome(os.open, mount.path / "disk", os.O_RDONLY) == errno.EPERM
    assert "the Ceph user needs the capabilities `profile rbd`" in mount.events()
    assert outcome((mount.path / "disk@one").read_bytes) == 0
