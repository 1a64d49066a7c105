"""One layer on a real pool file, with switches above the image and in front of the pool.

Owns how the layer is opened and opened again, and what outlives it. It must not know what is tested.
"""

import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

from fusecache.api import Identity, joined
from fusecache.api.errors import unwrapped
from fusecache.testing import FaultyVolume, GatedVolume, MemoryVolume, RecordingMark, layer_context
from fusecache.testing.requests import OPERATIONS, AttemptMode
from fusecache_rwl.format import RING_OFFSET
from fusecache_rwl.layer import RwlLayer, open_layer
from fusecache_rwl.medium import create_pool, open_medium
from fusecache_rwl.options import RwlOptions
from layers.rwl.tests.support.switched import Step, SwitchedMedium

BLOCK: Final = 4096
SIZE: Final = 1 << 20
"""Bytes of the image."""
RING: Final = 128 << 10
"""Bytes of the ring: small, so that it is soon full."""
WHERE: Final = Identity("memory:bench")


def block(number: int) -> bytes:
    """Return a block that no other number has."""
    return random.Random(number).randbytes(BLOCK)


@contextmanager
def raised_alone() -> Iterator[None]:
    """Raise an error that came out of nurseries as what it was."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = unwrapped(group)
        raise error from error.__cause__


@dataclass
class Bench:
    """What outlives the layer.

    Attributes:
        pool: the pool file.
        bare: the image.
        gate, faults: in front of it; the gate is open at first.
        mark: the layer's.
        events: what the layer told, as kinds; *texts* the last text of each.
        fails_to_open: steps of the medium that fail from the start.
        medium: of the layer that was opened last.
    """

    pool: Path
    bare: MemoryVolume
    events: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    mark: RecordingMark = field(default_factory=RecordingMark)
    fails_to_open: set[Step] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.gate = GatedVolume(self.bare, OPERATIONS, attempts="declined")
        self.gate.open()
        self.faults = FaultyVolume(self.gate)
        self.medium: SwitchedMedium
        self._happened = trio.Event()

    @asynccontextmanager
    async def opened(self, *, index: int = 0, epoch: int = 1, **options: Any) -> AsyncIterator[RwlLayer]:
        """Open the layer; it writes back only when asked, but for other *options*."""
        values = {"path": str(self.pool.parent), "size": "16MiB", "writeback_rate": "0", **options}
        with raised_alone():
            async with layer_context(
                RwlOptions.model_validate(values),
                identity=WHERE,
                index=index,
                epoch=epoch,
                emit=self._told,
                dirty=self.mark,
            ) as context:
                inner = open_medium(self.pool, "ssd", context.completions, context.file_sync)
                self.medium = SwitchedMedium(inner, context.completions)
                self.medium.failing |= self.fails_to_open
                try:
                    async with open_layer(context, self.faults, self.medium) as layer:
                        yield layer
                finally:
                    await inner.close()

    def _told(self, kind: str, text: str) -> None:
        self.events.append(kind)
        self.texts[kind] = text
        self._happened.set()
        self._happened = trio.Event()

    async def wait_for(self, kind: str) -> None:
        """Wait until the layer has told this."""
        while kind not in self.events:
            await self._happened.wait()

    def below(self, offset: int = 0, length: int = BLOCK) -> bytes:
        """Return bytes of the image."""
        return bytes(self.bare.content.read(offset, length))


@contextmanager
def benched(*, ring: int = RING, attempts: AttemptMode = "done") -> Iterator[Bench]:
    """Make a bench with an empty pool and an image of zeroes."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        pool = Path(place) / "pool"
        create_pool(pool, RING_OFFSET + ring)
        yield Bench(pool, MemoryVolume(SIZE, attempts=attempts))


async def read(layer: RwlLayer, number: int = 0, count: int = 1) -> bytes:
    """Read blocks."""
    return bytes(joined(await layer.read(number * BLOCK, count * BLOCK)))


async def write(layer: RwlLayer, number: int, content: int) -> None:
    """Write the block of that content's number."""
    await layer.write(number * BLOCK, memoryview(block(content)))
