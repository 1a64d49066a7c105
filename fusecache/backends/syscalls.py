"""Linux system calls that Python's standard library does not have.

Owns their calling convention through the C library. It must not know what they are used for.

Each releases the interpreter lock while it runs, is repeated when a signal interrupts it, and raises OSError.
"""

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Any, Final

PUNCH_HOLE: Final = 0x02
"""``FALLOC_FL_PUNCH_HOLE`` of linux/falloc.h."""
ZERO_RANGE: Final = 0x10
"""``FALLOC_FL_ZERO_RANGE`` of linux/falloc.h."""
_KEEP_SIZE: Final = 0x01
_RENAME_NOREPLACE: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate64.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Call ``fallocate(2)`` with *mode* and ``FALLOC_FL_KEEP_SIZE``."""
    _checked(_libc.fallocate64, fd, mode | _KEEP_SIZE, offset, length)


def rename_noreplace(directory: int, old: str, new: str) -> None:
    """Rename inside the directory behind a descriptor, atomically refusing to replace (``renameat2(2)``).

    Raises:
        OSError: EEXIST when *new* exists; EINVAL when the file system cannot rename without replacing.
    """
    _checked(_libc.renameat2, directory, os.fsencode(old), directory, os.fsencode(new), _RENAME_NOREPLACE)


def _checked(function: Callable[..., int], *args: Any) -> None:
    while function(*args) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
