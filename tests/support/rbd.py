"""Images of a pool for tests, opened without a mount.

Owns how a test gets a client and an open :class:`RbdImage`, and what it can do to the image behind its back. It must
not know what is tested.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fusecache.api import Completions, Identity, ImageInfo
from fusecache.mount import running_completions
from tests.support.ceph import Cluster

rados = pytest.importorskip("rados")
rbd = pytest.importorskip("rbd")

from fusecache.backends.rbd.client import Client  # noqa: E402 - needs the bindings
from fusecache.backends.rbd.handle import OpenHandle  # noqa: E402
from fusecache.backends.rbd.image import RbdImage  # noqa: E402

PLAIN = 61
"""What ``rbd create`` enables: layering, exclusive-lock, object-map, fast-diff, deep-flatten."""


@dataclass(frozen=True)
class Settings:
    """Which pool; see :class:`fusecache.backends.rbd.client.Settings`."""

    conf: Path | None
    pool: str = "rbd"
    namespace: str = ""
    user: str = "admin"
    timeout: float = 20.0


class Emitted:
    """An :data:`fusecache.api.Emit` that keeps what it is told.

    Attributes:
        kinds: of the events, in order.
    """

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def __call__(self, kind: str, text: str) -> None:
        self.kinds.append(kind)


@asynccontextmanager
async def connected(cluster: Cluster, completions: Completions) -> AsyncIterator[Client]:
    """Connect a client for the length of a block."""
    client = Client(Settings(cluster.conf), completions)
    await client.connect()
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def running_client(cluster: Cluster) -> AsyncIterator[Client]:
    """As :func:`connected`, with completions of its own."""
    async with running_completions() as completions, connected(cluster, completions) as client:
        yield client


def create(client: Client, name: str, size: int, features: int = PLAIN, **geometry: int) -> None:
    """Create an image."""
    rbd.RBD().create(client.ioctx, name, size, old_format=False, features=features, **geometry)


def make_snapshot(client: Client, name: str, snapshot: str) -> None:
    """Make a snapshot that can be cloned."""
    with rbd.Image(client.ioctx, name) as image:
        image.create_snap(snapshot)
        image.protect_snap(snapshot)


def clone(client: Client, name: str, snapshot: str, new: str, features: int = PLAIN) -> None:
    """Make a clone of a snapshot."""
    rbd.RBD().clone(client.ioctx, name, snapshot, client.ioctx, new, features=features)


async def open_image(
    client: Client, name: str, emit: Callable[[str, str], None], snapshot: str | None = None
) -> RbdImage:
    """Open an image under its exclusive lock, or a snapshot without one."""

    def open_it() -> OpenHandle:
        image = rbd.Image(client.ioctx, name, snapshot=snapshot, read_only=snapshot is not None)
        try:
            if snapshot is None:
                image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
        except BaseException:
            image.close()
            raise
        return OpenHandle(image, client.keep, snapshot)

    async def describe() -> ImageInfo:
        return ImageInfo(name, "key", 0)

    handle = await client.call(open_it)
    return RbdImage(
        handle, Identity(f"rbd:{name}"), client=client, emit=emit, describe=describe, read_only=snapshot is not None
    )


@asynccontextmanager
async def opened(
    client: Client, name: str, emit: Callable[[str, str], None] | None = None, snapshot: str | None = None
) -> AsyncIterator[RbdImage]:
    """Open an image for the length of a block."""
    image = await open_image(client, name, emit or Emitted(), snapshot)
    try:
        yield image
    finally:
        await image.close()


@contextmanager
def other_client(cluster: Cluster) -> Iterator[Any]:
    """Connect another client, by the bindings alone; yields its pool."""
    other = rados.Rados(conffile=str(cluster.conf), conf={"log_to_stderr": "false", "err_to_stderr": "false"})
    other.connect(timeout=20)
    try:
        with other.open_ioctx("rbd") as ioctx:
            yield ioctx
    finally:
        other.shutdown()


def take_lock(cluster: Cluster, name: str) -> None:
    """Break the lock of whoever has the image, which blocklists them, as another host's failover does."""
    with other_client(cluster) as ioctx, rbd.Image(ioctx, name) as image:
        for owner in image.lock_get_owners():
            image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, owner["owner"])
        image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
