"""Persistent memory from Python: files mapped, copied to and persisted with PMDK's libpmem.

Owns the mapping's lifetime and the errors; the copies and their order stand in the compiled module ``pmdk._libpmem``,
which may have been left out of the build: ``available()`` tells. It must not know what is stored.

What reaches the medium when
----------------------------
A store to persistent memory is durable only when its cache lines have been flushed and a fence ("drain") has followed.
``persist``, ``memcpy_persist`` and ``append`` do both; ``memcpy_nodrain`` and ``flush`` do the first half, ``drain``
the second, for all that came before in the same thread. Until then a power loss leaves each 8-byte word as it was or as
it is, in any combination; afterwards all of them as they are.

A file on a file system without direct access (``Mapping.is_pmem`` is false) can be mapped as well: stores go to the
kernel's page cache, survive the death of the process, and are durable after ``msync``. ``persist`` and
``memcpy_persist`` call it themselves; ``append``, ``memcpy_nodrain``, ``flush`` and ``drain`` leave it to the caller.

``PMEM_IS_PMEM_FORCE=1`` in the environment, before this module is imported, makes every file pass for persistent
memory: for tests and benchmarks on tmpfs.

Sources: libpmem(7), pmem_map_file(3), pmem_memcpy_persist(3), pmem_flush(3) of PMDK 1.12 and newer.
"""

import os
from collections.abc import Callable
from types import TracebackType
from typing import Self

try:
    from pmdk._libpmem import ffi, lib
except ImportError as error:
    _MISSING: ImportError | None = error
else:
    _MISSING = None
    # Found once: each of these is a dictionary lookup in the hot path otherwise.
    _append = lib.pmdk_append
    _from_buffer = ffi.from_buffer
    # What a closed mapping points at: nothing is within its bounds.
    _CLOSED = ffi.new("pmdk_mapping *")
    _OUTSIDE = lib.PMDK_OUTSIDE

_ADVICE = "pmdk has no compiled module: install libpmem-dev and build it again with FUSECACHE_WITH_PMEM=on"

__all__ = ["Buffer", "Mapping", "available", "map_file"]

Buffer = bytes | bytearray | memoryview
"""What data may be in: contiguous memory, of any format; lengths count bytes."""


def available() -> bool:
    """Say whether files can be mapped: the compiled module is there, and finds its library."""
    return _MISSING is None


class Mapping:
    """A file in memory; made by ``map_file``. A context manager, which closes it.

    Offsets and lengths are bytes, from the file's beginning, and need no alignment. Whatever is not within the mapping,
    or comes after ``close()``, is a ValueError and changes nothing. Every method may be called from any thread, also
    several at once; ranges that overlap are the callers' matter. None waits but for the processor, except ``msync``,
    and ``persist`` and ``memcpy_persist`` where ``is_pmem`` is false: these wait for the drive.

    A file that is cut shorter, or a hole (``sparse``) for which the file system finds no space, ends the process with
    SIGBUS at the next access, as with every mapping.

    Attributes:
        path: what was mapped, for messages.
        size: length in bytes; that of the file when it was mapped.
        is_pmem: the memory is persistent: what is flushed and drained is durable, without ``msync``.
    """

    __slots__ = ("_mapping", "is_pmem", "path", "size")

    def __init__(self, path: str, length: int, flags: int, mode: int) -> None:
        """Not to be called: see ``map_file``."""
        mapping = lib.pmdk_map(os.fsencode(path), length, flags, mode)
        if mapping == ffi.NULL:
            raise OSError(ffi.errno, os.strerror(ffi.errno), path)
        self._mapping = ffi.gc(mapping, lib.pmdk_unmap)
        self.path = path
        self.size = lib.pmdk_size(mapping)
        self.is_pmem = lib.pmdk_is_pmem(mapping)

    def __repr__(self) -> str:
        state = "closed" if self._mapping is _CLOSED else "pmem" if self.is_pmem else "not pmem"
        return f"<Mapping of {self.path!r}, {self.size} bytes, {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the mapping up; twice is once. Persists nothing: what was only stored may still be lost with power.

        Views from ``buffer`` stay valid: the memory is unmapped with the last of them, and not while another thread is
        in one of the methods.
        """
        self._mapping = _CLOSED

    @property
    def buffer(self) -> memoryview:
        """The whole mapping, writable, in bytes. Stores through it want ``persist``; they wait for it in no order.

        Raises:
            ValueError: closed.
        """
        mapping = self._mapping
        if mapping is _CLOSED:
            raise ValueError(f"{self.path}: the mapping is closed")
        # The view keeps this pointer, whose destructor keeps the mapping.
        base = ffi.gc(lib.pmdk_base(mapping), lambda _: mapping)
        return memoryview(ffi.buffer(base, self.size))

    def append(self, offset: int, header: bytes, data: Buffer | None = None) -> None:
        """Copy *header* to *offset* and *data* behind it, such that the header is never durable before the data.

        On persistent memory: the data past the processor's caches, a fence, then the header, flushed and drained. Both
        are durable on return. Power loss in the middle leaves any part of the data and no byte of the header; or all
        of the data, and any of the header's 8-byte words: a checksum in the header tells. Death of the process alone
        leaves the same.

        Elsewhere: both are copied, and neither is durable before ``msync``; until then power loss leaves any part of
        either. Death of the process leaves no byte of the header before all of the data.

        Raises:
            ValueError: not within the mapping, or closed; nothing was copied.
        """
        try:
            if data is None:
                outside = _append(self._mapping, offset, header, len(header), b"", 0)
            else:
                source = _from_buffer(data)
                outside = _append(self._mapping, offset, header, len(header), source, len(source))
        except OverflowError:
            outside = _OUTSIDE
        if outside:
            raise self._refusal(offset, len(header) + (0 if data is None else memoryview(data).nbytes))

    def memcpy_persist(self, offset: int, data: Buffer) -> None:
        """Copy *data* to *offset*; durable on return, on any medium. A crash before leaves any part of it.

        Raises:
            ValueError: not within the mapping, or closed; nothing was copied.
            OSError: ``msync`` failed: the data is copied, and may not become durable.
        """
        source = _from_buffer(data)
        self._run(lib.pmdk_memcpy_persist, offset, len(source), source)

    def memcpy_nodrain(self, offset: int, data: Buffer) -> None:
        """Copy *data* to *offset*; on persistent memory durable after the next ``drain`` of this thread.

        Raises:
            ValueError: not within the mapping, or closed; nothing was copied.
        """
        source = _from_buffer(data)
        self._run(lib.pmdk_memcpy_nodrain, offset, len(source), source)

    def persist(self, offset: int, length: int) -> None:
        """Make what was stored in a range durable, on any medium.

        Raises:
            ValueError: not within the mapping, or closed.
            OSError: ``msync`` failed: what was stored since the last good one may not become durable.
        """
        self._run(lib.pmdk_persist, offset, length)

    def flush(self, offset: int, length: int) -> None:
        """Begin to make a range durable: it is after the next ``drain``. Does nothing where ``is_pmem`` is false.

        Raises:
            ValueError: not within the mapping, or closed.
        """
        self._run(lib.pmdk_flush, offset, length)

    def drain(self) -> None:
        """Wait until all that this thread flushed, or copied without draining, is durable; needs ``is_pmem``."""
        lib.pmem_drain()

    def msync(self, offset: int, length: int) -> None:
        """Make the pages of a range durable through the kernel: on any medium, however the stores were made.

        Raises:
            ValueError: not within the mapping, or closed.
            OSError: the kernel failed to write: what was stored since the last good one may not become durable.
        """
        self._run(lib.pmdk_msync, offset, length)

    def _run(self, function: Callable[..., int], offset: int, length: int, *source: object) -> None:
        try:
            result = function(self._mapping, offset, length, *source)
        except OverflowError:
            result = _OUTSIDE
        if result == _OUTSIDE:
            raise self._refusal(offset, length)
        if result:
            raise OSError(result, os.strerror(result), self.path)

    def _refusal(self, offset: int, length: int) -> ValueError:
        if self._mapping is _CLOSED:
            return ValueError(f"{self.path}: the mapping is closed")
        return ValueError(f"{self.path}: found {length} bytes at {offset}, allowed: within 0 to {self.size}")


def map_file(
    path: str | os.PathLike[str],
    length: int = 0,
    *,
    create: bool = False,
    exclusive: bool = False,
    sparse: bool = False,
    mode: int = 0o600,
) -> Mapping:
    """Map a file, shared with all who map or read it.

    Without *create* the file must exist, not be empty, and is mapped whole: *length* is 0.

    With *create* it is made where it is missing, and then has exactly *length* bytes, at least 1: **one that exists is
    cut or extended**, or, with *exclusive*, refused. Space is allocated at once, or, with *sparse*, only for what is
    stored. *mode* is the permissions of a new file, less the umask. Neither the new file's name nor its size is durable
    before the caller has synced the file and its directory.

    Raises:
        OSError: with errno and path: ENOENT, EEXIST, ENOSPC, EACCES and whatever else libpmem meets; nothing is mapped,
            and a file that was made here may be left behind.
        ValueError: a *length* or an option that does not fit *create*, or a path with a zero byte.
        ImportError: the compiled module is missing; see ``available``.
    """
    if _MISSING is not None:
        raise ImportError(f"{_ADVICE} ({_MISSING})") from _MISSING
    name = os.fspath(path)
    if "\0" in name:
        raise ValueError(f"found a zero byte in path {name!r}, allowed: none")
    if create and not 0 < length < 1 << 63:
        raise ValueError(f"found length {length}, allowed: 1 to {(1 << 63) - 1}, with create")
    if not create and (length or exclusive or sparse):
        raise ValueError("found length, exclusive or sparse, allowed: with create only")
    flags = 0
    if create:
        flags |= lib.PMEM_FILE_CREATE
        flags |= lib.PMEM_FILE_EXCL if exclusive else 0
        flags |= lib.PMEM_FILE_SPARSE if sparse else 0
    return Mapping(name, length, flags, mode)
