"""The clients of one backend.

Owns which client an image is opened through, and when a client ends. It must not know images.

All images share one client, but for those that may become dirty in a layer: they get one each. When a lock is broken,
the cluster blocklists the owner's whole client, with every image opened through it.
"""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from fusecache.api import Completions, FusecacheError
from fusecache.backends.rbd.client import Client, Settings


class Clients:
    """The shared client and those of their own.

    A shared client that the cluster has blocklisted is replaced as soon as somebody asks for it; it ends with the last
    image that was opened through it.
    """

    def __init__(self, settings: Settings, completions: Completions) -> None:
        self._settings = settings
        self._completions = completions
        self._shared: Client | None = None
        self._borrowers: Counter[Client] = Counter()
        self._connecting = trio.Lock()
        self._failures = 0
        self._reason = ""

    @asynccontextmanager
    async def lent(self, *, dedicated: bool = False) -> AsyncIterator[Client]:
        """Lend the shared client, or one of its own, connected, for the length of a block.

        Entering raises:
            FusecacheError: as :meth:`Client.connect`.
        """
        client = await self._connected() if dedicated else await self._usable()
        self._borrowers[client] += 1
        try:
            yield client
        finally:
            self._borrowers[client] -= 1
            await self._end_unused(client)

    async def close(self) -> None:
        """End the shared client; nothing may be lent."""
        if self._shared is not None:
            await self._shared.close()

    async def _usable(self) -> Client:
        """Return the shared client; a new one where there is none or the cluster has blocklisted it."""
        failures = self._failures
        async with self._connecting:
            if self._shared is None or self._shared.lost:
                if self._failures != failures:
                    # Who waited for an attempt of another's does not wait for one of its own as well.
                    raise FusecacheError(self._reason)
                try:
                    client = await self._connected()
                except FusecacheError as error:
                    self._failures, self._reason = self._failures + 1, str(error)
                    raise
                former, self._shared = self._shared, client
                if former is not None:
                    await self._end_unused(former)
            return self._shared

    async def _connected(self) -> Client:
        client = Client(self._settings, self._completions)
        await client.connect()
        return client

    async def _end_unused(self, client: Client) -> None:
        if client is not self._shared and not self._borrowers[client]:
            del self._borrowers[client]
            await client.close()
