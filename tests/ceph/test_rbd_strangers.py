"""Programs that know nothing of us use RBD images through the mount, and Ceph's own client finds what they wrote."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.test_strangers_fio import WAYS, verifying
from tests.fuse.test_strangers_mixed import SIZE, read_direct, run_programs
from tests.support.callers import in_thread
from tests.support.ceph import Cluster
from tests.support.mounts import PATIENCE, Mount
from tests.support.rbd_mounts import rbd_place


def exported(cluster: Cluster, name: str, into: Path) -> bytes:
    """Return the bytes of an image as Ceph's own client sees them."""
    cluster.rbd("export", "--no-progress", name, into)
    return into.read_bytes()


def test_programs_that_mix_every_kind_of_access_read_what_they_wrote(
    tmp_path: Path,
    ceph_cluster: Cluster,
    image_name: str,
    mounted: Callable[..., Mount],
    seed: int,
    soak_seconds: float,
) -> None:
    ceph_cluster.rbd("create", "--size", f"{SIZE}B", image_name)
    mount = mounted()
    disk = mount.path / image_name
    reference = tmp_path / "reference"
    reference.write_bytes(bytes(SIZE))
    assert run_programs(disk, reference, seed, soak_seconds) > 100
    expected = reference.read_bytes()
    assert read_direct(disk) == expected
    assert disk.read_bytes() == expected
    mount.unmount()
    assert exported(ceph_cluster, image_name, tmp_path / "exported") == expected


def test_no_request_fails_and_none_is_lost_while_the_osd_is_killed_and_comes_back(
    tmp_path: Path, private_cluster: Cluster, mounted: Callable[..., Mount], seed: int
) -> None:
    private_cluster.rbd("create", "--size", f"{SIZE}B", "disk")
    mount = mounted(rbd_place(tmp_path / "place", private_cluster))
    reference = tmp_path / "reference"
    reference.write_bytes(bytes(SIZE))
    load = in_thread(run_programs, mount.path / "disk", reference, seed, 12.0)
    chance = random.Random(seed)
    for _ in range(2):
        # Under load, and at any moment of it.
        with (mount.path / "disk").open("rb", buffering=0) as file:
            for _ in range(chance.randrange(50, 500)):
                file.seek(chance.randrange(SIZE))
                file.read(10)
        private_cluster.kill("osd.0")
        private_cluster.start()
    assert load.result(2 * PATIENCE) > 100
    expected = reference.read_bytes()
    assert read_direct(mount.path / "disk") == expected
    mount.unmount()
    assert exported(private_cluster, "disk", tmp_path / "exported") == expected


@pytest.mark.parametrize("way", ["libaio-direct-mixed-sizes", "psync-buffered-unaligned", "mmap"])
def test_fio_reads_back_what_it_wrote(
    ceph_cluster: Cluster, image_name: str, mounted: Callable[..., Mount], way: str, seed: int
) -> None:
    ceph_cluster.rbd("create", "--size", "16M", image_name)
    (job,) = verifying(mounted().path / image_name, seed, "--size=16m", *WAYS[way])
    assert job["write"]["total_ios"] > 100
