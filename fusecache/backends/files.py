"""What may be done to the bytes of one open image file, as blocking calls.

Owns the descriptors of an open image, and how each request becomes system calls. It must not know threads, the event
loop, names or locks. Every method may wait for the disk; any thread may call it.

**Two descriptors.** ``fd`` goes through the page cache. With ``direct`` there is a second one, opened with O_DIRECT:
all reads use it (widened to whole blocks, so that no stale page can ever be read), and so do writes of whole blocks.
Other writes, among them the tail of an image of an odd size, go through the page cache, where the kernel merges the
rest of the block. A direct access first writes back and then drops the pages of its blocks, and as requests never
overlap, no block is written both ways at once.
"""

import ctypes
import errno
import logging
import mmap
import os
from typing import Final

from fusecache.api import Buffer, Extent, ExtentKind, FusecacheError
from fusecache.api.errors import ImageGone
from fusecache.backends import syscalls

log = logging.getLogger(__name__)

BLOCK: Final = max(4096, mmap.PAGESIZE)
"""The granularity of direct I/O, in bytes: the largest logical block of today's disks, and a whole page."""

_ZEROES: Final = bytes(1 << 20)
_MOST_EXTENTS: Final = 1024
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class ImageShrank(FusecacheError):
    """The file is shorter than the image: somebody truncated it behind us (EIO)."""


class ImageFile:
    """An open regular file; made from a descriptor, which it owns.

    Args:
        fd: buffered; for reading and writing, or for reading only.
        path: for messages.

    Attributes:
        direct: :meth:`open_direct` was called.
        size: the image's length as we know it; changes only through :meth:`resize`.
    """

    def __init__(self, fd: int, path: str, *, read_only: bool) -> None:
        self.fd = fd
        self.path = path
        self.read_only = read_only
        self.direct = False
        self.size = os.fstat(fd).st_size
        self.failed_flush: OSError | None = None
        self._unsynced_size = False
        self._unsupported: set[int] = set()
        self._direct_fd = -1

    def open_direct(self) -> None:
        """Bypass the page cache from now on.

        Raises:
            OSError: EINVAL when the file system cannot do it.
        """
        flags = (os.O_RDONLY if self.read_only else os.O_RDWR) | os.O_DIRECT | os.O_CLOEXEC
        try:
            # The detour reaches the very file that is locked, whatever its name leads to by now.
            self._direct_fd = os.open(f"/proc/self/fd/{self.fd}", flags)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            text = f"{self.path}: its file system refuses O_DIRECT; allowed here: direct = false"
            raise OSError(errno.EINVAL, text) from error
        self.direct = True

    def close(self) -> None:
        """Close the descriptors, and with them give up the lock."""
        for fd in (self._direct_fd, self.fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._direct_fd = -1

    def describe(self) -> os.stat_result:
        """Return the file's attributes.

        Raises:
            ImageGone: the file has no name any more.
        """
        found = os.fstat(self.fd)
        if found.st_nlink == 0:
            raise ImageGone(f"{self.path} was removed while it was open")
        return found

    def read(self, offset: int, length: int) -> tuple[Buffer]:
        """Return exactly *length* bytes.

        Raises:
            ImageShrank: the file ends before the range does.
            FusecacheError: it does not, and yet the kernel returned less (EIO).
        """
        data = self._read_direct(offset, length) if self.direct else self._read_buffered(offset, length)
        if len(data) < length:
            self._check_length()
            raise FusecacheError(f"{self.path}: a read of {length} bytes at {offset} gave {len(data)}")
        return (data,)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of *data*."""
        if not self.writes_direct(offset, len(data)):
            _write_all(self.fd, data, offset)
            return
        if _address(data) % BLOCK:
            aligned = memoryview(mmap.mmap(-1, len(data)))
            aligned[:] = data
            data = aligned
        _write_all(self._direct_fd, data, offset)

    def writes_direct(self, offset: int, length: int) -> bool:
        """Say whether a write bypasses the page cache; then the kernel may run several side by side."""
        return self.direct and offset % BLOCK == 0 and length % BLOCK == 0

    def discard(self, offset: int, length: int) -> None:
        """Punch a hole; write zeroes where the file system has no holes. The kernel zeroes partial blocks itself."""
        self._clear(syscalls.PUNCH_HOLE, offset, length)

    def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zeroes and keep its space."""
        self._clear(syscalls.ZERO_RANGE, offset, length)

    def flush(self) -> None:
        """Make everything written so far durable.

        After a failure the kernel drops what it could not write and reports it once; so every later flush of this
        open file fails too: its success would be a lie.

        Raises:
            OSError: of ``fdatasync(2)``, now or earlier.
            ImageGone: the file has no name any more: what is durable cannot be reached.
            ImageShrank: the file lost its end, and with it perhaps acknowledged data.
        """
        if (earlier := self.failed_flush) is not None:
            raise OSError(earlier.errno, f"an earlier flush of {self.path} failed: {earlier.strerror}")
        self._check_length()
        try:
            if self._unsynced_size:
                os.fsync(self.fd)
                self._unsynced_size = False
            else:
                os.fdatasync(self.fd)
        except OSError as error:
            self.failed_flush = error
            raise

    def resize(self, size: int) -> None:
        """Set the length. What is added reads as zeroes, whatever lay there before; :meth:`flush` makes it durable."""
        if self._check_length() > self.size:
            os.ftruncate(self.fd, self.size)
        os.ftruncate(self.fd, size)
        self._unsynced_size = True
        self.size = size

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Describe the range from *offset* on, as far as a bounded effort leads; always at least one extent."""
        end = offset + length
        found: list[Extent] = []
        while offset < end and len(found) < _MOST_EXTENTS:
            start = min(self._seek(offset, os.SEEK_DATA, end), end)
            if start > offset:
                found.append(Extent(offset, start - offset, ExtentKind.HOLE))
            if start < end:
                stop = min(self._seek(start, os.SEEK_HOLE, end), end)
                # A file truncated meanwhile can answer with no progress.
                stop = stop if stop > start else end
                found.append(Extent(start, stop - start, ExtentKind.DATA))
                start = stop
            offset = start
        return found

    def _read_buffered(self, offset: int, length: int) -> bytes:
        data = os.pread(self.fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        missing = length - len(data)
        while missing and (data := os.pread(self.fd, missing, offset + length - missing)):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def _read_direct(self, offset: int, length: int) -> memoryview:
        skip = offset % BLOCK
        start = offset - skip
        whole = memoryview(mmap.mmap(-1, skip + length + -(skip + length) % BLOCK))
        got = 0
        while got < skip + length:
            count = os.preadv(self._direct_fd, [whole[got:]], start + got)
            got += count
            # After a part of a block the next read would not be aligned; it comes from the end of the file.
            if not count or count % BLOCK:
                break
        return whole[skip : max(skip, min(got, skip + length))]

    def _clear(self, mode: int, offset: int, length: int) -> None:
        if mode not in self._unsupported:
            try:
                syscalls.fallocate(self.fd, mode, offset, length)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                log.info("%s: fallocate mode %#x: %s; writing zeroes instead", self.path, mode, error.strerror)
                self._unsupported.add(mode)
            else:
                return
        zeroes = memoryview(_ZEROES)
        for at in range(offset, offset + length, len(zeroes)):
            _write_all(self.fd, zeroes[: offset + length - at], at)

    def _seek(self, offset: int, whence: int, end: int) -> int:
        # No one else uses the descriptor's position, and the kernel returns the answer with the call.
        try:
            return os.lseek(self.fd, offset, whence)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return end

    def _check_length(self) -> int:
        length = self.describe().st_size
        if length < self.size:
            raise ImageShrank(f"{self.path} ends at {length} bytes instead of {self.size}: truncated by somebody else")
        return length


def _address(data: memoryview) -> int:
    """Return where *data* lies in memory; 1 where that cannot be told, which is aligned to nothing."""
    if data.readonly:
        return 1
    return ctypes.addressof(ctypes.c_char.from_buffer(data))


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, data[written:], offset + written)
