"""Stacks over an image in memory, of layers that tell of themselves.

Owns the plugin, and the fixtures that a test of opening stacks needs. It must not know what is tested.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from fusecache.api import (
    API_VERSION,
    Completions,
    Identity,
    Layer,
    LayerContext,
    LayerPlugin,
    Volume,
)
from fusecache.config.schema import LayerConfig, StackConfig
from fusecache.stack import assemble
from fusecache.stack.assemble import Stack, open_stack
from fusecache.stack.discover import load
from fusecache.state.manifest import Manifest
from fusecache.state.store import StateStore
from fusecache.testing.file_sync import ThreadFileSync
from fusecache.testing.memory import MemoryBackend
from fusecache_passthrough import PassthroughLayer

IMAGE = "disk.img"
SIZE = 10_000

Open = Callable[..., AbstractAsyncContextManager[Stack]]


@dataclass
class Options:
    """Of the plugin below."""

    alignment: int = 1
    pool: str = "pool"
    rate: float = 0.0


class TellingPlugin(LayerPlugin):
    """Its layers own a file and tell of their opening and closing."""

    name = "telling"
    api_version = API_VERSION
    config_model = Options

    def __init__(self) -> None:
        self.told: list[str] = []
        self.failure: Exception | None = None
        self.task: Callable[[], Any] | None = None
        self.contexts: list[LayerContext] = []

    def artifacts(self, context: LayerContext) -> Sequence[Path]:
        return [context.state_dir / f"{context.config.pool}.{context.index}"]

    @asynccontextmanager
    async def open(self, context: LayerContext, below: Volume) -> AsyncIterator[Layer]:
        if self.failure is not None and context.index:
            raise self.failure
        self.contexts.append(context)
        self.told.append(f"open {context.index}")
        for path in self.artifacts(context):
            path.touch()
        if self.task is not None:
            context.nursery.start_soon(self.task)
        layer = PassthroughLayer(below)
        layer.alignment = context.config.alignment
        try:
            yield layer
        finally:
            # The layer below is still open: this is where a layer would finish its own requests.
            with trio.CancelScope(shield=True):
                await below.flush()
            self.told.append(f"close {context.index}")


class WrongPlugin(TellingPlugin):
    """Opens what is no layer."""

    name = "wrong"

    @asynccontextmanager
    async def open(self, context: LayerContext, below: Volume) -> AsyncIterator[Layer]:
        yield below  # type: ignore[misc]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> TellingPlugin:
    """The plugin that the test's images are configured for; those found by entry points stay."""
    made = TellingPlugin()
    own: dict[str, LayerPlugin] = {"telling": made, "wrong": WrongPlugin()}
    monkeypatch.setattr(assemble, "load", lambda name: own[name] if name in own else load(name))
    return made


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path)


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(attempts="done", names={IMAGE: SIZE})


@pytest.fixture
def events() -> list[tuple[str, str]]:
    return []


@pytest.fixture
async def opener(backend: MemoryBackend, store: StateStore, events: list[tuple[str, str]]) -> AsyncIterator[Open]:
    completions = Completions()
    yield partial(
        open_stack,
        backend=backend,
        name=IMAGE,
        configured=None,
        store=store,
        completions=completions,
        file_sync=ThreadFileSync(completions),
        emit=lambda kind, text: events.append((kind, text)),
    )
    completions.close()


def layers(*indexes: int, plugin: str = "telling", required: bool = False, **options: object) -> StackConfig:
    """Return a config of one plugin's layers, top first."""
    made = [LayerConfig(index=index, plugin=plugin, required=required, options=options) for index in indexes]
    return StackConfig(images=("*",), layers=tuple(made))


def read_manifest(store: StateStore, identity: Identity) -> Manifest | None:
    with store.lock_image(identity, name=IMAGE, mountpoint=None) as state:
        return state.read_manifest()


def write_manifest(store: StateStore, identity: Identity, **values: Any) -> None:
    with store.lock_image(identity, name=IMAGE, mountpoint=None) as state:
        state.write_manifest(Manifest(**{"identity": identity.text, "epoch": 1, "host": store.host(), **values}))
