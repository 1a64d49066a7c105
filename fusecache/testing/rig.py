"""One layer on a level below that is watched and can be made to fail.

Owns how a layer under test is opened, and opened again. It must not know what is checked.
"""

import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from fusecache.api.identity import Identity
from fusecache.api.layer import Layer, LayerPlugin
from fusecache.api.volume import Volume
from fusecache.testing.context import layer_context, validated
from fusecache.testing.faulty import FaultyVolume
from fusecache.testing.gated import GatedVolume
from fusecache.testing.harness import expect
from fusecache.testing.marks import RecordingMark
from fusecache.testing.memory import MemoryVolume
from fusecache.testing.requests import AttemptMode
from fusecache.testing.watched import WatchedVolume

MakeVolume: TypeAlias = Callable[[int], AbstractAsyncContextManager[Volume]]
"""Opens a fresh volume of a size, which reads as zeroes."""


@asynccontextmanager
async def memory_volume(size: int, *, alignment: int = 1, attempts: AttemptMode = "declined") -> AsyncIterator[Volume]:
    """Open a volume in memory."""
    volume = MemoryVolume(size, alignment=alignment, attempts=attempts)
    try:
        yield volume
    finally:
        volume.close()


MEMORY_VOLUMES: Final[Mapping[str, MakeVolume]] = {
    "attempts below are declined": memory_volume,
    "attempts below are done": partial(memory_volume, attempts="done"),
    "attempts below are pending": partial(memory_volume, attempts="pending"),
    "alignment below is 512": partial(memory_volume, alignment=512, attempts="pending"),
}
"""The levels below that a layer is checked over, and words for each."""


class LayerRig:
    """A layer's surroundings, which stay while the layer is closed and opened again.

    Attributes:
        bare: the level below itself, to be looked at past the watch.
        below: what the layer is given: the same, watched.
        gate, faults: between the two; the gate, for changes, is open at first.
        mark: the layer's; as durable as the layer's files.
        artifacts: what the layer named before it was opened last.
        left_running: names of the tasks that the layer closed last left behind.
    """

    def __init__(self, plugin: LayerPlugin, options: Mapping[str, Any], bare: Volume, state_dir: Path) -> None:
        self.plugin = plugin
        self.options = options
        self.bare = bare
        self.gate = GatedVolume(bare, attempts="declined")
        self.gate.open()
        self.faults = FaultyVolume(self.gate)
        self.below = WatchedVolume(self.faults)
        self.mark = RecordingMark()
        self.state_dir = state_dir
        self.identity = Identity(f"memory:{uuid.uuid4()}")
        self.artifacts: set[Path] = set()
        self.left_running: list[str] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Layer]:
        """Open the layer, as before or for the first time."""
        config = validated(self.plugin, self.options)
        async with layer_context(config, identity=self.identity, state_dir=self.state_dir, dirty=self.mark) as context:
            others = set(context.nursery.child_tasks)
            self.artifacts = set(self.plugin.artifacts(context))
            async with self.plugin.open(context, self.below) as layer:
                yield layer
            self.left_running = [task.name for task in context.nursery.child_tasks - others]


@asynccontextmanager
async def layer_rig(
    plugin: LayerPlugin, options: Mapping[str, Any], make_below: MakeVolume, size: int
) -> AsyncIterator[LayerRig]:
    """Make a rig; in the end the layer's files are removed, and the level below must have been asked properly."""
    with tempfile.TemporaryDirectory(prefix="fusecache-") as temporary:
        async with make_below(size) as bare:
            rig = LayerRig(plugin, options, bare, Path(temporary))
            try:
                yield rig
            finally:
                for path in rig.artifacts:
                    path.unlink(missing_ok=True)
            asked = "; ".join(rig.below.violations)
            expect(not asked, f"the level below was asked for what its contract does not allow: {asked}")


@asynccontextmanager
async def fresh_layer(
    size: int, *, plugin: LayerPlugin, options: Mapping[str, Any], make_below: MakeVolume
) -> AsyncIterator[Volume]:
    """Open a new layer over a fresh level below."""
    async with layer_rig(plugin, options, make_below, size) as rig, rig.open() as layer:
        yield layer
