"""One FUSE mount, served: channel, names and notifications put together.

Owns the order in which they start and end. It must not know what is served.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio

from fusecache.api.completions import Completions
from fusecache.fuse import awake, mounting
from fusecache.fuse.awake import Awake
from fusecache.fuse.channel import Channel
from fusecache.fuse.notify import Notifier
from fusecache.fuse.operations import Operations
from fusecache.fuse.slots import SLOTS
from fusecache.fuse.spin import Spin
from fusecache.images.node import DirectoryNode


@dataclass
class Session:
    """A mount being served.

    Attributes:
        channel: reads and answers.
        fd: the FUSE descriptor.
        unmounted: set when the kernel has let go of the mount.
    """

    channel: Channel
    notifier: Notifier
    fd: int
    unmounted: trio.Event = field(default_factory=trio.Event)

    async def stop(self) -> None:
        """Read no further requests, and return when those under way are answered."""
        await self.channel.stop()

    def abandon(self) -> None:
        """Have the kernel answer everybody with errors, now; any thread. For when the process cannot end by itself.

        A thread that is stuck in the kernel keeps a process and its descriptors for as long as that lasts.
        """
        with contextlib.suppress(OSError):
            os.close(self.fd)


@asynccontextmanager
async def mounted(
    path: Path,
    root: Callable[[Session], DirectoryNode],
    *,
    completions: Completions,
    spin: float,
    allow_other: bool,
    name_timeout: float,
    on_full: Callable[[bool], None],
) -> AsyncIterator[Session]:
    """Mount at *path* and serve until the context is left.

    Leaving closes the FUSE descriptor: whoever still has a file open gets errors from then on. The mount itself is
    detached if it is still there.

    Args:
        root: makes the root directory; called once.
        spin: seconds to spin before sleeping, at most; where 0, idle CPUs are not kept awake either.
        name_timeout: seconds after which a name operation fails.
        on_full: told when all request slots are taken, and when one is free again.

    Raises:
        OSError: the mountpoint cannot be used; the message says why.
    """
    fd = mounting.mount(path, allow_other=allow_other)
    notifier = Notifier(fd)
    try:
        async with trio.open_nursery() as nursery:
            cpus = Awake(allowed=spin > 0 and awake.pays())
            channel = Channel(fd, completions, Spin(spin), cpus, nursery, on_full)
            session = Session(channel, notifier, fd)
            channel.names = operations = Operations(root(session), channel.handles, timeout=name_timeout)
            nursery.start_soon(cpus.run)
            with completions.telling(cpus), _names(channel, operations):
                nursery.start_soon(pyfuse3.main, 1, SLOTS)
                nursery.start_soon(_run, session)
                await channel.serving.wait()
                yield session
                nursery.cancel_scope.cancel()
    finally:
        notifier.close()
        with contextlib.suppress(OSError):
            os.close(fd)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_detach, path)


async def _run(session: Session) -> None:
    await session.channel.run()
    session.unmounted.set()


@contextmanager
def _names(channel: Channel, operations: Operations) -> Iterator[None]:
    # pyfuse3 owns the descriptor from here on.
    pyfuse3.init(operations, f"/dev/fd/{channel.pyfuse3_end.detach()}", {"fsname=fusecache"})
    try:
        yield
    finally:
        pyfuse3.close(unmount=False)
        channel.close()


def _detach(path: Path) -> None:
    entry = mounting.find_mount(path)
    if entry is not None and entry.fstype == mounting.FSTYPE and mounting.is_stale(path):
        mounting.unmount(path, lazy=True)
