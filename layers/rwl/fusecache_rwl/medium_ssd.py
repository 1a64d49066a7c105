"""The ssd engine: a pool file behind the kernel's page cache, durable by group commit.

Owns how appends become system calls. It must not know what a record means.

**Whole pages.** An append is one ``pwritev`` of whole 4 KiB pages at a page of the file: what the first page holds in
front of the record, the record, zeroes to the end of the last page. So it never waits for the device to read the rest
of a page. What the first page holds in front was kept in memory at the append before. It is written again with the
bytes it has, so it is there even if loss of power tears the page.

**Opening** writes back what an earlier process left in the page cache, then drops all clean pages: where the kernel
once failed to write some, these look clean, hold what the device does not, and would be recovered as if durable.

**What a crash leaves.**

=============================  ======================================  ================================================
step                           death of the process                    loss of power
=============================  ======================================  ================================================
1 ``append`` is in the kernel  any part of the record, and all before  any part of each record since the last good sync
2 ``append`` has returned      the record                              as 1
3 ``sync`` waits, or commits   the record                              as 1
4 ``sync``: True, done(None)   the record                              the record
5 ``sync``: done(error)        the record, or what the device has      as 1, for good: nothing becomes durable any more
=============================  ======================================  ================================================

Once a sync has failed, reads may return what is only in the page cache, or older bytes: a checksum must decide.
"""

import ctypes
import errno
import logging
import os
from typing import Any, Final

import trio

from fusecache.api import Buffer, Completions, Done, FileSync
from fusecache_rwl.committer import Committer
from fusecache_rwl.format import ALIGNMENT, HEADER_SIZE, MAX_DATA, RING_OFFSET, SUPERBLOCK_SIZE
from fusecache_rwl.medium_base import PAGE, Medium, ReadEnd
from fusecache_rwl.pool_file import PoolFile
from fusecache_rwl.readers import Readers, read_exactly
from fusecache_rwl.threads import PATIENCE, join_all

log = logging.getLogger(__name__)

_WITHIN: Final = PAGE - 1
_PADDING: Final = memoryview(bytes(PAGE))
_pwritev: Final = os.pwritev
_TMPFS: Final = 0x01021994
"""``TMPFS_MAGIC`` of linux/magic.h."""
_WAITS: Final = -1


class SsdMedium(Medium):
    """A pool file on any file system. Takes over the caller's use of *file*, unless it raises.

    Raises:
        OSError: what the file held could not be made durable.
    """

    media = "ssd"
    durability = "fdatasync"
    persists = False

    def __init__(self, file: PoolFile, completions: Completions, file_sync: FileSync) -> None:
        super().__init__(file.size)
        os.fdatasync(file.fd)
        os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._file = file
        self._fd = file.fd
        self._end = RING_OFFSET + self.ring_size
        # Where the next append is expected, and what its page holds in front of it.
        self._next = 0
        self._head = b""
        self._buffer = memoryview(bytearray(MAX_DATA))
        self._read_flags = _flags_for_reads_that_never_wait(file)
        self._committer = Committer(completions, file_sync, file)
        self._readers = Readers(file, completions)
        self._completions = completions

    def append(self, position: int, header: bytes, data: Buffer | None) -> None:
        """Store a record in the page cache; see :meth:`Medium.append`. May wait where the device wants stable pages."""
        committer = self._committer
        if committer.failure is not None:
            raise committer.refusal()
        within = position & _WITHIN
        head = self._head if position == self._next else self._read_head(position, within)
        if data is None:
            data = b""
        size = len(data)
        filled = within + HEADER_SIZE + size
        padding = -filled & _WITHIN
        offset = RING_OFFSET + position % self.ring_size - within
        if offset + filled + padding > self._end:
            raise ValueError(f"a record of {filled - within} bytes at {position} crosses the ring's end")
        written = _pwritev(self._fd, (head, header, data, _PADDING[:padding]), offset)
        if written != filled + padding:
            raise OSError(errno.EIO, f"{self._file.path}: {written} bytes of {filled + padding} were written")
        committer.appended += 1
        spare = -filled & (ALIGNMENT - 1)
        self._next = position - within + filled + spare
        # The next record begins in the last page, behind what that holds by now, or in a new one.
        kept = filled & _WITHIN
        if padding == spare:
            self._head = b""
        elif kept > size:
            self._head = b"".join((head, header, data, _PADDING[:spare]))
        else:
            # A header never crosses a page, so the last page holds data only.
            self._head = b"".join((data[size - kept :], _PADDING[:spare])) if spare else bytes(data[size - kept :])

    def _read_head(self, position: int, within: int) -> bytes:
        # After a recovery, which has just read that page, or behind padding.
        if not within:
            return b""
        return read_exactly(self._file, RING_OFFSET + position % self.ring_size - within, within)

    def sync(self, done: Done) -> bool:
        """Wait for the next commit; see :meth:`Medium.sync`.

        Raises:
            VolumeClosed: the medium is closed.
        """
        return self._committer.sync(done)

    def read_now(self, position: int, length: int) -> memoryview | None:
        """Read from the page cache into a buffer that the next call uses again; see :meth:`Medium.read_now`."""
        if self._read_flags == _WAITS:
            return None
        if length > len(self._buffer):
            self._buffer = memoryview(bytearray(length))
        view = self._buffer[:length]
        try:
            got = os.preadv(self._fd, (view,), RING_OFFSET + position % self.ring_size, self._read_flags)
        except BlockingIOError:
            return None
        # Less: the rest is not in memory, or not in the file, which the thread will find out.
        return view if got == length else None

    def read(self, position: int, length: int, done: ReadEnd) -> None:
        """Read on a thread; see :meth:`Medium.read`.

        Raises:
            VolumeClosed: the medium is closed.
        """
        self._readers.read(RING_OFFSET + position % self.ring_size, length, done)

    def read_blocking(self, position: int, length: int) -> bytes:
        """Return bytes of the ring; see :meth:`Medium.read_blocking`."""
        return read_exactly(self._file, RING_OFFSET + position % self.ring_size, length)

    def read_superblocks(self) -> tuple[bytes, bytes]:
        """Return both superblocks."""
        both = read_exactly(self._file, 0, 2 * SUPERBLOCK_SIZE)
        return both[:SUPERBLOCK_SIZE], both[SUPERBLOCK_SIZE:]

    def write_superblock(self, data: bytes, at: int, done: Done) -> None:
        """Write a page, then sync; see :meth:`Medium.write_superblock`.

        Raises:
            VolumeClosed: the medium is closed.
        """
        committer = self._committer
        # After a failure nothing is written: it could still reach the device.
        if committer.failure is None:
            try:
                if os.pwrite(self._fd, data, at) != len(data):
                    raise OSError(errno.EIO, f"{self._file.path}: a superblock was written in part")
            except OSError as error:
                self._completions.expect()
                self._completions.post(done, error)
                return
            committer.appended += 1
        if committer.sync(done):
            # A commit that had begun for others has just covered it.
            self._completions.expect()
            self._completions.post(done, None)

    def renew(self) -> None:
        """Forget a failed sync; see :meth:`Medium.renew`. The kernel has told it, so it tells of new ones only."""
        self._next, self._head = 0, b""
        self._committer.renew()

    async def close(self) -> None:
        """End the threads and give up the file; see :meth:`Medium.close`. Twice is once."""
        if self._fd < 0:
            return
        self._fd = -1
        self._committer.stop()
        self._readers.stop()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_commit)
                await join_all(self._readers.threads)
        finally:
            self._file.release()

    async def _end_commit(self) -> None:
        with trio.move_on_after(PATIENCE, shield=True) as patience:
            await self._committer.ended()
        if patience.cancelled_caught:
            log.warning("left behind, waiting for the kernel: a sync of %s", self._file.path)


def _flags_for_reads_that_never_wait(file: PoolFile) -> int:
    """Return flags for ``preadv`` with which it never waits for a device; _WAITS where there are none."""
    try:
        os.preadv(file.fd, (bytearray(1),), 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return os.RWF_NOWAIT
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        # tmpfs refuses the flag and has no device to wait for.
        return 0 if _file_system(file.fd) == _TMPFS else _WAITS
    return os.RWF_NOWAIT


def _file_system(fd: int) -> int:
    """Return ``f_type`` of ``fstatfs(2)``, which is the first word of its answer."""
    answer: Any = (ctypes.c_long * 32)()
    if ctypes.CDLL(None).fstatfs(fd, ctypes.byref(answer)):
        return 0
    return int(answer[0])
