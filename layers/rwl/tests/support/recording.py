"""A pool in memory that keeps a record of every store and every ordering point.

Owns how a medium's calls become events of a timeline. It must not know records, layers, or what a test expects.

It is as weak as the contract of :class:`fusecache_rwl.medium.Medium` allows: a sync covers only what was appended
before it was asked for, a superblock's write only itself, results come a random number of the loop's turns late, a
read on a thread may see the pool as it is at its end, and a view is overwritten at the next call. Opening makes durable
what there is.

A handle whose process is dead goes on answering, and nothing that it does has any effect: so what is left of a layer
comes to its end.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from fusecache.api import Buffer, Completions
from fusecache_rwl.format import RING_OFFSET, SUPERBLOCK_SIZE
from fusecache_rwl.medium import Media, Medium
from layers.rwl.tests.support.timeline import SECTOR, WORD, Device, Timeline, after_power_loss

PAGE: Final = 4096
"""What a killed process may have written of a longer append: whole pages of the page cache."""

_POISON: Final = 0xDB


def pool_device(timeline: Timeline, name: str, size: int, media: Media) -> Device:
    """Return a new pool of *size* bytes, zeroes all."""
    return Device(timeline, name, bytes(size), WORD if media == "pmem" else SECTOR)


class RecordingMedium(Medium):
    """One process's handle of a pool; :func:`open_recording` makes it.

    Args:
        device: the pool; its unit tells the media.
        life: the process.
        rng: how late results come.
    """

    def __init__(self, device: Device, life: int, completions: Completions, rng: random.Random) -> None:
        super().__init__(len(device.content))
        if device.unordered:
            device.order(life, device.unordered)
        self._device = device
        self._life = life
        self._completions = completions
        self._rng = rng
        self._lent = bytearray()

    def append(self, position: int, header: bytes, data: Buffer | None) -> None:
        self._take_back()
        at = self._place(position)
        body = b"" if data is None else bytes(data)
        if self.persists:
            self._persist(at + len(header), body)
            self._persist(at, header)
            return
        record = header + body
        end = at + len(record)
        self._pages(at, record + bytes(-end % PAGE))

    def _persist(self, at: int, data: bytes) -> None:
        numbers = self._pages(at, data)
        if numbers:
            self._device.order(self._life, numbers)

    def _pages(self, at: int, data: bytes) -> list[int]:
        """Store page by page: a process may be killed between any two."""
        numbers = []
        done = 0
        while done < len(data):
            length = min(PAGE - (at + done) % PAGE, len(data) - done)
            number = self._device.store(self._life, at + done, data[done : done + length])
            if number is not None:
                numbers.append(number)
            done += length
        return numbers

    def sync(self, done: Callable[[BaseException | None], None]) -> bool:
        covered = list(self._device.unordered)
        if self.persists or not covered:
            return True

        def finish() -> None:
            self._device.order(self._life, covered)
            done(None)

        self._later(finish)
        return False

    def read_now(self, position: int, length: int) -> memoryview | None:
        self._take_back()
        if not self.persists and self._rng.random() < 0.3:
            return None
        self._lent = bytearray(self._bytes(position, length))
        return memoryview(self._lent)

    def read(self, position: int, length: int, done: Callable[[BaseException | None, bytes], None]) -> None:
        early = self._bytes(position, length) if self._rng.random() < 0.5 else None
        self._later(lambda: done(None, self._bytes(position, length) if early is None else early))

    def read_blocking(self, position: int, length: int) -> memoryview:
        return memoryview(self._bytes(position, length))

    def read_superblocks(self) -> tuple[bytes, bytes]:
        content = self._device.content
        return bytes(content[:SUPERBLOCK_SIZE]), bytes(content[SUPERBLOCK_SIZE : 2 * SUPERBLOCK_SIZE])

    def write_superblock(self, data: bytes, at: int, done: Callable[[BaseException | None], None]) -> None:
        def store() -> None:
            number = self._device.store(self._life, at, data)
            self._later(lambda: finish(number))

        def finish(number: int | None) -> None:
            if number is not None:
                self._device.order(self._life, [number])
            done(None)

        self._later(store)

    def renew(self) -> None:
        raise AssertionError("found a medium that is to be renewed, allowed: one that failed")

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self._take_back()

    def _place(self, position: int) -> int:
        return RING_OFFSET + position % self.ring_size

    def _bytes(self, position: int, length: int) -> bytes:
        at = self._place(position)
        if at + length > RING_OFFSET + self.ring_size:
            raise AssertionError(f"found {length} bytes at {position}, allowed: none across the ring's end")
        return bytes(self._device.content[at : at + length])

    def _take_back(self) -> None:
        self._lent[:] = bytes([_POISON]) * len(self._lent)

    def _later(self, call: Callable[[], None]) -> None:
        """Have *call* called on the loop some turns from now, as of a thread's end."""
        self._completions.expect()
        token = trio.lowlevel.current_trio_token()

        def turn(left: int) -> None:
            if left:
                token.run_sync_soon(turn, left - 1)
            else:
                self._completions.post(call)

        turn(self._rng.randrange(4))


class RecordingSsd(RecordingMedium):
    """A pool behind the page cache."""

    media = "ssd"
    durability = "fdatasync"
    persists = False


class RecordingPmem(RecordingMedium):
    """A pool in persistent memory: the data of an append are durable before its header is stored."""

    media = "pmem"
    durability = "pmem"
    persists = True


def open_recording(device: Device, life: int, completions: Completions, rng: random.Random) -> RecordingMedium:
    """Open a pool with the engine that its media has; arguments as of :class:`RecordingMedium`."""
    engine = RecordingPmem if device.unit == WORD else RecordingSsd
    return engine(device, life, completions, rng)


@dataclass(frozen=True, slots=True)
class LegalState:
    """What a loss of power at *instant* may leave of each device."""

    instant: int
    contents: Mapping[str, bytes]


def legal_states(timeline: Timeline, rng: random.Random, count: int, *, since: int = 0) -> Iterator[LegalState]:
    """Yield *count* states that a loss of power at some instant from *since* on may leave; the last instant first."""
    for number in range(count):
        instant = rng.randint(since, timeline.now) if number else timeline.now
        yield LegalState(instant, after_power_loss(timeline, instant, rng))


def killed_state(device: Device) -> bytes:
    """Return what the death of the process leaves of a device: all stores."""
    return bytes(device.content)
