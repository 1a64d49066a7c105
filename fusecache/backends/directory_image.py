"""An open image of a directory, as a volume.

Owns which requests are tried on the loop's thread and which go to worker threads, and how failures become events. It
must not know names, locks or system calls beyond the two attempts.

**Reads** are tried from the page cache without waiting (``preadv2(RWF_NOWAIT)``); what is not there is read on a
worker thread, several at a time. **Changes** are tried the same way where the file system can do it (xfs, btrfs);
ext4 and tmpfs cannot. The rest of reads and writes goes to the kernel's own threads through a ring, where there is one.

What a ring did not do wholly, and all else, is done on worker threads: changes on one at a time, many to a batch, as
the kernel's inode lock lets only one run anyway. Writes past the page cache (``direct``) take that lock shared and
run side by side, like reads.
"""

import errno
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from fusecache.api import (
    DONE,
    PENDING,
    Attempt,
    BackendImage,
    Buffers,
    Completions,
    Done,
    Emit,
    Extent,
    Identity,
    ImageInfo,
    ImageRecord,
    ReadDone,
    ReadOutcome,
)
from fusecache.api.errors import NotSupported, VolumeClosed, VolumeReadOnly
from fusecache.backends.attempts import completed
from fusecache.backends.files import ImageFile, ImageShrank
from fusecache.backends.marks import read_record, write_record
from fusecache.backends.questions import ask
from fusecache.backends.uring import Ring
from fusecache.backends.workers import WorkerPool

log = logging.getLogger(__name__)

_PATIENCE: Final = 3.0
"""How long closing an image waits for calls that hang in the kernel, in seconds."""

_RING_READS: Final = 8
"""How many reads of one image the kernel's threads may be stuck in; more go to ours."""

_SCRATCH_SIZE: Final = 1 << 20
_VIEW_STEP: Final = 4096

_View = tuple[list[memoryview], tuple[memoryview]]
"""The same memory, as the system call wants it and as the caller does."""


class Scratch:
    """Memory that all images of a backend read into, one attempt after another on the loop's thread."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, _SCRATCH_SIZE))
        self.views: dict[int, _View] = {}

    def view(self, length: int) -> _View | None:
        """Return *length* bytes from the start, or None when there are not that many.

        Views of multiples of 4 KiB are kept in :attr:`views`, where a caller may look first.
        """
        if length > _SCRATCH_SIZE:
            return None
        part = self._memory[:length]
        view = ([part], (part,))
        if length % _VIEW_STEP == 0:
            self.views[length] = view
        return view


class DirectoryImage(BackendImage):
    """An image file, open and locked; made by :meth:`fusecache.backends.directory.DirectoryBackend.open`.

    Args:
        locate: blocking; returns the description of this file under the name it has now.
    """

    def __init__(
        self,
        file: ImageFile,
        identity: Identity,
        pool: WorkerPool,
        ring: Ring | None,
        scratch: Scratch,
        locate: Callable[[ImageFile], ImageInfo],
        emit: Emit,
        *,
        durable_identity: bool,
    ) -> None:
        self.size = file.size
        self.read_only = file.read_only
        self.identity = identity
        self.durable_identity = durable_identity
        self._file = file
        self._fd = file.fd
        self._completions: Completions = pool.completions
        self._changes = pool.lane(turns=1, batch=32, failed=self._failed)
        # Together the lanes leave one thread to the other images, however many calls hang here.
        self._others = pool.lane(turns=max(1, pool.limit - 2), failed=self._failed)
        self._ring = None if file.direct else ring
        self._reads_in_ring = 0
        self._writes_in_ring = 0
        self._ring_idle: trio.Event | None = None
        self._scratch = scratch
        self._views = scratch.views
        self._locate = locate
        self._emit = emit
        self._try_reads = not file.direct
        self._try_writes = not file.direct
        self._shrank = False

    def __repr__(self) -> str:
        return f"<DirectoryImage {self._file.path} size={self.size}{' read-only' if self.read_only else ''}>"

    async def close(self) -> None:
        """Wait for what is under way, close the file and give up the lock; shielded from cancellation.

        A call that hangs in the kernel for more than three seconds keeps the file open, and locked, until the process
        ends: its write may still arrive.
        """
        with trio.move_on_after(_PATIENCE, shield=True):
            await self._ring_drained()
            await self._changes.drained()
            await self._others.drained()
            self._fd = -1
            self._others.submit(lambda error: None, self._file.close)
            await self._others.drained()
            return
        self._fd = -1
        log.error("%s is left open and locked: a system call on it does not return", self._file.path)

    async def info(self) -> ImageInfo:
        result: ImageInfo = await ask(self._others, self._locate, self._file)
        return result

    async def record(self) -> ImageRecord | None:
        """See :meth:`BackendImage.record`.

        Raises:
            Fenced: the image is a copy, made without the newer data that a host held of its original.
        """
        result: ImageRecord | None = await ask(
            self._others, read_record, self._open_fd(), self._file.path, self.identity
        )
        return result

    async def set_record(self, record: ImageRecord, *, guard: bool) -> None:
        """See :meth:`BackendImage.set_record`. The guard is the image's lock, held anyway, and nothing more.

        A cancellation waits for the end.

        Raises:
            NotSupported: the file can have no record: it cannot have attributes.
        """
        if self.read_only:
            raise self._refusal()
        if not self.durable_identity:
            raise NotSupported(f"{self._file.path} can have no record: it has no attributes")
        await self._others.call(write_record, self._open_fd(), self._file.path, self.identity, record)

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        buffers = self._read_cached(offset, length)
        if buffers is not None:
            return buffers
        ring = self._ring
        if ring is None or ring.full or self._reads_in_ring == _RING_READS:
            self._others.fetch(done, self._file.read, offset, length)
        else:
            self._read_in_ring(ring, offset, length, done)
        return PENDING

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        if self.read_only:
            raise self._refusal()
        if self._try_writes:
            written = self._write_cached(offset, data)
            if written == len(data):
                return DONE
            offset += written
            data = data[written:]
        ring = self._ring
        if ring is None or ring.full or data.readonly:
            lane = self._others if self._file.writes_direct(offset, len(data)) else self._changes
            lane.submit(done, self._file.write, offset, data)
        else:
            self._write_in_ring(ring, offset, data, done)
        return PENDING

    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        if self.read_only:
            raise self._refusal()
        self._changes.submit(done, self._file.write_zeroes, offset, length)
        return PENDING

    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        if self.read_only:
            raise self._refusal()
        self._changes.submit(done, self._file.discard, offset, length)
        return PENDING

    def try_flush(self, done: Done) -> Attempt:
        self._others.submit(done, self._file.flush)
        return PENDING

    async def read(self, offset: int, length: int) -> Buffers:
        await trio.lowlevel.checkpoint()
        buffers = self._read_cached(offset, length)
        if buffers is not None:
            return (bytes(buffers[0]),)
        result: Buffers = await self._others.call(self._file.read, offset, length)
        return result

    async def write(self, offset: int, data: memoryview) -> None:
        await completed(self._completions, lambda done: self.try_write(offset, data, done))

    async def write_zeroes(self, offset: int, length: int) -> None:
        await completed(self._completions, lambda done: self.try_write_zeroes(offset, length, done))

    async def discard(self, offset: int, length: int) -> None:
        await completed(self._completions, lambda done: self.try_discard(offset, length, done))

    async def flush(self) -> None:
        await completed(self._completions, self.try_flush)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        found: list[Extent] = []
        end = offset + length
        while offset < end:
            found += await self._others.call(self._file.extents, offset, end - offset)
            offset = found[-1].end
        return found

    async def resize(self, size: int) -> None:
        """Set the length; durable with the next :meth:`flush`. A cancellation waits for the end."""
        if self.read_only:
            raise self._refusal()
        await trio.lowlevel.checkpoint_if_cancelled()

        def submit(finish: Callable[[BaseException | None, Any], None]) -> None:
            def resized(error: BaseException | None) -> None:
                self.size = self._file.size
                finish(error, None)

            self._changes.submit(resized, self._file.resize, size)

        await self._completions.call(submit)

    def _read_cached(self, offset: int, length: int) -> tuple[memoryview] | None:
        if not self._try_reads:
            return None
        view = self._views.get(length) or self._scratch.view(length)
        if view is None:
            return None
        try:
            if os.preadv(self._fd, view[0], offset, os.RWF_NOWAIT) == length:
                return view[1]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._try_reads = False
        return None

    def _write_cached(self, offset: int, data: memoryview) -> int:
        try:
            return os.pwritev(self._fd, [data], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._try_writes = False
            return 0

    def _read_in_ring(self, ring: Ring, offset: int, length: int, done: ReadDone) -> None:
        buffer = bytearray(length)

        def ended(result: int) -> None:
            self._reads_in_ring -= 1
            if result == length:
                done(None, (buffer,))
            else:
                self._others.fetch(done, self._file.read, offset, length)
            self._left_ring()

        self._reads_in_ring += 1
        ring.read(self._fd, offset, buffer, ended)

    def _write_in_ring(self, ring: Ring, offset: int, data: memoryview, done: Done) -> None:
        length = len(data)

        def ended(result: int) -> None:
            self._writes_in_ring -= 1
            if result == length:
                done(None)
            else:
                # Writing the same bytes again is harmless, and what went wrong is told better there.
                self._changes.submit(done, self._file.write, offset, data)
            self._left_ring()

        self._writes_in_ring += 1
        ring.write(self._fd, offset, data, ended)

    def _left_ring(self) -> None:
        if self._ring_idle is not None and not self._reads_in_ring and not self._writes_in_ring:
            self._ring_idle.set()

    async def _ring_drained(self) -> None:
        while self._reads_in_ring or self._writes_in_ring:
            self._ring_idle = trio.Event()
            await self._ring_idle.wait()

    def _open_fd(self) -> int:
        if self._fd < 0:
            raise VolumeClosed(f"{self._file.path} is closed")
        return self._fd

    def _failed(self, error: BaseException) -> None:
        if error is self._file.failed_flush:
            self._emit("flush-failed", f"{self._file.path}: {error}; data may be lost, and every later flush fails")
        elif isinstance(error, ImageShrank) and not self._shrank:
            self._shrank = True
            self._emit("image-shrank", str(error))

    def _refusal(self) -> VolumeReadOnly:
        return VolumeReadOnly(f"{self._file.path} is open for reading only")
