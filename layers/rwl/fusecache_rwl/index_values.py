"""What the index stores for a stretch of the image: one integer that is the same for every byte of an extent.

Owns the encoding, and the answers of the index. It must not know how the integers are kept.

==========================  =======================================================================================
value                       meaning
==========================  =======================================================================================
``GAP_VALUE`` (0)           the log has nothing
``SPLIT`` (1)               of a slot in a dense leaf: its sectors differ, see the runs
below ``ZERO_BIT``          data: log position - image offset + ``BIAS``, so that neighbours in an extent are equal
from ``ZERO_BIT``           zeroes: ``ZERO_BIT`` + the position of the record that made them
==========================  =======================================================================================

All four fit 64 bits while images are at most ``MAX_SIZE`` (1 EiB) and positions less than ``MAX_POSITION`` (4 EiB: a
gibibyte written every second for 136 years). A value whose position is below the log's tail is a gap.
"""

from typing import Final

ZERO: Final = -1
"""Answer: zeroes, left by a discard or a write of zeroes."""
GAP: Final = -2
"""Answer: not in the log."""
MIXED: Final = -3
"""Answer of ``find`` only: more than one run."""

MAX_SIZE: Final = 1 << 60
MAX_POSITION: Final = 1 << 62

GAP_VALUE: Final = 0
SPLIT: Final = 1
BIAS: Final = 1 << 61
ZERO_BIT: Final = 1 << 63


def where(value: int, offset: int, tail: int) -> int:
    """The answer for image byte ``offset``, which has ``value``: its log position, ``ZERO`` or ``GAP``."""
    if value >= ZERO_BIT:
        return ZERO if value - ZERO_BIT >= tail else GAP
    position = value - BIAS + offset
    return position if position >= tail else GAP
