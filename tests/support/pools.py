"""Ceph pools of images for tests, without a mount.

Owns how a test opens an rbd backend in a namespace of its own, and what can be done to it behind its back. It must not
know what is tested. The bindings are imported where they are needed: Ceph need not be installed.
"""

import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio

from fusecache.api import Backend
from fusecache.backends import open_backend
from fusecache.config.schema import RbdConfig
from tests.support.ceph import PATIENCE, Cluster
from tests.support.image_directory import Events, delivered

_numbers = itertools.count(1)


def config(cluster: Cluster, **changes: Any) -> RbdConfig:
    """Return a config that nobody has checked, for the pool ``rbd`` of *cluster*."""
    return RbdConfig.model_construct(**{"pool": "rbd", "conf": cluster.conf, **changes})


def new_namespace(cluster: Cluster) -> str:
    """Make a namespace without images in the pool ``rbd``, and return its name."""
    name = f"n{next(_numbers)}"
    cluster.rbd("namespace", "create", f"rbd/{name}")
    return name


@asynccontextmanager
async def pool_backend(cluster: Cluster, *, events: Events | None = None, **changes: Any) -> AsyncIterator[Backend]:
    """Open a backend over the pool ``rbd`` of *cluster*, by default in a new namespace of it."""
    if "namespace" not in changes:
        changes["namespace"] = await trio.to_thread.run_sync(new_namespace, cluster)
    async with (
        delivered() as completions,
        open_backend(config(cluster, **changes), completions, (events or Events()).emit) as backend,
    ):
        yield backend


@contextmanager
def ioctx(cluster: Cluster, namespace: str = "") -> Iterator[Any]:
    """Connect to the pool ``rbd`` of *cluster* as another client does, for the length of a block."""
    import rados  # noqa: PLC0415

    with rados.Rados(conffile=str(cluster.conf), conf={"log_to_stderr": "false", "err_to_stderr": "false"}) as client:
        client.wait_for_latest_osdmap()
        with client.open_ioctx("rbd") as pool:
            pool.set_namespace(namespace)
            yield pool


def blocklist(cluster: Cluster, address: str) -> None:
    """Shut a client out of the cluster, as breaking its lock does."""
    cluster.ceph("osd", "blocklist", "add", address, str(int(PATIENCE)))


def create_images(cluster: Cluster, namespace: str, names: Sequence[str], size: int) -> None:
    """Make many images."""
    import rbd  # noqa: PLC0415

    with ioctx(cluster, namespace) as pool, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: rbd.RBD().create(pool, name, size), names))


@contextmanager
def open_elsewhere(cluster: Cluster, namespace: str, name: str) -> Iterator[Any]:
    """Have an image open as another client has, for the length of a block."""
    import rbd  # noqa: PLC0415

    with ioctx(cluster, namespace) as pool, rbd.Image(pool, name) as image:
        yield image


def stored(cluster: Cluster, namespace: str) -> dict[str, object]:
    """Return everything that is stored in a namespace: the bytes of each object, its attributes and its keys."""
    with ioctx(cluster, namespace) as pool:
        return {item.key: _content(pool, item.key) for item in pool.list_objects()}


def _content(pool: Any, name: str) -> object:
    with pool_read(pool) as operation:
        keys, _ = pool.get_omap_vals(operation, "", "", 1000)
        pool.operate_read_op(operation, name)
        omap = dict(keys)
    return pool.read(name, length=1 << 23), dict(pool.get_xattrs(name)), omap


@contextmanager
def pool_read(pool: Any) -> Iterator[Any]:
    """Make an operation that reads, for the length of a block."""
    operation = pool.create_read_op()
    try:
        yield operation
    finally:
        pool.release_read_op(operation)
