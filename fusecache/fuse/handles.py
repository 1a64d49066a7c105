"""Open files by their handle.

Owns the table from the kernel's file handles to open files, and its copy in the slot memory. It must not know requests.
"""

import errno
from typing import NoReturn

from fusecache.fuse.slots import SlotMemory
from fusecache.images.node import OpenFile


class _Files(dict[int, OpenFile]):
    def __missing__(self, handle: int) -> NoReturn:
        raise OSError(errno.EBADF, f"file handle {handle:#x} is not open")


class Handles:
    """The open files of a mount.

    Attributes:
        files: handle to open file, or OSError EBADF; the data plane reads it directly.
    """

    def __init__(self, memory: SlotMemory) -> None:
        self.files: dict[int, OpenFile] = _Files()
        self._memory = memory

    def add(self, file: OpenFile, nodeid: int, flags: int, *, creator: bool = False) -> int:
        """Give *file* a handle; where there is none left, close it and raise OSError ENFILE."""
        try:
            handle = self._memory.add_handle(nodeid, flags, creator=creator)
        except OSError:
            file.close()
            raise
        self.files[handle] = file
        return handle

    def close(self, handle: int) -> None:
        """Close the file of a handle, if it has one."""
        file = self.files.pop(handle, None)
        if file is not None:
            self._memory.remove_handle(handle)
            file.close()

    def close_all(self) -> None:
        """Close every file."""
        for handle in tuple(self.files):
            self.close(handle)
