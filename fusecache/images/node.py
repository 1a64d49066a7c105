"""What the FUSE side serves: directories and files, whoever stands behind them.

Owns the interface between FUSE (which knows only nodes and open files) and what is shown: images, and the control
directory. It must not know FUSE's protocol, images' stacks or control commands.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from fusecache.api.errors import FusecacheError, NotPermitted, NotSupported
from fusecache.api.volume import Attempt, Buffers, Done, ReadDone


class GivenUp(FusecacheError):
    """Ends the wait for a write that is still under way: the image's stack came down (EIO).

    Its data are still in use: they stay unchanged until ``done`` is called again, which may be never.
    """


@dataclass(slots=True)
class Attributes:
    """What ``stat`` shows. Times in nanoseconds since the epoch.

    Attributes:
        mode: type and permission bits.
        blocks: allocated units of 512 bytes.
        timeout: seconds the kernel may believe these attributes, and the name that led here.
    """

    inode: int
    mode: int
    size: int = 0
    blocks: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    nlink: int = 1
    timeout: float = 1.0


class OpenFile(ABC):
    """An open file. The data plane calls its methods on the loop's thread, one request at a time.

    ``read``, ``write``, ``zero``, ``discard`` and ``flush`` are attempts as in :mod:`fusecache.api.volume`, except
    that they never decline, and that the ``done`` of a write is called twice where the first call is :class:`GivenUp`.

    Attributes:
        direct: the kernel keeps no pages of this file for this opener.
        keep_cache: pages the kernel kept from earlier opens are still true.
        parallel: several writes to this file may be in flight, beside openers that are not *direct* (image files).
        creator: may make the file longer, as it made it, or has been the first to make one longer that was empty.
        interruptible_writes: an interrupted ``write`` may be answered EINTR while it goes on.
    """

    direct: bool = False
    keep_cache: bool = False
    parallel: bool = False
    creator: bool = False
    interruptible_writes: bool = False

    @property
    @abstractmethod
    def end(self) -> int:
        """The first offset that cannot be read, and from which on writes need :meth:`clip`."""

    def clip(self, offset: int, length: int) -> int:
        """Say how much of a write that reaches past :attr:`end` is accepted; at least one byte.

        Raises:
            OutOfRange: none of it.
        """
        return length

    @abstractmethod
    def read(self, offset: int, length: int, done: ReadDone) -> Buffers | Attempt:
        """Read inside ``[0, end)``; the buffers, or PENDING."""

    def write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        """Write *data*; DONE or PENDING."""
        raise NotPermitted("this file is not written")

    def zero(self, offset: int, length: int, done: Done) -> Attempt:
        """Make a range read as zeroes and keep its space."""
        raise NotSupported("this file has no ranges")

    def discard(self, offset: int, length: int, done: Done) -> Attempt:
        """Make a range read as zeroes and free its space."""
        raise NotSupported("this file has no ranges")

    def allocate(self, offset: int, length: int, done: Done, *, keep_size: bool) -> Attempt:
        """Make sure that a range can be written; grows the file where *keep_size* is false."""
        raise NotSupported("this file has no ranges")

    async def resize(self, size: int) -> None:
        """Set the length, as ``ftruncate`` on this opener's descriptor."""
        raise NotPermitted("this file is not resized")

    def flush(self, done: Done) -> Attempt:
        """Make what was acknowledged durable; DONE or PENDING."""
        return Attempt.DONE

    async def seek(self, offset: int, *, hole: bool) -> int:
        """Return the next offset, not below *offset*, that lies in a hole (or in data).

        Raises:
            OSError: ENXIO where there is none.
        """
        raise NotSupported("this file has no holes")

    @abstractmethod
    def close(self) -> None:
        """The opener is gone. Called once; never waits."""


class Node(ABC):
    """Anything with a name.

    Attributes:
        inode: the number users see; stable over renames and restarts.
    """

    inode: int

    @abstractmethod
    async def attributes(self) -> Attributes:
        """Return what ``stat`` shows now."""

    async def resize(self, size: int) -> None:
        """Truncate or grow."""
        raise NotPermitted("this cannot be resized")


class FileNode(Node):
    """A file.

    Attributes:
        fresh_lookups: every lookup gets a kernel inode of its own, so that two writers never wait for each other
        in the kernel,
            beyond the reach of any signal.
    """

    fresh_lookups: bool = False

    @abstractmethod
    async def open(self, flags: int) -> OpenFile:
        """Open with the flags of ``open(2)``; O_TRUNC has no effect."""


class DirectoryNode(Node):
    """A directory."""

    @abstractmethod
    async def lookup(self, name: str) -> Node:
        """Return the entry of that name.

        Raises:
            ImageNotFound: there is none.
        """

    @abstractmethod
    async def entries(self) -> Sequence[tuple[str, Node]]:
        """Return all entries, without ``.`` and ``..``, sorted by name."""

    async def create(self, name: str, flags: int) -> tuple[FileNode, OpenFile]:
        """Create a file and open it with the flags of ``open(2)``; without O_EXCL, what has the name by now."""
        raise NotPermitted("nothing is created here")

    async def unlink(self, name: str) -> None:
        """Remove a file."""
        raise NotPermitted("nothing is removed here")

    async def rename(self, old: str, new: str) -> None:
        """Rename a file inside this directory; an existing *new* is never replaced."""
        raise NotPermitted("nothing is renamed here")
