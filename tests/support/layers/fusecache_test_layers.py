"""Layers for tests of real mounts: they stop or fail requests while a file says so.

Both are ordinary plugins, found by entry point. A test controls them through files in the directory ``switches``:

* ``gate``: while ``switches/closed`` exists, reads, writes and flushes wait.
* ``fault``: while ``switches/errno`` exists, every request fails with the number in it; ``crash`` in it raises an
  exception that nobody expects, ``die`` brings the whole stack down.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from fusecache.api import API_VERSION, Buffers, Extent, Layer, LayerContext, LayerPlugin, LayerStatus, Volume


@dataclass
class SwitchConfig:
    """Where the switches are."""

    switches: str


class SwitchedLayer(Layer):
    """Consults its switch before every request, then lets the level below do it."""

    def __init__(self, below: Volume, switches: Path, nursery: trio.Nursery) -> None:
        self.size = below.size
        self._below = below
        self._switches = switches
        self._nursery = nursery

    async def ask(self) -> None:
        raise NotImplementedError

    async def read(self, offset: int, length: int) -> Buffers:
        await self.ask()
        return await self._below.read(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        await self.ask()
        await self._below.write(offset, data)

    async def write_zeroes(self, offset: int, length: int) -> None:
        await self.ask()
        await self._below.write_zeroes(offset, length)

    async def discard(self, offset: int, length: int) -> None:
        await self.ask()
        await self._below.discard(offset, length)

    async def flush(self) -> None:
        await self.ask()
        await self._below.flush()

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        await self.ask()
        return await self._below.extents(offset, length)

    async def resize(self, size: int) -> None:
        await self._below.resize(size)
        self.size = size

    async def writeback(self) -> None:
        await self.flush()

    async def invalidate(self, *, dirty: bool) -> None:
        await self.ask()

    def status(self) -> LayerStatus:
        return LayerStatus()


class GateLayer(SwitchedLayer):
    """Waits while the gate is closed, and says in ``switches/waiting`` how many requests to all images do."""

    waiting = 0

    async def ask(self) -> None:
        closed = self._switches / "closed"
        if not closed.exists():
            return
        self._count(1)
        try:
            while closed.exists():  # noqa: ASYNC110 - the event is in another process
                await trio.sleep(0.01)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        GateLayer.waiting += change
        fresh = self._switches / "waiting.new"
        fresh.write_text(str(GateLayer.waiting))
        fresh.replace(self._switches / "waiting")


class FaultLayer(SwitchedLayer):
    """Fails while told to."""

    async def ask(self) -> None:
        try:
            what = (self._switches / "errno").read_text().strip()
        except FileNotFoundError:
            return
        if what == "crash":
            raise ZeroDivisionError("an exception that nobody expects")
        if what == "die":
            self._nursery.start_soon(self._die)
            await trio.sleep_forever()
        raise OSError(int(what), os.strerror(int(what)))

    async def _die(self) -> None:
        raise RuntimeError("a background task of the layer crashed")


class SwitchPlugin(LayerPlugin):
    """Makes layers of one of the classes above."""

    api_version = API_VERSION
    config_model = SwitchConfig

    def __init__(self, name: str, kind: type[SwitchedLayer]) -> None:
        self.name = name  # type: ignore[misc]
        self._kind = kind

    @asynccontextmanager
    async def open(self, context: LayerContext, below: Volume) -> AsyncIterator[Any]:
        yield self._kind(below, Path(context.config.switches), context.nursery)


gate = SwitchPlugin("gate", GateLayer)
fault = SwitchPlugin("fault", FaultLayer)
