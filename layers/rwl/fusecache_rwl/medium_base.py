"""The contract of a medium: the bytes of one pool file, and when they are durable.

Owns what every engine promises. It must not know records, images, or how an engine keeps its promises.

**Positions.** A log position only ever grows and is a multiple of 64. Its place in the pool file is ``RING_OFFSET +
position % ring_size``. What is appended or read at once never crosses the ring's end.

**What may be trusted.** What a medium returns right after it was opened is durable: opening makes it so, or drops it.

**Threads.** All methods belong to the event loop's thread, but for ``read_blocking`` and ``read_superblocks``, which
any thread may call. Each ``done`` is called exactly once, on the loop's thread, never from inside the call; only one
whose work a hanging kernel still holds at :meth:`Medium.close` may be called later, or never.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Final, Literal, TypeAlias

from fusecache.api import Buffer, Done
from fusecache_rwl.format import RING_OFFSET

PAGE: Final = 4096
"""The ring's size is a multiple of it, in bytes."""

Media: TypeAlias = Literal["pmem", "ssd"]
ReadEnd: TypeAlias = Callable[[BaseException | None, bytes], None]
"""Receives None and the bytes, or the error and none."""


class Medium(ABC):
    """One open pool file.

    Args:
        size: the pool file's length in bytes.

    Attributes:
        media: what the engine is made for.
        durability: what makes an append durable, for people.
        persists: an append is durable when it returns. Otherwise it is in the kernel's page cache then: it survives the
            death of the process, and loss of power after :meth:`sync`.
        size: of the pool file, in bytes.
        ring_size: of the ring, in bytes; a multiple of 4096.
    """

    media: ClassVar[Media]
    durability: ClassVar[Literal["pmem", "fdatasync"]]
    persists: ClassVar[bool]

    def __init__(self, size: int) -> None:
        self.size = size
        self.ring_size = (size - RING_OFFSET) // PAGE * PAGE

    @abstractmethod
    def append(self, position: int, header: bytes, data: Buffer | None) -> None:
        """Store a record of *header* (64 bytes) and *data* (in bytes) at a log position.

        Everything up to the next multiple of 4096 after the record is undefined afterwards.

        Raises:
            OSError: the record is stored in any part, and nothing is promised about its place; earlier ones are as
                they were. Once a sync has failed, every append raises and stores nothing.
        """

    @abstractmethod
    def sync(self, done: Done) -> bool:
        """Make everything appended before the call durable.

        Returns:
            True: it is already, and ``done`` is never called. False: ``done(error)`` is called. After one failure
            every later sync fails as well, up to :meth:`renew`: the kernel drops what it could not write, and tells
            once.
        """

    @abstractmethod
    def read_now(self, position: int, length: int) -> memoryview | None:
        """Return *length* bytes, valid until the next call; None where that would wait for the device.

        Raises:
            OSError: the bytes cannot be had.
        """

    @abstractmethod
    def read(self, position: int, length: int, done: ReadEnd) -> None:
        """Read *length* bytes on a thread, then call ``done(None, data)``, or ``done(error, b"")``.

        Nothing may be appended at that place until then.
        """

    @abstractmethod
    def read_blocking(self, position: int, length: int) -> Buffer:
        """Return *length* bytes, which stay as they are until something is appended there. May wait for the device.

        Raises:
            OSError: the bytes cannot be had.
        """

    @abstractmethod
    def read_superblocks(self) -> tuple[bytes, bytes]:
        """Return both superblocks, of 4096 bytes each, whatever they hold. May wait for the device."""

    @abstractmethod
    def write_superblock(self, data: bytes, at: int, done: Done) -> None:
        """Write 4096 bytes at offset 0 or 4096 of the pool file; they are durable when ``done(None)`` is called.

        Until then, and after an error, a crash leaves the old bytes, the new ones, or a mixture: what *data* says must
        be true already, and the other superblock valid. One at a time.
        """

    @abstractmethod
    def renew(self) -> None:
        """Forget that a store or a sync failed, and with it all that was stored: nobody wants it any more.

        What is stored from now on is durable when a sync says so.
        """

    @abstractmethod
    async def close(self) -> None:
        """Give up the pool file and its lock. Syncs nothing: what was appended is in the page cache.

        What is under way is waited for, even when cancelled, but for 3 seconds only. A thread that has not ended by
        then hangs in the kernel and is left behind; the file stays locked until it returns.
        """
