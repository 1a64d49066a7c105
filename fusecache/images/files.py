"""Images as files: the root directory of the mount, its files, and what an opener holds.

Owns how block-device semantics show through a file: what open flags mean, what lies past the end, who may resize,
create, rename and remove. It must not know FUSE's protocol, nor what the control directory holds.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import trio

from fusecache.api.backend import ImageInfo
from fusecache.api.errors import ImageExists, ImageGone, ImageNotFound, NotPermitted, OutOfRange, VolumeReadOnly
from fusecache.api.volume import DONE, PENDING, Attempt, Buffers, Done, ReadDone
from fusecache.images.describe import described
from fusecache.images.image import Image
from fusecache.images.node import Attributes, DirectoryNode, FileNode, Node, OpenFile
from fusecache.images.registry import CONTROL_NAME, Registry
from fusecache.images.requests import ImageFailed

ROOT_INODE = 1
_IMAGE_BIT = 1 << 62
_BELIEVED = 1.0
"""Seconds that the kernel may believe the attributes of an image in use, if it stays locked that long."""


def image_inode(key: str) -> int:
    """Return the inode number of the image with that backend key: bit 62 and 62 bits of the key's SHA-256."""
    return _IMAGE_BIT | int.from_bytes(hashlib.sha256(key.encode(errors="surrogateescape")).digest()[:8], "big") >> 2


@dataclass(frozen=True, slots=True)
class FilePolicy:
    """What the mount's configuration says of image files.

    Attributes:
        mode: permission bits.
        create, rename, remove, resize: whether files may be created, renamed, removed, and truncated or grown.
    """

    uid: int
    gid: int
    mode: int = 0o600
    create: bool = False
    rename: bool = False
    remove: bool = False
    resize: bool = False


class ImageFile(OpenFile):
    """An opener of an image.

    **Who may grow an image.** Its creator; and where images may be created, whoever is the first to do so while it has
    no length: its creator may have gone without having heard of it, as where the CREATE was interrupted, or the daemon
    died, and the program tries again and finds the name taken.
    """

    __slots__ = (
        "_image",
        "_policy",
        "_registry",
        "_unconfirmed",
        "_writable",
        "creator",
        "direct",
        "keep_cache",
        "parallel",
    )

    def __init__(self, registry: Registry, image: Image, flags: int, policy: FilePolicy, *, creator: bool) -> None:
        self._registry = registry
        self._image = image
        self._policy = policy
        self.creator = creator
        self._writable = flags & os.O_ACCMODE != os.O_RDONLY
        # Of what others may change no opener has pages.
        self.parallel = image.cacheable
        self.direct = not image.cacheable or bool(flags & os.O_DIRECT)
        self.keep_cache = image.cache_valid
        # The kernel drops old pages when an open without keep_cache completes; the first request shows that it has.
        self._unconfirmed = not self.keep_cache
        image.openers += 1
        image.writers += self._writable

    @property
    def end(self) -> int:
        return self._image.top.size

    def clip(self, offset: int, length: int) -> int:
        image = self._image
        if self._may_grow():
            return length
        if offset >= image.size:
            raise OutOfRange(f"image {image.name!r} ends at {image.size}: nothing can be written at {offset}")
        return image.size - offset

    def read(self, offset: int, length: int, done: ReadDone) -> Buffers | Attempt:
        if self._unconfirmed:
            self._confirm()
        return self._image.read(offset, length, done)

    def write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        if self._unconfirmed:
            self._confirm()
        image = self._image
        if offset + len(data) > image.top.size:
            image.start(self._grow_and_write, offset, data, done)
            return PENDING
        return image.write(offset, data, done)

    def _confirm(self) -> None:
        self._unconfirmed = False
        self._image.cache_valid = self._image.cacheable

    async def _grow_and_write(self, offset: int, data: memoryview, done: Done) -> None:
        try:
            await self._image.grow(offset + len(data))
            outcome = self._image.write(offset, data, done)
        except Exception as error:
            done(error)
        except BaseException:
            done(ImageFailed("the image was closed under the request"))
            raise
        else:
            if outcome is DONE:
                done(None)

    def zero(self, offset: int, length: int, done: Done) -> Attempt:
        length = min(length, self._image.size - offset)
        return self._image.write_zeroes(offset, length, done) if length > 0 else DONE

    def discard(self, offset: int, length: int, done: Done) -> Attempt:
        length = min(length, self._image.size - offset)
        return self._image.discard(offset, length, done) if length > 0 else DONE

    def allocate(self, offset: int, length: int, done: Done, *, keep_size: bool) -> Attempt:
        image = self._image
        if keep_size or offset + length <= image.size:
            return DONE
        self.check_resize(offset + length)
        image.start(self._allocate, offset + length, done)
        return PENDING

    async def _allocate(self, size: int, done: Done) -> None:
        try:
            await self._image.grow(size)
        except Exception as error:
            done(error)
        except BaseException:
            done(ImageFailed("the image was closed under the request"))
            raise
        else:
            done(None)

    def check_resize(self, size: int) -> None:
        """Raise NotPermitted where this opener may not set the length to *size*."""
        unchanged = size == self._image.size
        if not (unchanged or self._policy.resize or (size > self._image.size and self._may_grow())):
            raise NotPermitted(f"image {self._image.name!r}: set resize = true in [mount] to allow a change of size")

    def _may_grow(self) -> bool:
        self.creator = self.creator or (self._policy.create and not self._image.size)
        return self.creator

    async def resize(self, size: int) -> None:
        """Set the length, as ``ftruncate`` on this opener's descriptor."""
        self.check_resize(size)
        if size != self._image.size:
            await self._image.resize(size)

    def flush(self, done: Done) -> Attempt:
        return self._image.flush(done)

    async def seek(self, offset: int, *, hole: bool) -> int:
        image = self._image
        found = await image.seek(offset, hole=hole) if offset < image.size else None
        if found is None:
            raise OSError(errno.ENXIO, f"image {image.name!r}: no {'hole' if hole else 'data'} from {offset} on")
        return found

    def close(self) -> None:
        # Confirms nothing: the kernel may never have heard of an open that was interrupted.
        self._image.openers -= 1
        self._image.writers -= self._writable
        self._registry.release(self._image)


class ImageNode(FileNode):
    """An image's name."""

    def __init__(self, registry: Registry, info: ImageInfo, policy: FilePolicy) -> None:
        self.inode = image_inode(info.key)
        self.name = info.name
        self._key = info.key
        self._snapshot = info.snapshot
        self._registry = registry
        self._policy = policy
        self._info: ImageInfo | None = info

    async def attributes(self) -> Attributes:
        # The description that came with the lookup serves the reply to that lookup; later ones are asked for anew.
        info, self._info = self._info, None
        image = self._registry.opened_as(self._key)
        if info is None:
            ask = partial(self._registry.lookup, self.name) if image is None else image.stack.image.info
            info = await described(image, ask)
            self._check_key(info)
        size = image.size if image is not None else info.size
        mode = self._policy.mode & ~0o222 if info.read_only else self._policy.mode
        return Attributes(
            inode=self.inode,
            mode=stat.S_IFREG | mode,
            size=size,
            blocks=(size if info.allocated is None else info.allocated) // 512,
            uid=self._policy.uid,
            gid=self._policy.gid,
            mtime_ns=max(info.mtime_ns, image.mtime_ns if image is not None else 0),
            # They may change behind us as soon as the lock is given up, which is that long after the last close.
            timeout=min(_BELIEVED, self._registry.release_after) if image is not None and image.openers else 0.0,
        )

    async def open(self, flags: int) -> OpenFile:
        image = await self._registry.acquire(self.name)
        try:
            self._check_key(image.info)
            return self._opened(image, flags, creator=False)
        except BaseException:
            self._registry.release(image)
            raise

    def _check_key(self, info: ImageInfo) -> None:
        if image_inode(info.key) != self.inode:
            raise ImageGone(f"image {self.name!r} was replaced by another of that name")

    def _opened(self, image: Image, flags: int, *, creator: bool) -> ImageFile:
        if image.read_only and flags & os.O_ACCMODE != os.O_RDONLY:
            raise VolumeReadOnly(f"image {self.name!r} can only be read")
        return ImageFile(self._registry, image, flags, self._policy, creator=creator)

    async def resize(self, size: int) -> None:
        if self._snapshot:
            raise VolumeReadOnly(f"{self.name!r} is a snapshot: it never changes")
        if not self._policy.resize and size != (await self.attributes()).size:
            raise NotPermitted(f"image {self.name!r}: set resize = true in [mount] to allow a change of size")
        async with self._registry.using(self.name) as image:
            self._check_key(image.info)
            await image.resize(size)


class RootDirectory(DirectoryNode):
    """The mount's root: a file for each image, and the control directory."""

    inode = ROOT_INODE

    def __init__(self, registry: Registry, control: DirectoryNode, policy: FilePolicy) -> None:
        self._registry = registry
        self._control = control
        self._policy = policy
        self._creating: dict[str, trio.Event] = {}

    async def attributes(self) -> Attributes:
        # Writable always: the kernel's own refusal would be EACCES, where the mount's is EPERM and says what to set.
        mode = stat.S_IFDIR | 0o755
        return Attributes(inode=self.inode, mode=mode, uid=self._policy.uid, gid=self._policy.gid, nlink=3)

    async def lookup(self, name: str) -> Node:
        if name == CONTROL_NAME:
            return self._control
        return ImageNode(self._registry, await self._registry.lookup(name), self._policy)

    async def entries(self) -> Sequence[tuple[str, Node]]:
        infos = [*await self._registry.list(), *await self._registry.snapshots()]
        images = [(info.name, ImageNode(self._registry, info, self._policy)) for info in infos]
        entries: list[tuple[str, Node]] = [(CONTROL_NAME, self._control), *images]
        return sorted(entries, key=lambda entry: entry[0])

    async def create(self, name: str, flags: int) -> tuple[FileNode, OpenFile]:
        if not self._policy.create:
            raise NotPermitted(f"image {name!r}: set create = true in [mount] to allow new images")
        image, creator = await self._created(name, exclusive=bool(flags & os.O_EXCL))
        node = ImageNode(self._registry, image.info, self._policy)
        try:
            return node, node._opened(image, flags, creator=creator)
        except BaseException:
            self._registry.release(image)
            raise

    async def _created(self, name: str, *, exclusive: bool) -> tuple[Image, bool]:
        """Return the new image, or the one that somebody else has made since the kernel looked; and whether it is new.

        The kernel lets one caller at a time create, but goes on to the next where one is interrupted.
        """
        while (other := self._creating.get(name)) is not None:
            await other.wait()
        self._creating[name] = trio.Event()
        try:
            return await self._registry.create(name), True
        except ImageExists as taken:
            if exclusive:
                raise
            try:
                return await self._registry.acquire(name), False
            except ImageNotFound:
                raise taken from None
        finally:
            self._creating.pop(name).set()

    async def unlink(self, name: str) -> None:
        if not self._policy.remove:
            raise NotPermitted(f"image {name!r}: set remove = true in [mount] to allow images to be removed")
        await self._registry.remove(name)

    async def rename(self, old: str, new: str) -> None:
        if not self._policy.rename:
            raise NotPermitted(f"image {old!r}: set rename = true in [mount] to allow images to be renamed")
        await self._registry.rename(old, new)
