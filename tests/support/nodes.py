"""Directories and files whose answers a test decides, for what stands between them and the kernel.

Owns an open file that answers at once, later or with an error. It must not know FUSE.
"""

import stat
from collections.abc import Callable, Sequence

import trio

from fusecache.api import DONE, PENDING, Attempt, Buffers, Done, ReadDone
from fusecache.api.errors import ImageNotFound
from fusecache.images.node import Attributes, DirectoryNode, FileNode, Node, OpenFile


class Folder(DirectoryNode):
    """A directory of the nodes it is given."""

    def __init__(self, entries: dict[str, Node] | None = None, *, inode: int = 1) -> None:
        self.inode = inode
        self.nodes = {} if entries is None else entries

    async def attributes(self) -> Attributes:
        await trio.lowlevel.checkpoint()
        return Attributes(self.inode, stat.S_IFDIR | 0o755, nlink=2)

    async def lookup(self, name: str) -> Node:
        await trio.lowlevel.checkpoint()
        if name not in self.nodes:
            raise ImageNotFound(f"found no {name!r}")
        return self.nodes[name]

    async def entries(self) -> Sequence[tuple[str, Node]]:
        await trio.lowlevel.checkpoint()
        return sorted(self.nodes.items())


class ScriptedFile(OpenFile):
    """An open file of a kibibyte that notes what is asked.

    Attributes:
        asked: a line for each request.
        waits: requests are PENDING; their callbacks are in *reads* and *changes*.
        failure: raised by every request.
        closed: how often it was closed.
    """

    def __init__(self, *, waits: bool = False, interruptible: bool = False, end: int = 1024) -> None:
        self.waits = waits
        self.interruptible_writes = interruptible
        self.failure: Exception | None = None
        self.asked: list[str] = []
        self.written: list[memoryview] = []
        self.reads: list[ReadDone] = []
        self.changes: list[Done] = []
        self.sought = trio.Event()
        self.closed = 0
        self._end = end

    @property
    def end(self) -> int:
        return self._end

    def read(self, offset: int, length: int, done: ReadDone) -> Buffers | Attempt:
        self._note(f"read {offset} {length}")
        if self.waits:
            self.reads.append(done)
            return PENDING
        return [bytes([offset & 0xFF]) * length]

    def write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self.written.append(data)
        return self._change(f"write {offset} {len(data)}", done)

    def zero(self, offset: int, length: int, done: Done) -> Attempt:
        return self._change(f"zero {offset} {length}", done)

    def discard(self, offset: int, length: int, done: Done) -> Attempt:
        return self._change(f"discard {offset} {length}", done)

    def allocate(self, offset: int, length: int, done: Done, *, keep_size: bool) -> Attempt:
        return self._change(f"allocate {offset} {length} {keep_size}", done)

    def flush(self, done: Done) -> Attempt:
        return self._change("flush", done)

    async def resize(self, size: int) -> None:
        await trio.lowlevel.checkpoint()
        self._note(f"resize {size}")

    async def seek(self, offset: int, *, hole: bool) -> int:
        self._note(f"seek {offset} {hole}")
        if self.waits:
            await self.sought.wait()
        await trio.lowlevel.checkpoint()
        return offset + 1

    def close(self) -> None:
        self.closed += 1
        self._note("close")

    def _change(self, asked: str, done: Done) -> Attempt:
        self._note(asked)
        if self.waits:
            self.changes.append(done)
            return PENDING
        return DONE

    def _note(self, asked: str) -> None:
        self.asked.append(asked)
        if self.failure is not None:
            raise self.failure


class ScriptedNode(FileNode):
    """A file.

    Attributes:
        opens: what the next openers get.
        delay: seconds of trio's clock that each answer takes.
        failure: raised by every question.
        sizes: what it was resized to.
    """

    def __init__(self, inode: int, *, fresh: bool = False) -> None:
        self.inode = inode
        self.fresh_lookups = fresh
        self.opens: Callable[[], OpenFile] = ScriptedFile
        self.delay = 0.0
        self.failure: Exception | None = None
        self.sizes: list[int] = []

    async def attributes(self) -> Attributes:
        await self._answer()
        return Attributes(
            self.inode, stat.S_IFREG | 0o640, size=1000, blocks=3, uid=5, gid=6, mtime_ns=1_500_000_007, timeout=0.25
        )

    async def open(self, flags: int) -> OpenFile:
        await self._answer()
        return self.opens()

    async def resize(self, size: int) -> None:
        await self._answer()
        self.sizes.append(size)

    async def _answer(self) -> None:
        await trio.sleep(self.delay)
        if self.failure is not None:
            raise self.failure
