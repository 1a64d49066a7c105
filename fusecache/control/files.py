"""The nodes of the control directory: reports, files that take commands, directories.

Owns how a control file behaves as a file. It must not know what a report says, what a command does, or which files
there are.

Control files are direct I/O. Each report is made when it is opened, and stays what it is until the file is closed.
Making one never keeps the loop from other tasks for long, and neither does reading it: it is kept in pieces.
"""

import errno
import logging
import os
import stat
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, TypeAlias

from fusecache.api.errors import FusecacheError, ImageNotFound
from fusecache.api.volume import PENDING, Attempt, Buffers, Done, ReadDone
from fusecache.control.inodes import command_inode, report_inode
from fusecache.control.runner import CommandRunner, Target
from fusecache.control.turns import in_turns
from fusecache.images.node import Attributes, DirectoryNode, FileNode, Node, OpenFile

log = logging.getLogger(__name__)

Report: TypeAlias = Callable[[], Awaitable[Iterable[str]]]
"""Makes a report's content, in pieces of any length: between two of them other tasks may have their turn."""

_CACHED_SECONDS = 1.0
_PIECE: Final = 1 << 16
"""Bytes of a piece that is kept, at least."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """Whose the control files are.

    Attributes:
        control_gid: the group that may use the files that take commands besides the owner; None for no group.
        mtime_ns: the time shown for all of them, nanoseconds since the epoch.
    """

    uid: int
    gid: int
    control_gid: int | None = None
    mtime_ns: int = 0

    def report(self, inode: int) -> Attributes:
        """Return the attributes of a report: everybody may read it."""
        return self._attributes(inode, stat.S_IFREG | 0o444, self.gid, _CACHED_SECONDS)

    def command(self, inode: int) -> Attributes:
        """Return the attributes of a file that takes commands. Never cached, so that every opener gets a fresh one."""
        if self.control_gid is None:
            return self._attributes(inode, stat.S_IFREG | 0o600, self.gid, 0.0)
        return self._attributes(inode, stat.S_IFREG | 0o660, self.control_gid, 0.0)

    def directory(self, inode: int, *, lasting: bool) -> Attributes:
        """Return the attributes of a directory; one that is not *lasting* may vanish at any time."""
        timeout = _CACHED_SECONDS if lasting else 0.0
        attributes = self._attributes(inode, stat.S_IFDIR | 0o555, self.gid, timeout)
        attributes.nlink = 2
        return attributes

    def _attributes(self, inode: int, mode: int, gid: int, timeout: float) -> Attributes:
        return Attributes(inode, mode, uid=self.uid, gid=gid, mtime_ns=self.mtime_ns, timeout=timeout)


class _OpenReport(OpenFile):
    direct = True

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._starts = [0, *accumulate(map(len, pieces))]

    @property
    def end(self) -> int:
        return self._starts[-1]

    def read(self, offset: int, length: int, done: ReadDone) -> Buffers | Attempt:
        number = bisect_right(self._starts, offset) - 1
        buffers = []
        while length:
            within = offset - self._starts[number]
            buffers.append(self._pieces[number][within : within + length])
            offset, length, number = offset + len(buffers[-1]), length - len(buffers[-1]), number + 1
        return tuple(buffers)

    async def resize(self, size: int) -> None:
        """Succeed without effect, as truncation by name does."""

    def close(self) -> None:
        pass


class _OpenCommand(_OpenReport):
    interruptible_writes = True

    def __init__(self, pieces: Sequence[bytes], runner: CommandRunner, target: Target) -> None:
        super().__init__(pieces)
        self._runner = runner
        self._target = target

    def write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self._runner.submit(self._target, bytes(data), done)
        return PENDING


class _ControlFile(FileNode):
    async def resize(self, size: int) -> None:
        """Succeed without effect: the shell's ``>`` truncates."""


class ReportNode(_ControlFile):
    """A file to read."""

    def __init__(self, path: Sequence[str], owner: Ownership, report: Report) -> None:
        self.inode = report_inode(*path)
        self._path = path
        self._owner = owner
        self._report = report

    async def attributes(self) -> Attributes:
        return self._owner.report(self.inode)

    async def open(self, flags: int) -> OpenFile:
        return _OpenReport(await _content(self._path, self._report))


class CommandNode(_ControlFile):
    """A file to write commands to; reading it shows its report."""

    fresh_lookups = True

    def __init__(
        self, path: Sequence[str], owner: Ownership, report: Report, runner: CommandRunner, target: Target
    ) -> None:
        self.inode = command_inode(*path)
        self._path = path
        self._owner = owner
        self._report = report
        self._runner = runner
        self._target = target

    async def attributes(self) -> Attributes:
        return self._owner.command(self.inode)

    async def open(self, flags: int) -> OpenFile:
        # A writer gets no report made, which might fail or take time.
        to_read = flags & os.O_ACCMODE != os.O_WRONLY
        pieces = await _content(self._path, self._report) if to_read else ()
        return _OpenCommand(pieces, self._runner, self._target)


async def _content(path: Sequence[str], report: Report) -> Sequence[bytes]:
    try:
        return [piece for piece in await in_turns(_encoded(await report())) if piece]
    except (FusecacheError, OSError):
        raise
    except Exception as error:
        log.exception("control file %s cannot be made", "/".join(path))
        raise OSError(errno.EIO, "the report failed") from error


def _encoded(pieces: Iterable[str]) -> Iterator[bytes]:
    """Yield larger pieces, encoded; where one is not full yet, nothing."""
    waiting: list[str] = []
    length = 0
    for piece in pieces:
        waiting.append(piece)
        length += len(piece)
        if length >= _PIECE:
            yield "".join(waiting).encode("utf-8", "backslashreplace")
            waiting, length = [], 0
        else:
            yield b""
    yield "".join(waiting).encode("utf-8", "backslashreplace")


class ControlDirectory(DirectoryNode):
    """A directory; what is in it is asked at each use."""

    def __init__(self, inode: int, owner: Ownership, *, lasting: bool = True) -> None:
        self.inode = inode
        self._owner = owner
        self._lasting = lasting

    async def attributes(self) -> Attributes:
        return self._owner.directory(self.inode, lasting=self._lasting)


class FixedDirectory(ControlDirectory):
    """A directory whose entries are known without waiting."""

    def __init__(
        self,
        inode: int,
        owner: Ownership,
        list_entries: Callable[[], Mapping[str, Node]],
        *,
        lasting: bool = True,
    ) -> None:
        super().__init__(inode, owner, lasting=lasting)
        self._list_entries = list_entries

    async def lookup(self, name: str) -> Node:
        node = self._list_entries().get(name)
        if node is None:
            raise ImageNotFound(f"found {name!r} in the control directory, allowed: {', '.join(self._list_entries())}")
        return node

    async def entries(self) -> Sequence[tuple[str, Node]]:
        return sorted(self._list_entries().items())
