"""The contract of a layer and of the plugin that makes it.

Owns what the core asks of a plugin, and what it hands to one. It must not know how plugins are found or stacked.

A plugin is an object reached through an entry point of the group ``fusecache.layers``; the entry point's name is the
plugin's. It is loaded only when an image that is being opened is configured for it.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import trio

from fusecache.api.completions import Completions
from fusecache.api.identity import Identity
from fusecache.api.volume import Volume

API_VERSION = 1
"""Raised with every change that an existing plugin does not already satisfy; a plugin of another version is refused."""

ENTRY_POINT_GROUP = "fusecache.layers"

Emit: TypeAlias = Callable[[str, str], None]
"""``emit(kind, text)`` records an event for people: *kind* is one lower-case word with hyphens, *text* one line."""


class LayerState(enum.Enum):
    """A layer's condition, as users see it."""

    CLEAN = "clean"
    DIRTY = "dirty"
    WRITING_BACK = "writing-back"
    DEGRADED = "degraded"
    MISSING = "missing"
    FENCED = "fenced"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class LayerStatus:
    """A layer's figures at one instant. Sizes in bytes; counts since the layer was opened.

    Attributes:
        dirty_bytes: held by the layer and not yet durable in the level below.
        used_bytes: taken in the pool file; *size_bytes* is what there is.
        oldest_dirty_seconds: age of the oldest dirty data, None when clean.
        errors: requests that failed for a reason of the layer's own medium or replicas.
        hits, misses: reads answered by the layer, and by the level below.
        replicas: one mapping for each replica, JSON-compatible.
    """

    state: LayerState = LayerState.CLEAN
    dirty_bytes: int = 0
    used_bytes: int = 0
    size_bytes: int = 0
    oldest_dirty_seconds: float | None = None
    hits: int = 0
    misses: int = 0
    writes: int = 0
    writeback_bytes: int = 0
    errors: int = 0
    replicas: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


class Layer(Volume):
    """One cache level of one image: a volume made over the volume below it.

    Attributes:
        writeback_rate: bytes per second that background write-back may take; 0 pauses it, None is no limit.
    """

    writeback_rate: int | None = None

    @abstractmethod
    async def writeback(self) -> None:
        """Write to the level below everything that was dirty at the call, and flush the level below.

        Runs at full speed whatever the rate. Progress shows in :meth:`status`. After a cancellation some of it is
        written back, and all that is not is still dirty.
        """

    @abstractmethod
    async def invalidate(self, *, dirty: bool) -> None:
        """Drop the layer's content. Other requests are held back meanwhile.

        Args:
            dirty: drop dirty data too; without it a dirty layer is left as it is.

        Raises:
            LayerDirty: the layer is dirty and *dirty* is false; nothing was dropped.
        """

    @abstractmethod
    def status(self) -> LayerStatus:
        """Return the figures; cheap, never waits."""

    def set_writeback_rate(self, rate: int | None) -> None:
        """Set :attr:`writeback_rate`, with immediate effect."""
        self.writeback_rate = rate


@dataclass(frozen=True, slots=True)
class LayerContext:
    """What a layer may know of the world around it.

    Attributes:
        image: the image's name, for messages only.
        identity: the image's identity; goes into everything durable.
        index: the layer index; goes into every file name and record.
        config: an instance of the plugin's ``config_model``.
        state_dir: the image's private directory for small state; exists.
        epoch: the image's epoch; goes into everything durable.
        nursery: the open image's nursery; a crash of a task in it closes this image and no other.
        completions: brings results of threads back to the loop.
        emit: records an event.
    """

    image: str
    identity: Identity
    index: int
    config: Any
    state_dir: Path
    epoch: int
    nursery: trio.Nursery
    completions: Completions
    emit: Emit


class LayerPlugin(ABC):
    """Makes layers of one kind.

    Attributes:
        name: equal to the entry point's name.
        api_version: the :data:`API_VERSION` it was written for.
        config_model: a pydantic model or a dataclass; the layer's table in the config, less ``index``, ``plugin``
        and ``required``,
            is validated against it, and unknown keys are errors.
        writes_back: its layers acknowledge changes that are not yet in the level below. They are opened only over
            images that can be told from every other for ever (``durable_identity``), and the backend keeps what
            happens to other images away from theirs.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    config_model: ClassVar[type[Any]]
    writes_back: ClassVar[bool] = False

    def artifacts(self, context: LayerContext) -> Sequence[Path]:
        """Name every file the layer will own, before any is created, so that the core can drop the layer without its
        plugin."""
        return ()

    @abstractmethod
    def open(self, context: LayerContext, below: Volume) -> AbstractAsyncContextManager[Layer]:
        """Open a layer over *below*, recovering what an earlier instance left.

        Leaving the context closes the layer and keeps its dirty data; it never waits for a write-back and never
        closes *below*. Once it is left nothing of a request happens any more, though the ``done`` of one that was
        pending may still be called, or never.
        """
