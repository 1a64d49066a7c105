"""A stack of rwl layers over an image in memory, all on recorded devices, and the processes that have it open.

Owns the devices, opening the stack as a process, and what is left of them after a crash. It must not know what is
written to the stack, nor what is expected of it.
"""

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from fusecache.api import Identity, Layer, Volume
from fusecache.testing import AttemptMode, WatchedVolume, layer_context
from fusecache_rwl.layer import open_layer
from fusecache_rwl.medium import Media
from fusecache_rwl.options import RwlOptions
from layers.rwl.tests.support.recorded_image import RecordedImage, RecordedMark, mark_device
from layers.rwl.tests.support.recording import open_recording, pool_device
from layers.rwl.tests.support.timeline import SECTOR, Device, Timeline

IMAGE: Final = "image"
_IDENTITY: Final = Identity("memory:recorded")
_NOWHERE: Final = Path("/nowhere")


@dataclass(frozen=True)
class LayerKind:
    """One layer of a stack.

    Attributes:
        media: of its pool.
        ring: bytes of its ring; small ones fill up and turn round often.
        persist: as the option.
        paused: it writes back only when asked.
        order: as the option.
        generation: bytes of the log that end a generation which no flush does.
    """

    media: Media = "ssd"
    ring: int = 128 << 10
    persist: Literal["auto", "write", "flush"] = "auto"
    paused: bool = False
    order: Literal["strict", "grouped"] = "strict"
    generation: int = 1 << 62

    @property
    def persists_each(self) -> bool:
        """A change is durable when it is acknowledged."""
        return self.persist == "write" or (self.persist == "auto" and self.media == "pmem")

    def options(self) -> RwlOptions:
        """Return the layer's options; the size and the place of its pool are not looked at."""
        return RwlOptions.model_validate(
            {
                "path": "/nowhere",
                "size": "16MiB",
                "media": self.media,
                "persist": self.persist,
                "order": self.order,
                "writeback_rate": "0" if self.paused else "max",
            }
        )


@dataclass
class World:
    """What outlives processes.

    Attributes:
        kinds: the layers, bottom up.
        attempts: what the image below answers to attempts.
        seed: of everything that is random about media.
    """

    kinds: Sequence[LayerKind]
    attempts: AttemptMode
    seed: int
    timeline: Timeline = field(default_factory=Timeline)
    devices: dict[str, Device] = field(default_factory=dict)

    @classmethod
    def new(cls, size: int, kinds: Sequence[LayerKind], attempts: AttemptMode = "done", seed: int = 1) -> "World":
        """Make an image of *size* zeroes, and empty pools."""
        world = cls(kinds, attempts, seed)
        timeline = world.timeline
        made = [Device(timeline, IMAGE, bytes(size), SECTOR)]
        for index, kind in enumerate(kinds):
            made.append(pool_device(timeline, pool(index), 8192 + kind.ring, kind.media))
            made.append(mark_device(timeline, mark(index)))
        world.devices = {device.name: device for device in made}
        return world

    def after(self, contents: Mapping[str, bytes]) -> "World":
        """Return the world in which the devices hold *contents*, all of it durable."""
        world = World(self.kinds, self.attempts, self.seed + 1)
        world.devices = {
            name: Device(world.timeline, name, content, self.devices[name].unit) for name, content in contents.items()
        }
        return world

    @property
    def image(self) -> bytes:
        """The bytes of the level below all layers."""
        return bytes(self.devices[IMAGE].content)

    @property
    def persists_each(self) -> bool:
        """A change is durable when the stack acknowledges it."""
        return self.kinds[-1].persists_each


def pool(index: int) -> str:
    """The name of a layer's pool."""
    return f"pool {index}"


def mark(index: int) -> str:
    """The name of a layer's mark."""
    return f"mark {index}"


@dataclass
class Open:
    """The stack as one process has it open.

    Attributes:
        layers: bottom up.
        marks: of each layer.
        life: the process.
    """

    world: World
    life: int
    layers: list[Layer] = field(default_factory=list)
    marks: list[RecordedMark] = field(default_factory=list)

    @property
    def top(self) -> Layer:
        """What requests go to."""
        return self.layers[-1]

    @property
    def alive(self) -> bool:
        """What happens now has an effect."""
        return self.life == self.world.timeline.lives and not self.world.timeline.dying


@asynccontextmanager
async def opened(world: World, *, die_in: int | None = None) -> AsyncIterator[Open]:
    """Open the stack as a new process; leaving closes it, which has no effect if it is dead.

    Args:
        die_in: how many events the process has to live, beginning with those of its opening.
    """
    timeline = world.timeline
    stack = Open(world, timeline.begin_life())
    timeline.die_at = None if die_in is None else timeline.now + die_in
    rng = random.Random(f"{world.seed} {stack.life}")
    async with AsyncExitStack() as exits:
        below: Volume = WatchedVolume(RecordedImage(world.devices[IMAGE], stack.life, world.attempts))
        for index, kind in enumerate(world.kinds):
            layer = await _open_one(exits, stack, index, kind, below, rng)
            stack.layers.append(layer)
            below = WatchedVolume(layer)
        yield stack


async def _open_one(
    exits: AsyncExitStack, stack: Open, index: int, kind: LayerKind, below: Volume, rng: random.Random
) -> Layer:
    devices = stack.world.devices
    stack.marks.append(RecordedMark(devices[mark(index)], stack.life))
    context = await exits.enter_async_context(
        # What a layer keeps is on the devices; a directory for each would take a fifth of the time.
        layer_context(kind.options(), identity=_IDENTITY, index=index, state_dir=_NOWHERE, dirty=stack.marks[index])
    )
    medium = open_recording(devices[pool(index)], stack.life, context.completions, random.Random(rng.random()))
    exits.push_async_callback(medium.close)
    layer = await exits.enter_async_context(open_layer(context, below, medium))
    # What the layer takes from the size of the ring is more than such small ones have.
    ledger, head = layer._log.ledger, layer._log.space.head
    ledger._most, ledger.full_at = kind.generation, head + kind.generation
    return layer
