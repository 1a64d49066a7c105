"""What a request to a volume is, and whether a caller may make it.

Owns the names of a volume's operations and the caller's side of the contract. Pure; it must not know any volume in
particular.
"""

from typing import Final, Literal, NamedTuple, TypeAlias

from fusecache.api.errors import Misaligned, OutOfRange, VolumeReadOnly
from fusecache.api.ranges import is_aligned
from fusecache.api.volume import Volume

Operation: TypeAlias = Literal["read", "write", "write_zeroes", "discard", "flush", "extents", "resize"]
AttemptMode: TypeAlias = Literal["done", "pending", "declined"]
"""What a test volume answers to attempts: finished at once, finished later, or not taken."""

CHANGES: Final[frozenset[Operation]] = frozenset(("write", "write_zeroes", "discard"))
"""The operations that change the bytes of their range."""
READ: Final[frozenset[Operation]] = frozenset(("read",))
FLUSH: Final[frozenset[Operation]] = frozenset(("flush",))
RANGED: Final[frozenset[Operation]] = CHANGES | {"read", "extents"}
"""The operations on a range."""
OPERATIONS: Final[frozenset[Operation]] = RANGED | {"flush", "resize"}


class Request(NamedTuple):
    """One request: a ``flush`` has no range, and a ``resize`` has the new size as its length."""

    operation: Operation
    offset: int = 0
    length: int = 0

    @property
    def end(self) -> int:
        """The first byte after the range."""
        return self.offset + self.length


def check_request(volume: Volume, request: Request) -> None:
    """Check the caller's side of the contract.

    Raises:
        VolumeReadOnly: a change to a volume that is for reading.
        OutOfRange: an empty range, or one that reaches outside the volume.
        Misaligned: a range that does not keep to the volume's alignment; ``extents`` may describe any range.
    """
    if volume.read_only and (request.operation in CHANGES or request.operation == "resize"):
        raise VolumeReadOnly(f"found {request}, allowed on a read-only volume: read, extents, flush")
    if request.operation not in RANGED:
        return
    if request.offset < 0 or request.length < 1 or request.end > volume.size:
        raise OutOfRange(f"found {request}, allowed: at least one byte inside [0, {volume.size})")
    if request.operation != "extents" and not is_aligned(request.offset, request.length, volume.alignment, volume.size):
        raise Misaligned(f"found {request}, allowed: multiples of {volume.alignment}, or an end at {volume.size}")


def conflict(a: Request, b: Request) -> bool:
    """Say whether two requests must never be in flight together: they share a byte and one of them changes it."""
    if "resize" in (a.operation, b.operation):
        return True
    if a.operation not in RANGED or b.operation not in RANGED:
        return False
    changes = a.operation in CHANGES or b.operation in CHANGES
    return changes and a.offset < b.end and b.offset < a.end
