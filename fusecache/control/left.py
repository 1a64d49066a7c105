"""The images that are dirty and not open: left so by an earlier mount, or by a layer that is paused.

Owns what is known of them: from the manifests in the state directory, checked against the images' own records. It must
not know how they are shown, opened or written back.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import trio

from fusecache.api.backend import Backend, ImageInfo, ImageRecord
from fusecache.api.errors import CorruptState, FusecacheError
from fusecache.api.identity import Identity
from fusecache.api.layer import LayerState
from fusecache.stack.held import held_here
from fusecache.state.dirty import DirtyImage, dirty_images, opened_elsewhere
from fusecache.state.manifest import Manifest, decode
from fusecache.state.store import StateStore

log = logging.getLogger(__name__)

Result = TypeVar("Result")

PATIENCE: Final = 1.0
"""Seconds that :meth:`LeftDirty.look` waits for the state directory and the backend."""


@dataclass(frozen=True, slots=True)
class Left:
    """What is known of one image.

    Attributes:
        manifest: its stack, and which layers are dirty.
        state: of the dirty layers: dirty; or fenced, where the image has gone on without them.
        dirty_bytes: of each layer that had some when it was closed; None where that is not known.
    """

    manifest: Manifest
    state: LayerState
    dirty_bytes: Mapping[int, int] | None = None


class LeftDirty:
    """Knows the images that this host left dirty, as of the last look."""

    def __init__(self, backend: Backend, store: StateStore) -> None:
        self._backend = backend
        self._store = store
        self._known: Mapping[str, Left] = {}
        self._looking = trio.Lock()
        # Of its own, so that a state directory that hangs takes no thread from anything else.
        self._thread = trio.CapacityLimiter(1)

    def of(self, info: ImageInfo) -> Left | None:
        """Return what the last look found of an image; None where nothing of it is dirty."""
        return self._known.get(info.key)

    async def look(self) -> None:
        """Find out anew. Where the state directory or the backend hangs or fails, what was known stays."""
        with trio.move_on_after(PATIENCE):
            async with self._looking:
                try:
                    self._known = await self._found()
                except (FusecacheError, OSError) as error:
                    log.warning("which images were left dirty is not known anew: %s", error)

    async def held(self, images: Callable[[], Awaitable[Sequence[ImageInfo]]]) -> Sequence[ImageInfo]:
        """Return those of *images* that hold dirty data on this host by their own records, under whatever name.

        Where no manifest of this host is dirty there are none, and the backend, which may be away, is not asked.

        Raises:
            FusecacheError, OSError: the state directory or the backend does not say.
        """
        host, dirty = await self._in_thread(self._manifests)
        return await held_here(self._backend, host, await images()) if dirty else ()

    async def in_other_hands(self, info: ImageInfo) -> bool:
        """Say whether another process of this host, another mount for example, has the image open as it seems."""
        await self.look()
        left = self.of(info)
        if left is None:
            return False
        return await self._in_thread(opened_elsewhere, self._store.directory, Identity(left.manifest.identity))

    async def _found(self) -> Mapping[str, Left]:
        host, images = await self._in_thread(self._manifests)
        found: dict[str, Left] = {}
        for image in filter(lambda image: image.name, images):
            try:
                info = await self._backend.lookup(image.name)
                state = standing(image, await self._backend.read_record(image.name), host)
            except (FusecacheError, OSError) as error:
                # Another backend's perhaps: mounts share the state directory.
                log.debug("image %r, which was left dirty, is not found: %s", image.name, error)
                continue
            if state is not None:
                found[info.key] = Left(image.manifest, state, image.dirty_bytes)
        return found

    def _manifests(self) -> tuple[str, Sequence[DirtyImage]]:
        """Return this host's machine-id, and its manifests that are dirty; blocks."""
        return self._store.host(), list(dirty_images(self._store.directory))

    async def _in_thread(self, work: Callable[..., Result], *args: Any) -> Result:
        return await trio.to_thread.run_sync(work, *args, abandon_on_cancel=True, limiter=self._thread)


def standing(image: DirtyImage, record: ImageRecord | None, host: str) -> LayerState | None:
    """Return what a dirty manifest of *host* is worth beside the record of an image of that name. Pure.

    Returns:
        DIRTY where the record says the same; FENCED where it is of a later epoch; None where it says that nothing is
        dirty, or speaks of another image.
    """
    if record is None:
        return None
    if record.epoch > image.manifest.epoch:
        return LayerState.FENCED
    if record.holder != host:
        return None
    try:
        same = decode(record.manifest.encode()).identity == image.manifest.identity
    except CorruptState:
        return None
    return LayerState.DIRTY if same else None
