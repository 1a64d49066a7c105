"""The contract of a backend: the place where images live.

Owns how images are found, created and opened. It must not know layers, files or FUSE.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

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
    """

    name: str
    key: str
    size: int
    allocated: int | None = None
    mtime_ns: int = 0
    read_only: bool = False


class BackendImage(Volume):
    """An open image of a backend, held under the backend's exclusive lock until it is closed.

    Attributes:
        identity: compared with every durable record about the image.
        durable_identity: the identity survives a copy of the backend to another place and the reuse of inode
        numbers; without it
            no layer may keep dirty data for the image.
    """

    identity: Identity
    durable_identity: bool = True

    @abstractmethod
    async def info(self) -> ImageInfo:
        """Return the image's present description, under its present name.

        Raises:
            ImageGone: the image was removed behind us.
        """


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

    @abstractmethod
    def open(self, name: str, *, read_only: bool = False) -> AbstractAsyncContextManager[BackendImage]:
        """Open an image under its exclusive lock; leaving the context closes it and gives the lock up.

        Entering raises:
            ImageNotFound: there is none.
            ImageBusy: another owner, named in the message, holds the lock.
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
