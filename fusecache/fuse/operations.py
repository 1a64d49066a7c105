"""Names: what pyfuse3 asks of us, answered out of nodes.

Owns the namespace operations and the translation of errors. It must not know data requests (they never come here),
images or control commands.

One place, :func:`_answering`, turns exceptions into errno; what nobody expected is logged and becomes EIO, and the
mount lives on.
"""

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pyfuse3
import trio

from fusecache.api.errors import FusecacheError, errno_of
from fusecache.fuse.handles import Handles
from fusecache.fuse.inodes import NodeTable
from fusecache.images.node import Attributes, DirectoryNode, FileNode, Node, OpenFile

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_NAME_MAX = 255
_STATFS_BLOCK = 4096


def _answering(
    method: "Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]]",
) -> "Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]]":
    """Translate what *method* raises; bound the wait for slow backends."""

    @functools.wraps(method)
    async def answer(self: "Operations", *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            with trio.fail_after(self.timeout):
                return await method(self, *args, **kwargs)
        except trio.TooSlowError:
            log.warning("%s: no answer within %g s", method.__name__, self.timeout)
            raise pyfuse3.FUSEError(errno.EIO) from None
        except (FusecacheError, OSError) as error:
            log.debug("%s: %s", method.__name__, error)
            raise pyfuse3.FUSEError(errno_of(error)) from error
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            log.exception("unexpected error in %s", method.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return cast("Callable[Concatenate[Operations, P], Coroutine[Any, Any, T]]", answer)


class Operations(pyfuse3.Operations):
    """The operations of one mount.

    Attributes:
        timeout: seconds after which a name operation fails with EIO.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, root: DirectoryNode, handles: Handles, *, timeout: float = 30.0) -> None:
        super().__init__()
        self.timeout = timeout
        self._nodes = NodeTable(root)
        self._handles = handles
        self._listings: dict[int, Sequence[tuple[str, Node]]] = {}
        self._next_listing = 0

    def _directory(self, nodeid: int) -> DirectoryNode:
        node = self._nodes[nodeid]
        if not isinstance(node, DirectoryNode):
            raise NotADirectoryError(errno.ENOTDIR, f"inode {nodeid:#x} is not a directory")
        return node

    @_answering
    async def lookup(self, parent_inode: int, name: bytes, ctx: Any) -> Any:
        """Find an entry of a directory."""
        if len(name) > _NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, f"a name has at most {_NAME_MAX} bytes, found {len(name)}")
        node = await self._directory(parent_inode).lookup(os.fsdecode(name))
        attributes = await node.attributes()
        return _entry(attributes, self._nodes.looked_up(node))

    @_answering
    async def getattr(self, inode: int, ctx: Any) -> Any:
        """Describe a node."""
        return _entry(await self._nodes[inode].attributes(), inode)

    @_answering
    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> Any:
        """Resize; times are accepted and ignored; owner and mode are the mount's."""
        node = self._nodes[inode]
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise PermissionError(errno.EPERM, "owner, group and mode are set in the mount's configuration")
        if fields.update_size:
            await self._resize(node, fh, attr.st_size)
        return _entry(await node.attributes(), inode)

    async def _resize(self, node: Node, handle: int | None, size: int) -> None:
        file = self._handles.files.get(handle) if handle is not None else None
        if file is not None:
            await file.resize(size)
        else:
            await node.resize(size)

    @_answering
    async def open(self, inode: int, flags: int, ctx: Any) -> Any:
        """Open a file; O_TRUNC, which comes along with the flags, has no effect."""
        node = self._nodes[inode]
        if not isinstance(node, FileNode):
            raise IsADirectoryError(errno.EISDIR, f"inode {inode:#x} is a directory")
        return self._opened(await node.open(flags), inode, flags)

    def _opened(self, file: OpenFile, nodeid: int, flags: int) -> Any:
        handle = self._handles.add(file, nodeid, flags, creator=file.creator)
        return pyfuse3.FileInfo(fh=handle, direct_io=file.direct, keep_cache=file.keep_cache)

    @_answering
    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        """Create a file and open it; without O_EXCL also one that is there by now."""
        node, file = await self._directory(parent_inode).create(os.fsdecode(name), flags)
        try:
            attributes = await node.attributes()
        except BaseException:
            file.close()
            raise
        nodeid = self._nodes.looked_up(node)
        return self._opened(file, nodeid, flags), _entry(attributes, nodeid)

    @_answering
    async def unlink(self, parent_inode: int, name: bytes, ctx: Any) -> None:
        """Remove a file."""
        await self._directory(parent_inode).unlink(os.fsdecode(name))

    @_answering
    async def rename(
        self, parent_inode_old: int, name_old: bytes, parent_inode_new: int, name_new: bytes, flags: int, ctx: Any
    ) -> None:
        """Rename inside one directory."""
        if parent_inode_old != parent_inode_new:
            raise OSError(errno.EXDEV, "images stay in the root directory")
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, f"rename flags {flags:#x} are not supported")
        directory, new = self._directory(parent_inode_old), os.fsdecode(name_new)
        await directory.rename(os.fsdecode(name_old), new)
        # The kernel moves its own entry and looks nothing up, so nobody else brings a node with the new name.
        with contextlib.suppress(FusecacheError, OSError):
            self._nodes.refresh(await directory.lookup(new))

    @_answering
    async def opendir(self, inode: int, ctx: Any) -> int:
        """Take a listing, which the readers of this handle see unchanged."""
        entries = await self._directory(inode).entries()
        self._next_listing += 1
        self._listings[self._next_listing] = entries
        return self._next_listing

    @_answering
    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """Report entries with their attributes; one that cannot be described is left out."""
        entries = self._listings[fh]
        for index in range(start_id, len(entries)):
            name, node = entries[index]
            try:
                attributes = await node.attributes()
            except (FusecacheError, OSError) as error:
                log.debug("readdir: %r is left out: %s", name, error)
                continue
            nodeid = self._nodes.looked_up(node)
            if not pyfuse3.readdir_reply(token, os.fsencode(name), _entry(attributes, nodeid), index + 1):
                self._nodes.forget([(nodeid, 1)])
                return

    async def releasedir(self, fh: int) -> None:
        """Drop a listing."""
        self.close_listing(fh)

    def close_listing(self, handle: int) -> None:
        """Drop a listing now. For the channel."""
        self._listings.pop(handle, None)

    def forget_now(self, forgotten: Sequence[tuple[int, int]]) -> None:
        """Drop what the kernel has forgotten. For the channel, which does not relay that."""
        self._nodes.forget(forgotten)

    @_answering
    async def statfs(self, ctx: Any) -> Any:
        """Give plausible figures; loop devices offer TRIM only where this answers."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = _STATFS_BLOCK
        data.f_blocks = data.f_bfree = data.f_bavail = 0
        data.f_files = data.f_ffree = data.f_favail = 0
        data.f_namemax = _NAME_MAX
        return data


def _entry(attributes: Attributes, nodeid: int) -> Any:
    entry = cast(Any, pyfuse3.EntryAttributes())
    entry.st_ino = nodeid
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_size = attributes.size
    entry.st_blocks = attributes.blocks
    entry.st_blksize = _STATFS_BLOCK
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.mtime_ns
    entry.attr_timeout = entry.entry_timeout = attributes.timeout
    return entry
