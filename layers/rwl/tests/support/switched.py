"""A medium that fails, or keeps a caller waiting, where a test says so.

Owns what stands between a log and its real pool file. It must not know records.
"""

import errno
import os
from collections.abc import Callable
from typing import Literal, TypeAlias

import trio

from fusecache.api import Buffer, Completions, Done
from fusecache_rwl.medium import Medium
from fusecache_rwl.medium_base import ReadEnd

Step: TypeAlias = Literal["append", "sync", "read", "superblock"]


def io_error() -> OSError:
    """Return what a device says that fails."""
    return OSError(errno.EIO, os.strerror(errno.EIO))


class SwitchedMedium(Medium):
    """Hands everything to an ssd engine, which stays the caller's to close.

    Attributes:
        failing: steps that raise, or tell, EIO.
        torn: what fails has stored a part all the same.
        stored: a superblock that fails is stored all the same.
        cold: nothing can be read without waiting.
        held: calls of the steps given to :meth:`hold`, in order; each goes on when it is called.
    """

    media = "ssd"
    durability = "fdatasync"
    persists = False

    def __init__(self, inner: Medium, completions: Completions) -> None:
        super().__init__(inner.size)
        self.failing: set[Step] = set()
        self.torn = False
        self.stored = False
        self.cold = False
        self.held: list[Callable[[], object]] = []
        self._holding: set[Step] = set()
        self._changed = trio.Event()
        self._inner = inner
        self._completions = completions

    def hold(self, *steps: Step) -> None:
        """Keep calls of these steps waiting from now on."""
        self._holding |= set(steps)

    def let_go(self) -> None:
        """Let everything pass, now and later."""
        self._holding.clear()
        held, self.held = self.held, []
        for go_on in held:
            go_on()

    async def wait_held(self, count: int = 1) -> None:
        """Wait until at least *count* calls are held."""
        while len(self.held) < count:
            await self._changed.wait()

    def _start(self, step: Step, go_on: Callable[[], object]) -> bool:
        """Say whether *go_on* was taken, to be called later."""
        if step not in self._holding:
            return False
        self.held.append(go_on)
        self._changed.set()
        self._changed = trio.Event()
        return True

    def _tell(self, call: Callable[[], None]) -> None:
        self._completions.expect()
        self._completions.post(call)

    def append(self, position: int, header: bytes, data: Buffer | None) -> None:
        if "append" not in self.failing:
            self._inner.append(position, header, data)
            return
        if self.torn and data is not None:
            self._inner.append(position, header, bytes(data)[: len(memoryview(data)) // 2])
        raise io_error()

    def sync(self, done: Done) -> bool:
        if "sync" in self.failing:
            self._tell(lambda: done(io_error()))
            return False
        if self._start("sync", lambda: self._sync(done)):
            return False
        return self._inner.sync(done)

    def _sync(self, done: Done) -> None:
        if self._inner.sync(done):
            self._tell(lambda: done(None))

    def read_now(self, position: int, length: int) -> memoryview | None:
        return None if self.cold else self._inner.read_now(position, length)

    def read(self, position: int, length: int, done: ReadEnd) -> None:
        if "read" in self.failing:
            self._tell(lambda: done(io_error(), b""))
        elif not self._start("read", lambda: self._inner.read(position, length, done)):
            self._inner.read(position, length, done)

    def read_blocking(self, position: int, length: int) -> Buffer:
        if "read" in self.failing:
            raise io_error()
        return self._inner.read_blocking(position, length)

    def read_superblocks(self) -> tuple[bytes, bytes]:
        return self._inner.read_superblocks()

    def write_superblock(self, data: bytes, at: int, done: Done) -> None:
        if "superblock" not in self.failing:
            if not self._start("superblock", lambda: self._inner.write_superblock(data, at, done)):
                self._inner.write_superblock(data, at, done)
        elif self.torn or self.stored:
            half = len(data) // 2
            found = data if self.stored else data[:half] + bytes(half)
            self._inner.write_superblock(found, at, lambda _: done(io_error()))
        else:
            self._tell(lambda: done(io_error()))

    def renew(self) -> None:
        self._inner.renew()

    async def close(self) -> None:
        await self._inner.close()
