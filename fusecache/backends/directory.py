"""The directory backend: every regular file of one directory is a raw image under its own name.

Owns the names: listing, looking up, creating, renaming and removing. It must not know what happens to an image's
bytes (:mod:`fusecache.backends.files`), nor files other than images: it keeps none beside them.

The directory is opened once. Whatever is later mounted over it, or given its path, is not looked at.

Names that are not UTF-8 are carried as :func:`os.fsdecode` makes them (surrogateescape). Every call that may wait runs
on the backend's worker threads, and once begun it goes on to its end whatever is cancelled. Only who looks does not
wait for that end: a directory that hangs must not hold all who ask about it.
"""

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import trio

from fusecache.api import Backend, BackendImage, Claim, Completions, Emit, Identity, ImageInfo, ImageRecord
from fusecache.api.errors import FusecacheError, ImageExists, ImageGone, ImageNotFound
from fusecache.backends.directory_image import DirectoryImage, Scratch
from fusecache.backends.files import ImageFile
from fusecache.backends.locks import open_image, open_locked, stat_image
from fusecache.backends.marks import identify, read_record
from fusecache.backends.questions import ask
from fusecache.backends.records import check_holder
from fusecache.backends.syscalls import rename_noreplace
from fusecache.backends.uring import Ring, open_ring
from fusecache.backends.workers import WorkerPool

if TYPE_CHECKING:
    from fusecache.config.schema import DirectoryConfig

_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LONGEST_NAME: Final = 255
_NEW_IMAGE_MODE: Final = 0o600


@asynccontextmanager
async def open_backend(config: "DirectoryConfig", completions: Completions, emit: Emit) -> AsyncIterator[Backend]:
    """Open the directory of *config* as a backend, until the context ends.

    All images must be closed by then. *completions* must be delivered (:meth:`Completions.run`) all the while.

    Raises:
        OSError: the directory is not there, is none, or may not be read.
    """
    path = os.fspath(config.path)
    # The one call that has no thread yet to wait on.
    directory = await trio.to_thread.run_sync(os.open, path, _DIRECTORY_FLAGS)
    pool = WorkerPool(completions, name="directory")
    ring = open_ring(completions)
    try:
        yield DirectoryBackend(directory, path, pool, ring, emit, direct=config.direct)
    finally:
        await pool.close()
        if ring is not None:
            ring.close()
        os.close(directory)


class DirectoryBackend(Backend):
    """See the module; made by :func:`open_backend`."""

    def __init__(
        self, directory: int, path: str, pool: WorkerPool, ring: Ring | None, emit: Emit, *, direct: bool
    ) -> None:
        self.description = f"directory:{path}"
        self._directory = directory
        self._path = path
        self._pool = pool
        self._ring = ring
        self._emit = emit
        self._direct = direct
        self._scratch = Scratch()
        self._names = pool.lane(turns=max(1, pool.limit // 2))

    def __repr__(self) -> str:
        return f"<DirectoryBackend {self._path}{' direct' if self._direct else ''}>"

    async def list(self) -> Sequence[ImageInfo]:
        result: Sequence[ImageInfo] = await ask(self._names, self._run, self._list)
        return result

    async def lookup(self, name: str) -> ImageInfo:
        result: ImageInfo = await ask(self._names, self._run, self._lookup, _checked(name))
        return result

    async def read_record(self, name: str) -> ImageRecord | None:
        """See :meth:`Backend.read_record`.

        Raises:
            Fenced: as :meth:`open` does.
        """
        result: ImageRecord | None = await ask(self._names, self._run, self._read_record, _checked(name))
        return result

    def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AbstractAsyncContextManager[BackendImage]:
        """See :meth:`Backend.open`. Locks end with their process, so there are no clients, and none to dedicate.

        Entering raises:
            Fenced: the image is a copy, made without the newer data that a host held of its original.
        """
        return self._opened(name, claim, read_only)

    async def create(self, name: str, size: int) -> ImageInfo:
        """Create a sparse image with permissions 0600; one that cannot be had at full size is removed again."""
        result: ImageInfo = await self._call(self._create, _checked(name), size)
        return result

    async def rename(self, old: str, new: str) -> None:
        """Rename atomically; open images stay open. Needs ``renameat2(RENAME_NOREPLACE)``, which all local file
        systems of Linux have; elsewhere EINVAL."""
        await self._call(self._rename, _checked(old), _checked(new))

    async def remove(self, name: str) -> None:
        await self._call(self._remove, _checked(name))

    async def _call(self, work: Callable[..., Any], *args: Any) -> Any:
        return await self._names.call(self._run, work, *args)

    def _run(self, work: Callable[..., Any], *args: Any) -> Any:
        # A removed directory looks empty otherwise.
        if os.fstat(self._directory).st_nlink == 0:
            raise FusecacheError(f"directory {self._path} was removed behind us")
        return work(*args)

    @asynccontextmanager
    async def _opened(self, name: str, claim: Claim, read_only: bool) -> AsyncIterator[BackendImage]:
        file, identity, durable = await self._call(self._open, _checked(name), read_only)
        image = DirectoryImage(
            file,
            identity,
            self._pool,
            self._ring,
            self._scratch,
            self._locator(name),
            self._emit,
            durable_identity=durable,
        )
        try:
            await claim(identity, "")
            check_holder(await image.record(), claim, name)
            yield image
        finally:
            await image.close()

    def _shown(self, name: str) -> str:
        # For people: what is not UTF-8 must not break a log or an event.
        return os.fsencode(f"{self._path}/{name}").decode(errors="backslashreplace")

    def _read_record(self, name: str) -> ImageRecord | None:
        path = self._shown(name)
        fd, _ = open_image(self._directory, name, read_only=True)
        try:
            return read_record(fd, path, identify(fd, path, read_only=True)[0])
        finally:
            os.close(fd)

    def _open(self, name: str, read_only: bool) -> tuple[ImageFile, Identity, bool]:
        path = self._shown(name)
        fd, only_reads = open_locked(self._directory, name, read_only=read_only)
        file = ImageFile(fd, path, read_only=only_reads)
        try:
            if self._direct:
                file.open_direct()
            identity, durable = identify(fd, path, read_only=only_reads)
        except BaseException:
            file.close()
            raise
        return file, identity, durable

    def _list(self) -> Sequence[ImageInfo]:
        found = []
        with self._entries() as entries:
            for entry in entries:
                # An entry that vanishes between the two calls is no error.
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        found.append(self._describe(entry.name, entry.stat(follow_symlinks=False)))
        return found

    def _lookup(self, name: str) -> ImageInfo:
        return self._describe(name, stat_image(self._directory, name))

    def _create(self, name: str, size: int) -> ImageInfo:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, _NEW_IMAGE_MODE, dir_fd=self._directory)
        except FileExistsError:
            raise ImageExists(f"the name {name!r} is taken") from None
        try:
            os.ftruncate(fd, size)
            os.fsync(fd)
            os.fsync(self._directory)
            return self._describe(name, os.fstat(fd))
        except BaseException:
            os.unlink(name, dir_fd=self._directory)
            raise
        finally:
            os.close(fd)

    def _rename(self, old: str, new: str) -> None:
        stat_image(self._directory, old)
        try:
            rename_noreplace(self._directory, old, new)
        except FileExistsError:
            raise ImageExists(f"image {old!r} is not renamed: the name {new!r} is taken") from None
        except FileNotFoundError:
            raise ImageNotFound(f"no image {old!r}") from None
        os.fsync(self._directory)

    def _remove(self, name: str) -> None:
        fd, _ = open_locked(self._directory, name, read_only=False)
        try:
            os.unlink(name, dir_fd=self._directory)
            os.fsync(self._directory)
        finally:
            os.close(fd)

    def _locator(self, name: str) -> Callable[[ImageFile], ImageInfo]:
        """Return a function that describes an open file under its present name, first looked for under *name*."""

        def locate(file: ImageFile) -> ImageInfo:
            nonlocal name
            found = file.describe()
            if not self._leads_to(name, found):
                name = self._name_of(found)
            return self._describe(name, found)

        return locate

    def _leads_to(self, name: str, found: os.stat_result) -> bool:
        try:
            return os.path.samestat(stat_image(self._directory, name), found)
        except ImageNotFound:
            return False

    def _name_of(self, found: os.stat_result) -> str:
        with self._entries() as entries:
            for entry in entries:
                if entry.inode() == found.st_ino and self._leads_to(entry.name, found):
                    return entry.name
        raise ImageGone(f"the image was moved out of {self._path} while it was open")

    @contextlib.contextmanager
    def _entries(self) -> Iterator[Iterator["os.DirEntry[str]"]]:
        # A descriptor of its own: copies of one would share the position in the directory.
        fd = os.open(".", _DIRECTORY_FLAGS, dir_fd=self._directory)
        try:
            with os.scandir(fd) as entries:
                yield entries
        finally:
            os.close(fd)

    def _describe(self, name: str, found: os.stat_result) -> ImageInfo:
        return ImageInfo(
            name=name,
            key=f"directory:{found.st_dev}:{found.st_ino}",
            size=found.st_size,
            allocated=found.st_blocks * 512,
            mtime_ns=found.st_mtime_ns,
            read_only=not os.access(name, os.W_OK, dir_fd=self._directory),
        )


def _checked(name: str) -> str:
    """Return *name* if a directory can hold it.

    Raises:
        OSError: EINVAL or ENAMETOOLONG.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        text = f"found the image name {name!r}, allowed: not empty, not '.' or '..', without '/' and NUL"
        raise OSError(errno.EINVAL, text)
    try:
        length = len(os.fsencode(name))
    except UnicodeEncodeError:
        raise OSError(errno.EINVAL, f"found the image name {name!r}, which no file can have") from None
    if length > _LONGEST_NAME:
        text = f"found an image name of {length} bytes, allowed: at most {_LONGEST_NAME}"
        raise OSError(errno.ENAMETOOLONG, text)
    return name
