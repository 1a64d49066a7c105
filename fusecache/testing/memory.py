"""Images in memory: the volume and the backend that need no disk.

Owns a complete and strict implementation of the backend's contract, for tests of whatever stands above. It must not
know layers.

Strict means: requests outside the contract are refused, PENDING attempts take effect only when they end, and buffers
lent by a read attempt are overwritten at the next request, so that a caller who keeps them too long is found out.
"""

import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from fusecache.api.backend import Backend, BackendImage, Claim, ImageInfo, ImageRecord
from fusecache.api.errors import BadCommand, ImageBusy, ImageExists, ImageNotFound, VolumeClosed, VolumeReadOnly
from fusecache.api.identity import Identity
from fusecache.api.ranges import Extent
from fusecache.api.volume import DECLINED, DONE, PENDING, Attempt, Buffers, Done, ReadDone, ReadOutcome
from fusecache.testing.requests import AttemptMode, Request, check_request
from fusecache.testing.sparse import SparseBytes

T = TypeVar("T")

_keys = itertools.count(1)
_POISON = 0xDB


@dataclass(eq=False)
class MemoryImage:
    """What stays of an image while nobody has it open."""

    name: str
    content: SparseBytes
    key: str = field(default_factory=lambda: str(next(_keys)))
    identity: Identity = field(default_factory=lambda: Identity(f"memory:{uuid.uuid4()}"))
    owner: str | None = None
    record: ImageRecord | None = None
    changes: int = 0
    snapshots: dict[str, "MemoryImage"] = field(default_factory=dict)
    original: "MemoryImage | None" = None

    def info(self) -> ImageInfo:
        """Describe the image; its time of change is a count of changes."""
        return ImageInfo(
            name=self.name if self.original is None else f"{self.original.name}@{self.name}",
            key=self.key,
            size=self.content.size,
            allocated=self.content.allocated,
            mtime_ns=self.changes,
            read_only=self.original is not None,
            snapshot=self.original is not None,
        )


class MemoryVolume(BackendImage):
    """An image in memory that remembers its holes.

    Args:
        size: length of a new image, which reads as zeroes.
        alignment: requests that do not keep to it raise :class:`~fusecache.api.errors.Misaligned`.
        attempts: what every ``try_`` method answers. ``"pending"`` attempts take effect and end at the loop's next
            turn.
        image: an image that exists already, in place of a new one.
        read_only: refuse changes.
    """

    def __init__(
        self,
        size: int = 0,
        *,
        alignment: int = 1,
        attempts: AttemptMode = "declined",
        image: MemoryImage | None = None,
        read_only: bool = False,
    ) -> None:
        self.image = image or MemoryImage("image", SparseBytes(size))
        self.identity = self.image.identity
        self.size = self.image.content.size
        self.alignment = alignment
        self.preferred_io = max(65536, alignment)
        self.attempts = attempts
        self.read_only = read_only
        self._lent: bytearray | None = None
        self._closed = False

    @property
    def content(self) -> SparseBytes:
        """The bytes, to be looked at by tests."""
        return self.image.content

    def close(self) -> None:
        """Refuse every later request."""
        self._closed = True
        self._take_back()

    async def read(self, offset: int, length: int) -> Buffers:
        return [await self._run(Request("read", offset, length), lambda: self.content.read(offset, length))]

    async def write(self, offset: int, data: memoryview) -> None:
        await self._run(Request("write", offset, len(data)), lambda: self._write(offset, data))

    async def write_zeroes(self, offset: int, length: int) -> None:
        await self._run(Request("write_zeroes", offset, length), lambda: self._write(offset, bytes(length)))

    async def discard(self, offset: int, length: int) -> None:
        await self._run(Request("discard", offset, length), lambda: self._punch(offset, length))

    async def flush(self) -> None:
        await self._run(Request("flush"), lambda: None)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._run(Request("extents", offset, length), lambda: self.content.extents(offset, length))

    async def resize(self, size: int) -> None:
        await self._run(Request("resize", 0, size), lambda: self._resize(size))

    async def info(self) -> ImageInfo:
        await trio.lowlevel.checkpoint()
        return self.image.info()

    async def record(self) -> ImageRecord | None:
        await trio.lowlevel.checkpoint()
        return self.image.record

    async def set_record(self, record: ImageRecord, *, guard: bool) -> None:
        """Nobody else can reach the image, so there is nothing to guard."""
        if self._closed:
            raise VolumeClosed("found set_record, allowed on a closed volume: nothing")
        if self.read_only:
            raise VolumeReadOnly("found set_record, allowed on a volume opened for reading: no change")
        await trio.lowlevel.checkpoint()
        self.image.record = record

    async def check_snapshot(self, name: str) -> None:
        """Refuse a name with which no file could show the snapshot."""
        if self._closed:
            raise VolumeClosed("found a snapshot, allowed on a closed volume: nothing")
        if self.read_only:
            raise VolumeReadOnly("found a snapshot, allowed on a volume opened for reading: no change")
        if not 0 < len(name) < 100 or set(name) & set("@/\0"):
            raise BadCommand(f"found the snapshot name {name!r}, allowed: 1 to 99 characters but '@', '/' and NUL")
        if name in self.image.snapshots:
            raise ImageExists(f"found a snapshot {name!r}, allowed: a name that is not taken")
        await trio.lowlevel.checkpoint()

    async def make_snapshot(self, name: str) -> None:
        await self.check_snapshot(name)
        self.image.snapshots[name] = MemoryImage(name, deepcopy(self.content), original=self.image)

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        self._enter(Request("read", offset, length))
        if self.attempts == "declined":
            return DECLINED
        if self.attempts == "pending":
            _soon(lambda: done(None, [self.content.read(offset, length)]))
            return PENDING
        self._lent = bytearray(self.content.read(offset, length))
        return [memoryview(self._lent)]

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        return self._attempt(Request("write", offset, len(data)), lambda: self._write(offset, data), done)

    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        request = Request("write_zeroes", offset, length)
        return self._attempt(request, lambda: self._write(offset, bytes(length)), done)

    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        return self._attempt(Request("discard", offset, length), lambda: self._punch(offset, length), done)

    def try_flush(self, done: Done) -> Attempt:
        return self._attempt(Request("flush"), lambda: None, done)

    async def _run(self, request: Request, apply: Callable[[], T]) -> T:
        self._enter(request)
        await trio.lowlevel.checkpoint()
        return apply()

    def _attempt(self, request: Request, apply: Callable[[], None], done: Done) -> Attempt:
        self._enter(request)
        if self.attempts == "declined":
            return DECLINED
        if self.attempts == "pending":
            _soon(lambda: _end(apply, done))
            return PENDING
        apply()
        return DONE

    def _enter(self, request: Request) -> None:
        if self._closed:
            raise VolumeClosed(f"found {request}, allowed on a closed volume: nothing")
        check_request(self, request)
        self._take_back()

    def _take_back(self) -> None:
        if self._lent is not None:
            self._lent[:] = bytes([_POISON]) * len(self._lent)
            self._lent = None

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        self.content.write(offset, data)
        self.image.changes += 1

    def _punch(self, offset: int, length: int) -> None:
        self.content.punch(offset, length)
        self.image.changes += 1

    def _resize(self, size: int) -> None:
        self.content.resize(size)
        self.size = size
        self.image.changes += 1


class MemoryBackend(Backend):
    """A place of images in memory.

    Args:
        alignment, attempts: as of :class:`MemoryVolume`, for every image.
        names: images to begin with, each with its size.
    """

    def __init__(
        self, *, alignment: int = 1, attempts: AttemptMode = "declined", names: dict[str, int] | None = None
    ) -> None:
        self.description = "memory"
        self.alignment = alignment
        self.attempts: AttemptMode = attempts
        self.images = {name: MemoryImage(name, SparseBytes(size)) for name, size in (names or {}).items()}

    async def list(self) -> Sequence[ImageInfo]:
        await trio.lowlevel.checkpoint()
        return [image.info() for image in self.images.values()]

    async def lookup(self, name: str) -> ImageInfo:
        await trio.lowlevel.checkpoint()
        return self._image(name).info()

    async def snapshots(self, name: str) -> Sequence[ImageInfo]:
        await trio.lowlevel.checkpoint()
        return [snapshot.info() for snapshot in self._image(name).snapshots.values()]

    async def read_record(self, name: str) -> ImageRecord | None:
        await trio.lowlevel.checkpoint()
        return self._image(name).record

    @asynccontextmanager
    async def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AsyncIterator[BackendImage]:
        await trio.lowlevel.checkpoint()
        image = self._image(name)
        if image.original is not None:
            yield MemoryVolume(alignment=self.alignment, attempts=self.attempts, image=image, read_only=True)
            return
        self._require_unowned(image)
        volume = MemoryVolume(alignment=self.alignment, attempts=self.attempts, image=image, read_only=read_only)
        image.owner = trio.lowlevel.current_task().name
        try:
            await claim(image.identity, "")
            self._require_held_here(image, claim)
            yield volume
        finally:
            volume.close()
            image.owner = None

    async def create(self, name: str, size: int) -> ImageInfo:
        await trio.lowlevel.checkpoint()
        self._require_free(name)
        image = self.images[name] = MemoryImage(name, SparseBytes(size))
        return image.info()

    async def rename(self, old: str, new: str) -> None:
        await trio.lowlevel.checkpoint()
        image = self._image(old)
        self._require_free(new)
        self.images[new] = self.images.pop(old)
        image.name = new

    async def remove(self, name: str) -> None:
        await trio.lowlevel.checkpoint()
        self._require_unowned(self._image(name))
        del self.images[name]

    def _image(self, name: str) -> MemoryImage:
        if name in self.images:
            return self.images[name]
        of, at, snapshot = name.partition("@")
        if at and of in self.images and snapshot in self.images[of].snapshots:
            return self.images[of].snapshots[snapshot]
        raise ImageNotFound(f"found no image {name!r}, there are: {sorted(self.images)}")

    def _require_free(self, name: str) -> None:
        if name in self.images:
            raise ImageExists(f"found an image {name!r}, allowed: a name that is not taken")

    def _require_held_here(self, image: MemoryImage, claim: Claim) -> None:
        record = image.record
        if record is not None and record.holder not in (None, claim.host) and not claim.take_over:
            raise ImageBusy(f"image {image.name!r} is dirty on host {record.holder_name} ({record.holder})")

    def _require_unowned(self, image: MemoryImage) -> None:
        if image.owner is not None:
            raise ImageBusy(f"image {image.name!r} is open in task {image.owner!r}")


def _end(apply: Callable[[], None], done: Done) -> None:
    apply()
    done(None)


def _soon(call: Callable[[], object]) -> None:
    trio.lowlevel.current_trio_token().run_sync_soon(call)
