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
from typing import Any, ClassVar, Protocol, TypeAlias

import trio

from fusecache.api.completions import Completions
from fusecache.api.errors import NotSupported
from fusecache.api.file_sync import FileSync
from fusecache.api.identity import Identity
from fusecache.api.inspection import Inspection
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
        note: one line for people where something is not as usual; otherwise empty.
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
    note: str = ""


class Layer(Volume):
    """One cache level of one image: a volume made over the volume below it.

    Attributes:
        writeback_rate: bytes per second that background write-back may take; 0 pauses it, None is no limit.
    """

    writeback_rate: int | None = None

    @property
    def torn(self) -> bool:
        """Whether the level below is, at this instant, between two points of the order in which the layer writes back:
        without the rest, which the layer holds, it is what no disk would be after loss of power."""
        return False

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


class DirtyMark(Protocol):
    """The durable word that a layer may hold data which is not durable in the level below: set before, cleared after.

    The word stands in the image's own metadata, which is the authority, and in this host's manifest. As long as it
    stands nobody else opens the image, and it is opened with this layer or not at all. Setting and clearing each take
    a few durable writes, of the backend too: set it for a spell of work, not for a request.

    Attributes:
        is_set: from the end of a successful :meth:`set`, or from the opening of a layer that was left dirty, to the
            beginning of :meth:`clear`. Changes between the caller's awaits only. **False when the layer is opened
            means that nothing its files hold was ever acknowledged and is not below**: they may be of a crash before
            the mark was durable, or of a time before others changed the image. None of it may be read or written back.
        is_torn: from the end of a successful :meth:`tear`, or from the opening of a layer that was left so, to the
            beginning of :meth:`mend` or :meth:`clear`. Set only while *is_set* is.
        is_torn_beyond: the same of a :meth:`tear` with *beyond*. Set only while *is_torn* is.
        files_id: what :meth:`set` was told last, also before the layer was opened if that was dirty. **A layer that is
            opened dirty over files of another id has been given a copy of before**, when it was clean in between or
            its data was discarded: none of it may be read or written back.
    """

    @property
    def is_set(self) -> bool: ...
    @property
    def is_torn(self) -> bool: ...
    @property
    def is_torn_beyond(self) -> bool: ...
    @property
    def files_id(self) -> str: ...

    async def set(self, files_id: str = "") -> None:
        """Return when the mark is durable; at once where it is set already, and for the same files.

        To be called before a change that is not below is acknowledged, and before the layer's files hold anything
        that a later open would take for dirty. Calls for one image, of any layer, come one after another.

        Args:
            files_id: tells the layer's files from all that had their names before, or will have: a random text, which
                stands in the files too and is made when the layer begins them anew. Said by the same durable writes.
                Empty: the layer does not tell them apart.

        A cancellation leaves the mark not set in the eyes of the layer, durably set or not; the next :meth:`set` or
        :meth:`clear` settles that, and a layer that is opened with the mark set and nothing dirty clears it.

        Raises:
            VolumeReadOnly: the image's lock is not ours any more.
            FusecacheError, OSError: the manifest or the record cannot be written; the mark is not set.
        """

    async def clear(self) -> None:
        """Return when it is durable that the layer holds nothing which is not durable below; at once if not set.

        To be called when that is so: at a close that finds the layer clean, and when it has been clean for a while.
        :attr:`is_set` is False from the call on: a change that comes meanwhile sets the mark again.

        A cancellation, or an error, leaves it durably set or not, and not set in the eyes of the layer.

        Raises:
            VolumeReadOnly: the image's lock is not ours any more.
            FusecacheError, OSError: the record or the manifest cannot be written.
        """

    async def tear(self, *, beyond: bool = False) -> None:
        """Return when it is durable that the level below may be torn (see :attr:`Layer.torn`); at once if it is.

        To be called before the first byte goes below of what must go there as a whole. From then on a discard of the
        layer's dirty data, also one on another host or without the plugin, is refused unless it says that it takes a
        torn level below. A mark that is not set is set, by the same durable writes.

        Args:
            beyond: more is below than the whole that the layer's own files tell of, or will be. It is kept for the
                layer: opened so, it is to take all that it finds for one whole. To the core it is the same word. Once
                said it stays until the word is taken back, also when *beyond* is not said again.

        A cancellation, or an error, leaves it durably so or not, and in the eyes of the layer as it was.

        Raises:
            VolumeReadOnly: the image's lock is not ours any more.
            FusecacheError, OSError: the manifest or the record cannot be written.
        """

    async def mend(self) -> None:
        """Return when it is durable that the level below is not torn; at once if it is not.

        To be called soon after the last of such a whole is durable below. :attr:`is_torn` is False from the call on.
        Where the level below is a layer, the core remembers, by the same durable write, that the levels under it are
        whole only once that one is clean.

        A cancellation, or an error, leaves it durably so or not, and not torn in the eyes of the layer.

        Raises:
            VolumeReadOnly: the image's lock is not ours any more.
            FusecacheError, OSError: the record or the manifest cannot be written.
        """


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
        file_sync: makes the layer's files durable.
        emit: records an event.
        dirty: the layer's mark; only a layer of a plugin that ``writes_back`` uses it.
    """

    image: str
    identity: Identity
    index: int
    config: Any
    state_dir: Path
    epoch: int
    nursery: trio.Nursery
    completions: Completions
    file_sync: FileSync
    emit: Emit
    dirty: DirtyMark


class LayerPlugin(ABC):
    """Makes layers of one kind.

    Attributes:
        name: equal to the entry point's name.
        api_version: the :data:`API_VERSION` it was written for.
        config_model: a pydantic model or a dataclass; the layer's table in the config, less ``index``, ``plugin``
            and ``required``, is validated against it, and unknown keys are errors.
        writes_back: its layers acknowledge changes that are not yet in the level below, and say so by
            ``LayerContext.dirty`` first. They are opened only over images that can be told from every other for ever
            (``durable_identity``), and the backend keeps what happens to other images away from theirs.
    """

    name: ClassVar[str]
    api_version: ClassVar[int]
    config_model: ClassVar[type[Any]]
    writes_back: ClassVar[bool] = False

    def artifacts(self, context: LayerContext) -> Sequence[Path]:
        """Name every file the layer will own, before any is created, so that the core can drop the layer without its
        plugin.

        A file may be made under its name with ``.new`` after it, and renamed when it is whole: what a crash leaves of
        that is removed with the file.
        """
        return ()

    def inspect(self, path: Path, *, verify: bool) -> Inspection:
        """Describe one of the plugin's files for people, whether or not it is in use. Reads only; blocks.

        Args:
            path: of the file.
            verify: check everything in it that has a checksum.

        Raises:
            NotSupported: the plugin has nothing to show.
            CorruptState: it is no file of this plugin's.
            OSError: it cannot be read.
        """
        raise NotSupported(f"layer plugin {self.name!r} cannot inspect {path}")

    @abstractmethod
    def open(self, context: LayerContext, below: Volume) -> AbstractAsyncContextManager[Layer]:
        """Open a layer over *below*, recovering what an earlier instance left.

        Leaving the context closes the layer and keeps its dirty data; it never waits for a write-back and never
        closes *below*. Once it is left nothing of a request happens any more, though the ``done`` of one that was
        pending may still be called, or never.
        """
