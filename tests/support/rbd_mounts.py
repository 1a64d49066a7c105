"""Mounts of a Ceph cluster's images, and other clients of the same images.

Owns how a test mounts a pool and works beside the mount, as a program does that knows nothing of it. It must not know
what a test is about.
"""

from pathlib import Path
from typing import Any

from tests.support.callers import Caller
from tests.support.ceph import Cluster
from tests.support.mounts import Mount, Place

MIB = 1 << 20

CLIENT = """
import rados, rbd, threading
cluster = rados.Rados(conffile=sys.argv[1], conf={"log_to_stderr": "false", "err_to_stderr": "false"})
cluster.connect()
pool = cluster.open_ioctx(sys.argv[2])
"""


def rbd_place(root: Path, cluster: Cluster, **options: Any) -> Place:
    """Return a config for the images of *cluster*; *options* are further keys of its table ``[backend]``."""
    return Place(root, backend_options={"type": "rbd", "pool": "rbd", "conf": str(cluster.conf), **options})


class Client(Caller):
    """Another client of the cluster: a process that runs *code*, with the names ``cluster`` and ``pool`` connected and
    its *arguments* from ``sys.argv[3]`` on."""

    def __init__(self, cluster: Cluster, code: str, *arguments: object) -> None:
        super().__init__(CLIENT + code, cluster.conf, "rbd", *arguments)


def status_of(mount: Mount, name: str) -> Any:
    """Return the object of an image, or of an open snapshot, in ``status.json``."""
    (found,) = [image for image in mount.status()["images"] if image["name"] == name]
    return found


def is_open(mount: Mount, name: str) -> bool:
    """Say whether the mount has the image open, and locked."""
    return bool(status_of(mount, name)["open"])
