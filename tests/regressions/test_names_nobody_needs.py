"""What the kernel has forgotten, or never heard of, stayed in memory until the mount ended.

Replies to interrupted lookups and listings were dropped together with the only trace of what they had given out. And
when the kernel dropped its caches, its requests to forget filled all slots, because pyfuse3 was to hear of each.
"""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from trio.testing import MockClock

from fusecache.fuse.operations import Operations
from fusecache.fuse.protocol import Opcode
from tests.support.fake_kernel import Served, serving, u
from tests.support.nodes import Folder, ScriptedNode

CTX: Any = None
ROOT = 1
NAMES = 500


class Mount(NamedTuple):
    """A channel with the real operations, whose answers a test sends as pyfuse3 does."""

    served: Served
    operations: Operations

    @property
    def known(self) -> int:
        """How many nodes the kernel is taken to know, the root among them."""
        return len(self.operations._nodes)

    @property
    def listings(self) -> int:
        """How many listings are kept for readers."""
        return len(self.operations._listings)

    async def interrupted(self, opcode: Opcode, body: bytes) -> int:
        """Send a request that pyfuse3 gets, and that is given up before it answers."""
        unique = self.served.kernel.send(opcode, body)
        await self.served.names.receive()
        self.served.kernel.interrupt(unique)
        assert (await self.served.kernel.reply()).unique == unique
        return unique

    async def unheard(self, opcode: Opcode, body: bytes) -> int:
        """Send a request whose reply the kernel will refuse."""
        unique = self.served.kernel.send(opcode, body)
        await self.served.names.receive()
        self.served.kernel.gone.add(unique)
        return unique


@pytest.fixture
async def mount(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mount]:
    async with serving(monkeypatch) as served:
        root = Folder({f"disk-{at}": ScriptedNode(1000 + at) for at in range(NAMES)})
        served.channel.names = operations = Operations(root, served.channel.handles)
        yield Mount(served, operations)


lost = pytest.mark.parametrize("lose", [Mount.interrupted, Mount.unheard])


@lost
async def test_a_lookup_nobody_heard_of_is_taken_back(mount: Mount, autojump_clock: MockClock, lose: Any) -> None:
    for _ in range(3):
        unique = await lose(mount, Opcode.LOOKUP, b"disk-0\0")
        entry = await mount.operations.lookup(ROOT, b"disk-0", CTX)
        assert mount.known == 2
        mount.served.names.answer(unique, u(8, entry.st_ino) + bytes(120))
        assert await mount.served.kernel.nothing()
        assert (mount.known, mount.served.in_use) == (1, 0)


async def test_a_lookup_that_was_heard_of_stays(mount: Mount) -> None:
    unique = mount.served.kernel.send(Opcode.LOOKUP, b"disk-0\0")
    await mount.served.names.receive()
    entry = await mount.operations.lookup(ROOT, b"disk-0", CTX)
    mount.served.names.answer(unique, u(8, entry.st_ino) + bytes(120))
    assert (await mount.served.kernel.reply()).unique == unique
    assert mount.known == 2


@lost
async def test_a_listing_nobody_heard_of_is_dropped(mount: Mount, autojump_clock: MockClock, lose: Any) -> None:
    unique = await lose(mount, Opcode.OPENDIR, u(4, 0, 0))
    handle = await mount.operations.opendir(ROOT, CTX)
    kept = await mount.operations.opendir(ROOT, CTX)
    mount.served.names.answer(unique, u(8, handle) + u(4, 0, 0))
    assert await mount.served.kernel.nothing()
    assert (mount.listings, mount.served.in_use) == (1, 0)
    await mount.operations.releasedir(kept)
    assert mount.listings == 0


@lost
async def test_the_nodes_of_a_listing_nobody_read_are_taken_back(
    mount: Mount, autojump_clock: MockClock, lose: Any
) -> None:
    unique = await lose(mount, Opcode.READDIRPLUS, u(8, 1, 0) + u(4, 4096, 0) + u(8, 0) + u(4, 0, 0))
    reply = b""
    for name in (b"disk-0", b"disk-11", b"disk-222"):
        entry = await mount.operations.lookup(ROOT, name, CTX)
        reply += u(8, entry.st_ino) + bytes(120) + u(8, entry.st_ino, 1) + u(4, len(name), 8) + name.ljust(8, b"\0")
    assert mount.known == 4
    mount.served.names.answer(unique, reply)
    assert await mount.served.kernel.nothing()
    assert mount.known == 1


async def test_forgetting_everything_takes_no_slot_and_leaves_no_node(mount: Mount) -> None:
    served = mount.served
    nodeids = [(await mount.operations.lookup(ROOT, f"disk-{at}".encode(), CTX)).st_ino for at in range(NAMES)]
    assert mount.known == NAMES + 1
    for first in range(0, NAMES, 50):
        for nodeid in nodeids[first : first + 25]:
            served.kernel.forget(nodeid, 1)
        served.kernel.batch_forget(*((nodeid, 1) for nodeid in nodeids[first + 25 : first + 50]))
        # pyfuse3's end listens to nothing all the while.
        assert await served.kernel.nothing()
    assert (mount.known, served.in_use, served.full) == (1, 0, [])
    assert await served.names.nothing()
