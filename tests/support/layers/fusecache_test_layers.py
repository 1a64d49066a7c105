"""Layers for tests of real mounts: they stop or fail requests while a file says so.

All are ordinary plugins, found by entry point. A test controls them through files in the directory ``switches``:

* ``gate``: while ``switches/closed`` exists, reads, writes and flushes wait.
* ``fault``: while ``switches/errno`` exists, every request fails with the number in it; ``crash`` in it raises an
  exception that nobody expects, ``die`` brings the whole stack down.
* ``park``: while ``switches/closed`` exists, attempts are PENDING and everything else hangs beyond cancellation, as in
  a system call that does not return, until ``switches/leave`` exists; then each write first appends its data, as they
  are by then, to ``switches/late``. ``die`` in ``switches/errno`` has the layer's background task crash.
"""

import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from fusecache.api import (
    API_VERSION,
    DECLINED,
    PENDING,
    Attempt,
    Buffers,
    Completions,
    Done,
    Extent,
    Layer,
    LayerContext,
    LayerPlugin,
    LayerStatus,
    ReadDone,
    ReadOutcome,
    Volume,
)


@dataclass
class SwitchConfig:
    """Where the switches are."""

    switches: str


class SwitchedLayer(Layer):
    """Consults its switch before every request, then lets the level below do it."""

    waiting = 0

    def __init__(self, below: Volume, switches: Path, nursery: trio.Nursery, completions: Completions) -> None:
        self.size = below.size
        self._below = below
        self._switches = switches
        self._nursery = nursery
        self._completions = completions

    async def ask(self) -> None:
        raise NotImplementedError

    def _count(self, change: int) -> None:
        """Say in ``switches/waiting`` how many requests to all images wait."""
        SwitchedLayer.waiting += change
        fresh = self._switches / "waiting.new"
        fresh.write_text(str(SwitchedLayer.waiting))
        fresh.replace(self._switches / "waiting")

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
    """Waits while the gate is closed."""

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


class ParkLayer(SwitchedLayer):
    """Keeps requests under way, whatever becomes of the stack."""

    def __init__(self, below: Volume, switches: Path, nursery: trio.Nursery, completions: Completions) -> None:
        super().__init__(below, switches, nursery, completions)
        nursery.start_soon(self._watch)

    async def _watch(self) -> None:
        switch = self._switches / "errno"
        while not (switch.exists() and switch.read_text() == "die"):  # noqa: ASYNC110 - as above
            await trio.sleep(0.01)
        raise RuntimeError("a background task of the layer crashed")

    async def ask(self) -> None:
        if not (self._switches / "closed").exists():
            return
        parked = trio.Event()
        self._park(parked.set)
        with trio.CancelScope(shield=True):
            await parked.wait()

    def _park(self, end: Callable[[], None]) -> Attempt:
        """Where the gate is closed, have *end* called on the loop's thread, by way of another thread, some time."""
        if not (self._switches / "closed").exists():
            return DECLINED
        self._count(1)
        self._completions.expect()
        threading.Thread(target=self._wait, args=(end,), daemon=True).start()
        return PENDING

    def _wait(self, end: Callable[[], None]) -> None:
        while not (self._switches / "leave").exists():
            time.sleep(0.05)

        def ended() -> None:
            self._count(-1)
            end()

        self._completions.post(ended)

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        return DECLINED if self._park(lambda: done(None, (bytes(length),))) is DECLINED else PENDING

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        def end() -> None:
            with (self._switches / "late").open("ab") as late:
                late.write(data)
            done(None)

        return self._park(end)

    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        return self._park(lambda: done(None))

    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        return self._park(lambda: done(None))

    def try_flush(self, done: Done) -> Attempt:
        return self._park(lambda: done(None))


class SwitchPlugin(LayerPlugin):
    """Makes layers of one of the classes above."""

    api_version = API_VERSION
    config_model = SwitchConfig

    def __init__(self, name: str, kind: type[SwitchedLayer]) -> None:
        self.name = name  # type: ignore[misc]
        self._kind = kind

    @asynccontextmanager
    async def open(self, context: LayerContext, below: Volume) -> AsyncIterator[Any]:
        yield self._kind(below, Path(context.config.switches), context.nursery, context.completions)


gate = SwitchPlugin("gate", GateLayer)
fault = SwitchPlugin("fault", FaultLayer)
park = SwitchPlugin("park", ParkLayer)
