"""The contract that backends, layers and whole stacks share: a volume.

Owns the methods of a block device and what each promises. It must not know any implementation, nor who calls.

**Units.** Offsets, lengths and sizes are bytes.

**Ranges.** The caller keeps every request inside ``[0, size)``, of at least one byte, aligned to ``alignment`` (a
request that ends at ``size`` counts as aligned at its end). :class:`fusecache.stack.link.Link` checks this in front
of every volume of a stack, so implementations need not.

**Overlap.** A volume never receives two overlapping requests at once unless both are reads. The open image above the
stack guards that from a request's arrival until its reply is out. An implementation guards only work of its own
making against requests.

**What an acknowledgement promises.** A returned ``write``, ``write_zeroes`` or ``discard`` survives the death of the
process. A returned ``flush`` makes everything acknowledged before it was called survive loss of power.

**Cancellation.** The asynchronous methods may be cancelled at any await. A cancelled ``read`` has no effect. Any
other cancelled method may have been applied wholly, in part or not at all, to the bytes of its own range only;
nothing acknowledged earlier is affected, and nothing of it happens after the call has ended.

**Two speeds, one meaning.** Beside each asynchronous method a volume may offer a synchronous *attempt* for callers on
the hot path, on the event loop's thread. The base class declines them all; see :class:`Attempt`.

**Who owns a buffer.** Data handed to a write stays unchanged until the call returns, or, for an attempt that is
PENDING, until its ``done`` is called; the callee copies what it needs longer. Buffers from an asynchronous or pending
read belong to the caller. Buffers from an attempt that finished at once are the callee's, and valid only until the
caller's next await or attempt on the stack. No method fills a buffer of the caller's.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, Literal, TypeAlias

from fusecache.api.ranges import Extent

Buffer: TypeAlias = bytes | bytearray | memoryview
Buffers: TypeAlias = Sequence[Buffer]


class Attempt(enum.Enum):
    """How an attempt ended.

    An attempt never waits: it may copy memory, and do I/O that is known to end without waiting for a device.
    An attempt that raises is finished, like DONE.
    """

    DONE = "done"
    """Finished; the buffer is no longer needed. An attempt to read returns the buffers in place of this."""
    PENDING = "pending"
    """Under way. ``done`` is called exactly once, on the loop's thread, never from inside the attempt. Until then the
    buffer stays valid and the request cannot be cancelled."""
    DECLINED = "declined"
    """No effect; the caller runs the asynchronous method instead."""


DONE: Final = Attempt.DONE
PENDING: Final = Attempt.PENDING
DECLINED: Final = Attempt.DECLINED

Done: TypeAlias = Callable[[BaseException | None], None]
"""Receives the end of a PENDING attempt: None, or the error."""
ReadDone: TypeAlias = Callable[[BaseException | None, Buffers], None]
"""Receives the end of a PENDING read: None and the buffers, or the error and no buffers."""
ReadOutcome: TypeAlias = Buffers | Literal[Attempt.PENDING, Attempt.DECLINED]


class Volume(ABC):
    """Anything with the semantics of a block device: an image of a backend, a layer, a stack.

    Attributes:
        size: the volume's length. Changes only through :meth:`resize`.
        alignment: offsets and lengths of requests are multiples of it; a power of two. 1 for backends.
        preferred_io: the request size at which the volume is most efficient; a power of two.
        read_only: no method but reads, ``extents`` and ``flush`` is allowed.
    """

    size: int
    alignment: int = 1
    preferred_io: int = 1 << 20
    read_only: bool = False

    @abstractmethod
    async def read(self, offset: int, length: int) -> Buffers:
        """Return buffers that together hold exactly *length* bytes from *offset*.

        Ranges never written, discarded or zeroed read as zeroes.

        Raises:
            FusecacheError: with EIO when the data cannot be had. Wrong data is never returned.
        """

    @abstractmethod
    async def write(self, offset: int, data: memoryview) -> None:
        """Write all of *data* at *offset*. On an error the range holds old and new bytes in any mixture."""

    @abstractmethod
    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zeroes, keeping its space allocated where the volume knows the difference."""

    @abstractmethod
    async def discard(self, offset: int, length: int) -> None:
        """Make the whole range read as zeroes and free its space where possible."""

    @abstractmethod
    async def flush(self) -> None:
        """Return when everything acknowledged before the call survives loss of power. Writes nothing back.

        Raises:
            FusecacheError: only if data acknowledged earlier may not survive.
        """

    @abstractmethod
    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Describe the range: extents in order, without gaps or overlap, that cover exactly ``[offset, offset +
        length)``.

        What cannot be told cheaply is DATA.
        """

    @abstractmethod
    async def resize(self, size: int) -> None:
        """Set the length; what is cut off is gone for good, what is added reads as zeroes. No other request is in
        flight."""

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        """Attempt :meth:`read`; return the buffers when finished at once."""
        return DECLINED

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        """Attempt :meth:`write`."""
        return DECLINED

    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        """Attempt :meth:`write_zeroes`."""
        return DECLINED

    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        """Attempt :meth:`discard`."""
        return DECLINED

    def try_flush(self, done: Done) -> Attempt:
        """Attempt :meth:`flush`."""
        return DECLINED


def joined(buffers: Buffers) -> bytes:
    """Return the bytes of *buffers* in one piece."""
    return b"".join(buffers)
