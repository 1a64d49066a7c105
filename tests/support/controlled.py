"""Images in memory under a control directory, as a mount has them, without FUSE.

Owns a layer whose dirty data, pace and failures a test decides. Everything else is the real thing.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

from fusecache.api import PENDING, Attempt, Layer, LayerState, LayerStatus, Volume, joined
from fusecache.api.backend import ImageInfo
from fusecache.api.errors import FusecacheError, LayerDirty
from fusecache.config.schema import LayerConfig, StackConfig
from fusecache.control.files import CommandNode, Ownership
from fusecache.control.left import Left, LeftDirty
from fusecache.control.status import MountInfo
from fusecache.control.tree import ControlTree
from fusecache.images.image import Image
from fusecache.images.node import DirectoryNode, FileNode, Node, OpenFile
from fusecache.images.registry import Registry
from fusecache.metrics.events import EventLog
from fusecache.stack.assemble import MissingLayer, Stack, StackLayer
from fusecache.stack.link import Link
from fusecache.state.manifest import Manifest, ManifestLayer
from fusecache.testing.claims import FreeClaim
from fusecache.testing.interposed import InterposedVolume
from fusecache.testing.memory import MemoryBackend
from fusecache.testing.requests import Request

T = TypeVar("T")

OWNER = Ownership(uid=1000, gid=100, mtime_ns=7)


class HeldLayer(InterposedVolume, Layer):
    """Passes requests down, and has as much dirty data as the test says, written back when the test lets it."""

    def __init__(self, below: Volume) -> None:
        super().__init__(below)
        self.dirty = 0
        self.moved = 0
        self.failure: Exception | None = None
        self.started = trio.Event()
        self.gate = trio.Event()
        self.gate.set()

    async def _through(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        return await call()

    def _attempt(self, request: Request, attempt: Any, call: Any, finish: Any) -> Any:
        return attempt(finish)

    async def writeback(self) -> None:
        self.started.set()
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.moved, self.dirty = self.moved + self.dirty, 0

    async def invalidate(self, *, dirty: bool) -> None:
        await trio.lowlevel.checkpoint()
        if self.dirty and not dirty:
            raise LayerDirty(f"found {self.dirty} dirty bytes")
        self.dirty = 0

    def status(self) -> LayerStatus:
        state = LayerState.DIRTY if self.dirty else LayerState.CLEAN
        return LayerStatus(state=state, dirty_bytes=self.dirty, writeback_bytes=self.moved, size_bytes=1 << 20)


class KnownLeft(LeftDirty):
    """What a test says was left dirty, by the images' keys."""

    def __init__(self) -> None:
        self.images: dict[str, Left] = {}
        self.failure: Exception | None = None
        self.elsewhere = False
        self._known = {}

    async def look(self) -> None:
        await trio.lowlevel.checkpoint()
        self._known = dict(self.images)

    async def held(self, images: Callable[[], Awaitable[Sequence[ImageInfo]]]) -> Sequence[ImageInfo]:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        return [info for info in await images() if info.key in self.images]

    async def in_other_hands(self, info: ImageInfo) -> bool:
        await trio.lowlevel.checkpoint()
        return self.elsewhere


class World:
    """A backend in memory, a registry, and the control directory over it."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        names: tuple[str, ...] = ("disk",),
        indexes: tuple[int, ...] = (0,),
        options: dict[str, object] | None = None,
        missing: tuple[MissingLayer, ...] = (),
        release_after: float = 0.0,
        owner: Ownership = OWNER,
        metrics: Callable[[], Iterable[str]] = lambda: ["metrics\n"],
    ) -> None:
        self.backend = MemoryBackend(names=dict.fromkeys(names, 4096))
        self.config = StackConfig.model_validate(
            {
                "images": ("*",),
                "layer": tuple(LayerConfig(index=i, plugin="held", options=options or {}) for i in reversed(indexes)),
            }
        )
        self.missing = missing
        self.events = EventLog()
        self.left = KnownLeft()
        self.dropped: list[tuple[str, int, bool, bool]] = []
        self.drop_failure: Exception | None = None
        self.held_dirty: dict[str, int] = {}
        self.open_failure: Exception | None = None
        self.opened_names: list[str] = []
        self.registry = Registry(
            self.backend,
            open_stack=self._open_stack,
            drop_layer=self._drop_layer,
            stack_for=lambda name: self.config,
            nursery=nursery,
            release_after=release_after,
            emit=self.events.emit,
            on_open=self._apply_rates,
        )
        self.tree = ControlTree(
            self.registry,
            nursery,
            left=self.left,
            mount=MountInfo("1.2.3", 42, "/mnt/images", "memory"),
            owner=owner,
            events=self.events,
            metrics=metrics,
            control_wait=30.0,
        )

    def _apply_rates(self, image: Image) -> None:
        self.tree.rates.apply(image)

    def leave_dirty(self, name: str, size: int, index: int = 0, *, noted: bool = True) -> None:
        """Have an image look as an earlier mount left it: with dirty data in the layer of that index, the only one.

        Args:
            noted: the mount closed it; otherwise it was killed, and nobody knows how much is dirty.
        """
        identity = self.backend.images[name].identity
        layer = ManifestLayer(index=index, plugin="held", dirty=True)
        manifest = Manifest(identity=identity.text, epoch=1, host="0" * 32, layers=(layer,))
        self.left.images[self.backend.images[name].key] = Left(
            manifest, LayerState.DIRTY, {index: size} if noted else None
        )
        self.held_dirty[name] = size

    async def _drop_layer(self, name: str, index: int, dirty: bool, torn: bool) -> None:
        await trio.lowlevel.checkpoint()
        if self.drop_failure is not None:
            raise self.drop_failure
        self.dropped.append((name, index, dirty, torn))

    @asynccontextmanager
    async def _open_stack(self, name: str) -> AsyncIterator[Stack]:
        if self.open_failure is not None:
            raise self.open_failure
        self.opened_names.append(name)
        async with self.backend.open(name, FreeClaim()) as volume, trio.open_nursery() as nursery:
            top = base = Link(volume, "the backend")
            layers = []
            for config in reversed(self.config.layers):
                if config.index not in [missing.index for missing in self.missing]:
                    layer = HeldLayer(top)
                    layer.dirty = self.held_dirty.pop(name, 0)
                    top = Link(layer, f"layer {config.index}")
                    layers.append(StackLayer(config.index, config.plugin, layer, top, dict(config.options)))
            identity = self.backend.images[name].identity
            yield Stack(top, base, volume, layers, self.missing, identity, 1, nursery)
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def opened(self, name: str = "disk") -> AsyncIterator[list[HeldLayer]]:
        """Keep an image open; gives its layers, bottom up."""
        async with self.registry.using(name) as image:
            layers = [layer.layer for layer in image.layers]
            assert all(isinstance(layer, HeldLayer) for layer in layers)
            yield layers  # type: ignore[misc]

    async def node(self, path: str) -> Node:
        """Return the node at *path* below the control directory."""
        node: Node = self.tree.root
        for name in filter(None, path.split("/")):
            assert isinstance(node, DirectoryNode)
            node = await node.lookup(name)
        return node

    async def open(self, path: str, flags: int = os.O_RDONLY) -> OpenFile:
        """Open a control file."""
        node = await self.node(path)
        assert isinstance(node, FileNode)
        return await node.open(flags)

    async def read(self, path: str) -> str:
        """Return what ``cat`` shows."""
        file = await self.open(path)
        content = file.read(0, file.end, _never)
        assert not isinstance(content, Attempt)
        return joined(content).decode()

    async def write(self, path: str, text: str | bytes) -> int:
        """Make one ``write(2)`` and return its errno, 0 for success."""
        return await (await self.start(path, text)).result()

    async def start(self, path: str, text: str | bytes) -> "Write":
        """Make one ``write(2)`` and do not wait for its end."""
        assert isinstance(await self.node(path), CommandNode)
        return Write(await self.open(path, os.O_WRONLY), text.encode() if isinstance(text, str) else text)


class Write:
    """One ``write(2)`` to a control file."""

    def __init__(self, file: OpenFile, content: bytes) -> None:
        self.ended = trio.Event()
        self.error: BaseException | None = None
        self._calls = 0
        buffer = bytearray(content)
        try:
            outcome = file.write(3, memoryview(buffer), self._done)
        except FusecacheError as error:
            self._done(error)
        else:
            assert outcome is PENDING
            assert not self._calls, "done was called from inside the attempt"
        # The caller's buffer is not kept.
        buffer[:] = bytes(len(buffer))

    def _done(self, error: BaseException | None) -> None:
        self._calls += 1
        assert self._calls == 1, "done was called twice"
        self.error = error
        self.ended.set()

    async def result(self) -> int:
        """Wait for the end; return the errno, 0 for success."""
        await self.ended.wait()
        if self.error is None:
            return 0
        assert isinstance(self.error, FusecacheError | OSError)
        assert self.error.errno
        return self.error.errno


def _never(*_: object) -> None:
    raise AssertionError("a report is read at once")
