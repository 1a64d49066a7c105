"""Inode numbers of the control directory.

Owns their layout. Pure. A number says nothing but which file it is, and is the same after a restart of the daemon:

==========  =======================================================================================================
bit         meaning
==========  =======================================================================================================
63          1: in the control directory, 0: an image
62          1: a file that takes commands, 0: a report or a directory
61 to 16    of a file that takes commands: a digest of its path
15 to 0     of a file that takes commands: 0, free for a number that tells one lookup of it from the next
61 to 0     of a report or a directory: a digest of its path; 0 for the control directory itself
==========  =======================================================================================================

In the path an image stands by its key, so a rename of the image keeps the numbers.
"""

import hashlib
from typing import Final

CONTROL: Final = 1 << 63
COMMAND: Final = 1 << 62
LOOKUP_BITS: Final = 16

ROOT: Final = CONTROL
"""The control directory itself."""


def report_inode(*path: str) -> int:
    """Return the number of a report or a directory at *path* below the control directory."""
    return CONTROL | _digest(path)


def command_inode(*path: str) -> int:
    """Return the number of a file that takes commands; its lowest :data:`LOOKUP_BITS` bits are zero."""
    return CONTROL | COMMAND | _digest(path) >> LOOKUP_BITS << LOOKUP_BITS


def _digest(path: tuple[str, ...]) -> int:
    # No name holds a NUL, so different paths never join to the same text.
    text = "\0".join(path).encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") & (COMMAND - 1)
