"""The pmem engine: a pool file in persistent memory, durable when an append returns.

Owns the use of a mapping as a medium. It must not know what a record means; ``pmdk`` is imported here only.

**Opening** persists the whole file: a process that was killed may have left stores in the processor's caches, which a
recovery would read and loss of power would undo.

**What a crash leaves.** Death of the process and loss of power are the same here. In ``append``: any part of the data
and no byte of the header, or all of the data and any of the header's 8-byte words. After it: the record. In
``write_superblock``: old and new 8-byte words in any combination. After it: the new superblock.

**Memory.** The daemon keeps its memory locked; the mapping is not to be: on persistent memory it cannot be evicted
anyway, and on tmpfs, where tests run, it would pin a whole pool. A file that is cut short ends the process, as with
every mapping.
"""

import ctypes
import importlib
from typing import Final, Protocol

from fusecache.api import Buffer, Completions, Done
from fusecache_rwl.format import ALIGNMENT, RING_OFFSET, SUPERBLOCK_SIZE
from fusecache_rwl.medium_base import Medium, ReadEnd
from fusecache_rwl.pool_file import PoolFile

_PADDING: Final = bytes(ALIGNMENT)


class Mapping(Protocol):
    """What this module uses of ``pmdk.Mapping``; offsets and lengths in bytes from the file's beginning."""

    is_pmem: bool
    size: int

    @property
    def buffer(self) -> memoryview: ...

    def append(self, offset: int, header: bytes, data: Buffer | None = None) -> None: ...

    def memcpy_persist(self, offset: int, data: Buffer) -> None: ...

    def persist(self, offset: int, length: int) -> None: ...

    def close(self) -> None: ...


def map_pool(file: PoolFile) -> Mapping | None:
    """Map *file* where it is on persistent memory and libpmem can be had; None otherwise. Blocks.

    Raises:
        OSError: the file cannot be mapped.
    """
    try:
        pmdk = importlib.import_module("pmdk")
    except ImportError:
        return None
    if not pmdk.available():
        return None
    # The detour reaches the very file that is locked, whatever its name leads to by now.
    mapping: Mapping = pmdk.map_file(f"/proc/self/fd/{file.fd}")
    if mapping.is_pmem:
        return mapping
    mapping.close()
    return None


class PmemMedium(Medium):
    """A pool file in persistent memory. Takes over the caller's use of *file*, and *mapping*, which is of it."""

    media = "pmem"
    durability = "pmem"
    persists = True

    def __init__(self, file: PoolFile, mapping: Mapping, completions: Completions) -> None:
        super().__init__(file.size)
        self._file: PoolFile | None = file
        self._mapping = mapping
        self._append = mapping.append
        self._view = mapping.buffer.toreadonly()
        self._completions = completions
        _unlock(mapping.buffer)
        mapping.persist(0, mapping.size)

    def append(self, position: int, header: bytes, data: Buffer | None) -> None:
        """Store a record, durably; see :meth:`Medium.append`."""
        if data is not None and len(data) % ALIGNMENT:
            # The same bytes as on every other medium.
            data = b"".join((data, _PADDING[len(data) % ALIGNMENT :]))
        self._append(RING_OFFSET + position % self.ring_size, header, data)

    def sync(self, done: Done) -> bool:
        """Return True: everything is durable."""
        return True

    def read_now(self, position: int, length: int) -> memoryview:
        """Return a view of the mapping."""
        offset = RING_OFFSET + position % self.ring_size
        return self._view[offset : offset + length]

    def read(self, position: int, length: int, done: ReadEnd) -> None:
        """Copy from the mapping, and call ``done`` later all the same."""
        self._completions.expect()
        self._completions.post(done, None, bytes(self.read_now(position, length)))

    def read_blocking(self, position: int, length: int) -> memoryview:
        """Return a view of the mapping."""
        return self.read_now(position, length)

    def read_superblocks(self) -> tuple[bytes, bytes]:
        """Return copies of both superblocks."""
        return bytes(self._view[:SUPERBLOCK_SIZE]), bytes(self._view[SUPERBLOCK_SIZE : 2 * SUPERBLOCK_SIZE])

    def write_superblock(self, data: bytes, at: int, done: Done) -> None:
        """Copy and persist; ``done`` is called later all the same."""
        self._mapping.memcpy_persist(at, data)
        self._completions.expect()
        self._completions.post(done, None)

    def renew(self) -> None:
        """Do nothing: a store that fails ends the process."""

    async def close(self) -> None:
        """Give up the mapping and the file; twice is once. Views that are still in use keep the memory."""
        if self._file is None:
            return
        self._file.release()
        self._file = None
        self._view = memoryview(b"")
        self._mapping.close()


def _unlock(buffer: memoryview) -> None:
    # A refusal costs memory only.
    first = ctypes.c_char.from_buffer(buffer)
    ctypes.CDLL(None).munlock(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(buffer)))
