"""Clients of a cluster that own images, in this process and in others that a test kills.

Owns how a test opens an image under its lock outside the backend, and what an owner in another process does. It must
not know what is tested. As a program (``python -m``): ``CONF STATE_DIR IMAGE [HOLDER]``.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace

import trio

from fusecache.api import Claim, Completions, Identity, ImageRecord
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.handle import OpenHandle
from fusecache.backends.rbd.header import Header
from fusecache.backends.rbd.lookup import fetch_header
from fusecache.backends.rbd.names import Describer
from fusecache.backends.rbd.opening import close_handle
from fusecache.backends.rbd.ownership import open_owned
from fusecache.backends.rbd.records import RbdRecords
from fusecache.stack.claim import claiming
from fusecache.state.image_state import ImageState
from fusecache.state.store import StateStore
from tests.support.project import ROOT

TIMEOUT = 20.0


@asynccontextmanager
async def connected(conf: Path, *, user: str = "admin") -> AsyncIterator[Client]:
    """Connect a client of its own to the pool ``rbd``."""
    completions = Completions()
    settings = SimpleNamespace(pool="rbd", namespace="", conf=conf, user=user, timeout=TIMEOUT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(completions.run)
        client = Client(settings, completions)
        await client.connect()
        try:
            yield client
        finally:
            await client.close()
        nursery.cancel_scope.cancel()
    completions.close()


def identity_of(client: Client, header: Header) -> Identity:
    """Return the identity of the image that *header* describes."""
    return Describer(client.fsid, client.pool_id, client.namespace).identity(header)


class Owned:
    """An image, open under its lock.

    Attributes:
        handle: holds the lock.
        records: its record and guard.
    """

    def __init__(self, client: Client, header: Header, handle: OpenHandle) -> None:
        self.handle = handle
        self.header = header
        self.records = RbdRecords(client, header, identity_of(client, header))


@asynccontextmanager
async def owned(client: Client, name: str, claim: Claim) -> AsyncIterator[Owned]:
    """Open an image under its lock with any claim."""
    header = await fetch_header(client, name)
    handle = await open_owned(client, header, identity_of(client, header), claim)
    try:
        yield Owned(client, header, handle)
    finally:
        await close_handle(client, handle)


@asynccontextmanager
async def owned_here(
    client: Client, name: str, state_dir: Path, *, take_over: bool = False, settled: bool = True
) -> AsyncIterator[Owned]:
    """Open an image under its lock as a stack does, with the state directory of a host."""
    store = StateStore(state_dir)
    async with (
        claiming(store, name=name, mountpoint=None, take_over=take_over) as claim,
        owned(client, name, claim) as image,
    ):
        if settled:
            await claim.use(ImageState.settle)
        yield image


@contextmanager
def owner_process(conf: Path, state_dir: Path, image: str, *record: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Have another process own an image; gives it and its client's address. It is killed in the end.

    Args:
        record: the host that holds dirty data according to the record it sets, with a guard.
    """
    command = [sys.executable, "-m", "tests.support.rbd_owners", str(conf), str(state_dir), image, *record]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert address, "the owner has ended"
            yield process, address
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


async def _own(*arguments: str) -> None:
    conf, state_dir, image, holder = (*arguments, "")[:4]
    async with connected(Path(conf)) as client, owned_here(client, image, Path(state_dir)) as own:
        if holder:
            await own.records.write(ImageRecord(epoch=1, holder=holder, holder_name="elsewhere"), guard=True)
        print(client.address, flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(_own, *sys.argv[1:])
