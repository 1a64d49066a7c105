"""The rbd backend keeps the contract of backends, and its images that of volumes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fusecache.api import Backend
from fusecache.testing import check_backend
from tests.support.ceph import Cluster
from tests.support.pools import pool_backend, stored


async def test_the_rbd_backend_keeps_the_contract(ceph_cluster: Cluster) -> None:
    @asynccontextmanager
    async def fresh() -> AsyncIterator[Backend]:
        async with pool_backend(ceph_cluster) as backend:
            yield backend

    def path(backend: Backend, name: str) -> str:
        return f"{backend.description.removeprefix('rbd:')}/{name}"

    def copy(backend: Backend, old: str, new: str) -> None:
        ceph_cluster.rbd("cp", "--no-progress", path(backend, old), path(backend, new))

    def fingerprint(backend: Backend) -> object:
        return stored(ceph_cluster, backend.description.rpartition("/")[2])

    await check_backend(fresh, copy=copy, fingerprint=fingerprint)
