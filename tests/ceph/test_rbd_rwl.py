"""The write-back log over a Ceph image: what a killed daemon left is nobody else's, and is all there."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.test_lifecycle_ending import Writer
from tests.support.ceph import Cluster
from tests.support.mounts import Mount
from tests.support.rbd_mounts import MIB, rbd_place

pytest.importorskip("fusecache_rwl", reason="the part rwl is left out")


def opens(cluster: Cluster, image: str) -> bool:
    """Say whether Ceph's own client can open the image."""
    words = ["rbd", "--conf", str(cluster.conf), "info", image]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_a_killed_daemon_loses_nothing_and_keeps_others_out_until_it_is_recovered(
    ceph_cluster: Cluster, image_name: str, mounted: Callable[..., Mount], tmp_path: Path
) -> None:
    ceph_cluster.rbd("create", "--size", f"{8 * MIB}B", image_name)
    place = rbd_place(tmp_path / "place", ceph_cluster)
    place.layers = [{"plugin": "rwl", "path": str(place.pools), "size": "16MiB"}]
    mount = mounted(place)
    assert opens(ceph_cluster, image_name)
    writer = Writer(mount.path / image_name, sync=True)
    writer.wait_until_under_way(300)
    assert not opens(ceph_cluster, image_name)
    mount.kill()
    writer.end()
    assert not opens(ceph_cluster, image_name)
    again = mounted(place)
    writer.check(again.path / image_name)
    (again.control / "images" / image_name / "flush").write_text("all")
    assert opens(ceph_cluster, image_name)
    again.unmount()
    bare = tmp_path / "exported"
    ceph_cluster.rbd("export", "--no-progress", image_name, bare)
    writer.check(bare)
