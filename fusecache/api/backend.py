"""The contract of a backend: the place where images live.

Owns how images are found, created and opened. It must not know layers, files or FUSE.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio

from fusecache.api.errors import NotSupported
from fusecache.api.identity import Identity
from fusecache.api.volume import Volume


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What can be told of an image without opening it.

    Attributes:
        name: the image's name, which is the file's name.
        key: tells images apart and survives a rename, without writing anything to the image. Inode numbers derive
        from it.
        size: length in bytes.
        allocated: bytes that take space, or None where that is not cheap to know.
        mtime_ns: time of the last change, nanoseconds since the epoch; 0 where unknown.
        read_only: the image can be opened for reading only.
        snapshot: it is a snapshot of an image: never changes, and is looked up and opened like an image, no more.
    """

    name: str
    key: str
    size: int
    allocated: int | None = None
    mtime_ns: int = 0
    read_only: bool = False
    snapshot: bool = False


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What an image's own metadata says of the layers above it: the authority, of which local manifests are copies.

    An image without a record was never dirty, and its epoch is the first.

    Attributes:
        epoch: raised whenever another host takes the image over or discards its layers.
        holder: the machine-id of the host whose layers hold dirty data of the image; None where all is clean.
        holder_name: that host's name, for messages.
        manifest: a copy of the holder's manifest, as text; empty where there is none.
    """

    epoch: int
    holder: str | None = None
    holder_name: str = ""
    manifest: str = ""


class Claim(Protocol):
    """The right of this host and process to an image, asked for by the backend while it opens one.

    Attributes:
        host: this host's machine-id.
        take_over: whoever asked for the image says that the host which holds dirty data of it must not go on.
    """

    @property
    def host(self) -> str: ...

    @property
    def take_over(self) -> bool: ...

    async def __call__(self, identity: Identity, client: str, patience: float = 0.0) -> Sequence[str]:
        """Take this host's own lock on the image, and note durably that the backend's lock will be *client*'s.

        The backend calls this at most once, as soon as it knows the identity and before it takes or breaks any lock
        that others see. The host's lock is held until the image is closed.

        Args:
            client: how the backend's lock will name its owner; empty where locks end with their process.
            patience: seconds to wait for what an earlier open of this process still keeps; see :meth:`keep`.

        Returns:
            The clients noted by processes of this host that are gone for certain: what these hold may be taken at
            once. Of nobody else may a lock be taken that is alive.

        Raises:
            ImageBusy: another process of this host has the image open.
            FusecacheError: EIO, this process had it open before, and keeps it longer than *patience*.
        """

    def keep(self) -> Callable[[], None]:
        """Hold this host's lock, and keep our client on record, until the returned function is called; any thread.

        For a lock of the backend's that cannot be given up before the open ends: as long as it may be ours, the next
        process must find out who has it. Where it is never given up, the claim ends with the process. The next open
        of this process waits for it.
        """


class BackendImage(Volume):
    """An open image of a backend, held under the backend's exclusive lock until it is closed.

    An image or snapshot that takes no lock is ``read_only``, never claimed, and has no layers and no record.

    Attributes:
        identity: compared with every durable record about the image.
        durable_identity: the identity survives a copy of the backend to another place and the reuse of inode
            numbers; without it no layer may keep dirty data for the image.
        cacheable: what was read stays true until the image is closed, so the kernel may keep it.
        note: one line for people where something is not as usual, and what to do about it; otherwise empty.

    **Losing the lock** to somebody else (a cluster's administrator, another host's failover): every later change
    raises :class:`VolumeReadOnly`, every read an error with EIO, and one event says so.
    """

    identity: Identity
    durable_identity: bool = True
    cacheable: bool = True
    note: str = ""

    async def until_lost(self) -> None:
        """Return when the lock has been lost; never where that cannot happen."""
        await trio.sleep_forever()

    async def clones(self) -> Sequence[str]:
        """Return the names of images that need this one to be opened: none may while its guard is on."""
        return ()

    @abstractmethod
    async def info(self) -> ImageInfo:
        """Return the image's present description, under its present name.

        Raises:
            ImageGone: the image was removed behind us.
        """

    @abstractmethod
    async def record(self) -> ImageRecord | None:
        """Return the record in the image's own metadata; None where there never was one.

        Raises:
            CorruptState: it does not parse.
        """

    @abstractmethod
    async def set_record(self, record: ImageRecord, *, guard: bool) -> None:
        """Replace the record, durably and at once: a crash leaves the old one or the new one, each with its guard.

        Args:
            guard: while the record names a holder, keep every program that does not know of it from opening the
                image, where the backend can. A record without a holder lifts the guard.

        Raises:
            VolumeReadOnly: the image is not held under its lock (any more).
        """

    async def check_snapshot(self, name: str) -> None:
        """Raise what :meth:`make_snapshot` would raise for *name* as things are now. Changes nothing; waits for an
        earlier one of that name as it does."""
        raise NotSupported("this backend takes no snapshots")

    async def make_snapshot(self, name: str) -> None:
        """Make a snapshot of the image as it is, durably; :meth:`Backend.lookup` finds it at once.

        It holds every change that was acknowledged before the call. The caller sees to it that none is under way; no
        layer is asked, so what layers above hold is not in it. Works whether or not the image's guard is on.

        A cancellation, or a backend that does not answer in time, leaves the snapshot made or not; one that is made
        late is removed again, if the process lives then. Until that is settled the name is neither free nor taken, and
        the next call for it waits: a snapshot that a caller was told of, as made or as there, is not removed by this.

        Args:
            name: of the snapshot, not of the file that shows it.

        Raises:
            NotSupported: the backend has no snapshots.
            BadCommand: no snapshot of this image can have that name; the message says what is allowed.
            ImageExists: the image has a snapshot of that name.
            VolumeReadOnly: the image is not held under its lock (any more).
            FusecacheError: EIO, the backend did not answer in time, or has not yet settled an earlier one.
        """
        raise NotSupported("this backend takes no snapshots")


class Backend(ABC):
    """A place of images.

    All methods are safe to call from many tasks at once. A cancelled ``create``, ``rename`` or ``remove`` happened
    or not, never half.

    Attributes:
        description: for people and for ``status``; for example ``directory:/var/lib/images``.
    """

    description: str

    @abstractmethod
    async def list(self) -> Sequence[ImageInfo]:
        """Return all images, in any order. Writes nothing."""

    @abstractmethod
    async def lookup(self, name: str) -> ImageInfo:
        """Return the image of that name. Writes nothing.

        Raises:
            ImageNotFound: there is none.
        """

    async def snapshots(self, name: str) -> Sequence[ImageInfo]:
        """Return the snapshots of an image, in any order, each under the name by which it is looked up and opened.

        Raises:
            ImageNotFound: there is no such image.
        """
        return ()

    @abstractmethod
    async def read_record(self, name: str) -> ImageRecord | None:
        """Return the record in an image's metadata without opening it, whoever holds it; None where there is none.

        Raises:
            ImageNotFound: there is no such image.
            CorruptState: the record does not parse.
        """

    @abstractmethod
    def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AbstractAsyncContextManager[BackendImage]:
        """Open an image under its exclusive lock; leaving the context closes it and gives the lock up.

        The lock of a former owner that is gone is taken away from it, the lock of a live one never.

        Args:
            claim: see there.
            read_only: refuse changes.
            dedicated: a layer may keep dirty data of the image: what happens to other images' locks must not touch
                it.

        Entering raises:
            ImageNotFound: there is none.
            ImageBusy: another owner, named in the message, holds the lock; or the record names another host as the
                holder of dirty data, and *claim* does not take over.
        """

    @abstractmethod
    async def create(self, name: str, size: int) -> ImageInfo:
        """Create an image that reads as zeroes, durably.

        Raises:
            ImageExists: the name is taken.
        """

    @abstractmethod
    async def rename(self, old: str, new: str) -> None:
        """Give an image another name, durably; an image named *new* is never replaced.

        Raises:
            ImageNotFound, ImageExists
        """

    @abstractmethod
    async def remove(self, name: str) -> None:
        """Remove an image, durably.

        Raises:
            ImageNotFound: there is none.
            ImageBusy: somebody has it open.
        """
