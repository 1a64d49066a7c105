"""The making of snapshots of one open image, so that what is said of a name stays true.

Owns which names are being made, and what becomes of a snapshot that comes too late. It must not know what is written
back before, nor which names are allowed.

**One that comes too late** was given up by its caller, who lets changes go on: it is of no instant that anybody asked
for, so it is removed as soon as it is there. The image is not closed before that. Until then the name is neither free
nor taken, and whoever asks for it again waits, so:

=============================  =======================================================================================
the second caller is told      and from then on
=============================  =======================================================================================
that it has made the snapshot  nobody removes it: the first one's had been removed, or never came
that the name is taken         nobody removes it: it is somebody else's, or the first caller has been told of it
nothing, in time               the first one's is still being made or removed, and the second has changed nothing
=============================  =======================================================================================

A process that is killed in between leaves a late snapshot behind.
"""

from collections.abc import Callable
from functools import partial

import trio

from fusecache.api import FusecacheError
from fusecache.backends.rbd import blocking
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.handle import OpenHandle


class Snapshots:
    """The snapshots that are being made of one image. Loop's thread only."""

    def __init__(self, client: Client, handle: OpenHandle) -> None:
        self._client = client
        self._handle = handle
        self._unsettled: dict[str, trio.Event] = {}

    async def check(self, name: str) -> None:
        """See :meth:`fusecache.api.BackendImage.check_snapshot`. Bounded by twice :attr:`Client.timeout`."""
        await self._until_settled(name)
        await self._client.ask(self._handle.use, blocking.check_snapshot, name)

    async def make(self, name: str) -> None:
        """See :meth:`fusecache.api.BackendImage.make_snapshot`. Bounded by twice :attr:`Client.timeout`."""
        await self._until_settled(name)
        image = self._handle.image
        undo = partial(blocking.remove_snapshot, image)
        await self._client.acquire(blocking.make_snapshot, image, name, undo=undo, keep=partial(self._begun, name))

    async def _until_settled(self, name: str) -> None:
        """Return when nothing is being made or removed under that name; nobody else runs in between."""
        with trio.move_on_after(self._client.timeout):
            while name in self._unsettled:
                await self._unsettled[name].wait()
            return
        raise FusecacheError(
            f"image {self._handle.name!r}: a snapshot {name!r} that was asked for before is still being made, or "
            f"removed as it came too late: the cluster did not answer within {self._client.timeout:g} s"
        )

    def _begun(self, name: str) -> Callable[[], None]:
        """Keep the image open and the name unsettled until the returned function is called, on any thread."""
        let_go = self._handle.keep()
        settled = self._unsettled[name] = trio.Event()

        def over() -> None:
            # Not counted as expected: what was given up may never come.
            self._client.completions.post(self._ended, name, settled, count=0)
            let_go()

        return over

    def _ended(self, name: str, settled: trio.Event) -> None:
        if self._unsettled.get(name) is settled:
            del self._unsettled[name]
        settled.set()
