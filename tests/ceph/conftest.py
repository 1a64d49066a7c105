"""Clusters for the tests of this folder, and mounts of their images.

The shared one lasts for the session, one for each conftest that names it: tests with Ceph belong below this folder.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuse.conftest import mounted
from tests.support.ceph import Cluster, ceph_cluster, empty_cluster, image_name, private_cluster
from tests.support.mounts import Place
from tests.support.pools import new_namespace
from tests.support.rbd_mounts import rbd_place

__all__ = ["ceph_cluster", "empty_cluster", "image_name", "mounted", "private_cluster"]


@pytest.fixture
def place(tmp_path: Path, ceph_cluster: Cluster) -> Place:
    """A config for the images of the shared cluster, with one passthrough layer; change it before mounting."""
    return rbd_place(tmp_path, ceph_cluster)


@pytest.fixture
def namespace(ceph_cluster: Cluster) -> str:
    """A namespace without images."""
    return new_namespace(ceph_cluster)


@pytest.fixture
def rbd(ceph_cluster: Cluster, namespace: str) -> Callable[..., str]:
    """Run ``rbd`` on that namespace; ``%`` stands before the names of images."""

    def run(*arguments: str) -> str:
        return ceph_cluster.rbd(*(argument.replace("%", f"rbd/{namespace}/") for argument in arguments))

    return run
