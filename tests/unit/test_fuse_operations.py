"""Names as pyfuse3 asks for them: nodes, handles, listings, and what errors become."""

import errno
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
from trio.testing import MockClock

from fusecache.api.errors import FusecacheError, ImageBusy, ImageGone
from fusecache.fuse.handles import Handles
from fusecache.fuse.operations import Operations
from fusecache.fuse.slots import SlotMemory
from fusecache.images.files import FilePolicy, RootDirectory
from tests.support.images import shelf
from tests.support.nodes import Folder, ScriptedFile, ScriptedNode

CTX: Any = None
ROOT = pyfuse3.ROOT_INODE
EVERYTHING = FilePolicy(uid=0, gid=0, create=True, rename=True, remove=True, resize=True)


@pytest.fixture
def handles() -> Iterator[Handles]:
    memory = SlotMemory()
    yield Handles(memory)
    os.close(memory.fd)


class Served:
    """The operations over one directory of two files."""

    def __init__(self, handles: Handles) -> None:
        self.node = ScriptedNode(77)
        self.other = ScriptedNode(78)
        self.root = Folder({"disk": self.node, "other": self.other})
        self.handles = handles
        self.ops = Operations(self.root, handles, timeout=10.0)

    async def lookup(self, name: bytes = b"disk") -> Any:
        return await self.ops.lookup(ROOT, name, CTX)


@pytest.fixture
def served(handles: Handles) -> Served:
    return Served(handles)


def refused(number: int) -> Any:
    return pytest.raises(pyfuse3.FUSEError, match=os.strerror(number))


def fields(**updated: bool) -> SimpleNamespace:
    """What a SETATTR sets."""
    names = ("size", "mode", "uid", "gid", "atime", "mtime", "ctime")
    return SimpleNamespace(**{f"update_{name}": updated.get(name, False) for name in names})


async def test_a_lookup_describes_what_was_found(served: Served) -> None:
    entry = await served.lookup()
    assert (entry.st_ino, entry.st_mode, entry.st_nlink) == (77, 0o100640, 1)
    assert (entry.st_size, entry.st_blocks, entry.st_blksize) == (1000, 3, 4096)
    assert (entry.st_uid, entry.st_gid) == (5, 6)
    assert entry.st_mtime_ns == entry.st_ctime_ns == entry.st_atime_ns == 1_500_000_007
    assert entry.attr_timeout == entry.entry_timeout == 0.25
    again = await served.ops.getattr(77, CTX)
    assert (again.st_ino, again.st_size) == (77, 1000)


async def test_the_root_is_there_without_a_lookup(served: Served) -> None:
    assert (await served.ops.getattr(ROOT, CTX)).st_ino == ROOT


async def test_what_the_kernel_forgot_is_stale(served: Served) -> None:
    await served.lookup()
    await served.lookup()
    served.ops.forget_now([(77, 1)])
    await served.ops.getattr(77, CTX)
    served.ops.forget_now([(77, 1)])
    with refused(errno.ESTALE):
        await served.ops.getattr(77, CTX)


async def test_a_lookup_that_fails_counts_nothing(served: Served) -> None:
    served.node.failure = ImageGone("gone")
    with refused(errno.ESTALE):
        await served.lookup()
    served.node.failure = None
    with refused(errno.ESTALE):
        await served.ops.getattr(77, CTX)


@pytest.mark.parametrize(("name", "number"), [(b"none", errno.ENOENT), (b"n" * 256, errno.ENAMETOOLONG)])
async def test_a_name_that_is_not_there_is_not_found(name: bytes, number: int, served: Served) -> None:
    with refused(number):
        await served.lookup(name)


async def test_a_name_that_is_not_text_is_a_name_too(served: Served) -> None:
    served.root.nodes["\udcff\udcfe"] = ScriptedNode(80)
    assert (await served.lookup(b"\xff\xfe")).st_ino == 80


@pytest.mark.parametrize(
    ("failure", "number", "logged"),
    [
        (ImageBusy("held"), errno.EBUSY, False),
        (FusecacheError("broken"), errno.EIO, False),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC, False),
        (OSError("no number"), errno.EIO, False),
        (pyfuse3.FUSEError(errno.EDOM), errno.EDOM, False),
        (ZeroDivisionError("oops"), errno.EIO, True),
        (ExceptionGroup("several", [ValueError("oops")]), errno.EIO, True),
    ],
)
async def test_an_error_becomes_its_number_and_what_nobody_expected_is_logged(
    failure: Exception, number: int, logged: bool, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    await served.lookup()
    served.node.failure = failure
    for call in (
        served.ops.getattr(77, CTX),
        served.ops.open(77, os.O_RDONLY, CTX),
        served.ops.setattr(77, SimpleNamespace(st_size=0), fields(size=True), None, CTX),
        served.lookup(),
    ):
        caplog.clear()
        with refused(number) as caught:
            await call
        assert caught.value.errno == number
        assert ("oops" in caplog.text) == logged
    served.node.failure = None
    await served.ops.getattr(77, CTX)


async def test_a_name_operation_without_an_answer_fails_after_its_time(
    served: Served, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await served.lookup()
    served.node.delay = 10.5
    started = trio.current_time()
    with refused(errno.EIO):
        await served.ops.open(77, os.O_RDONLY, CTX)
    assert trio.current_time() - started == pytest.approx(10)
    assert "open: no answer within 10 s" in caplog.text
    assert not served.handles.files
    served.node.delay = 9.5
    await served.ops.open(77, os.O_RDONLY, CTX)


async def test_a_cancelled_operation_stays_cancelled(served: Served) -> None:
    served.node.delay = 10**6
    with trio.CancelScope() as scope:
        scope.cancel()
        await served.lookup()
    assert scope.cancelled_caught


async def test_a_file_opens_with_a_handle_and_says_what_the_kernel_may_keep(served: Served) -> None:
    await served.lookup()
    file = ScriptedFile()
    file.direct, file.keep_cache = True, False
    served.node.opens = lambda: file
    info = await served.ops.open(77, os.O_RDWR | os.O_TRUNC, CTX)
    assert served.handles.files == {info.fh: file}
    assert (info.direct_io, info.keep_cache) == (True, False)
    file.direct, file.keep_cache = False, True
    info = await served.ops.open(77, os.O_RDWR, CTX)
    assert (info.direct_io, info.keep_cache) == (False, True)
    assert len(served.handles.files) == 2


async def test_directories_are_not_files_and_files_are_not_directories(served: Served) -> None:
    await served.lookup()
    with refused(errno.EISDIR):
        await served.ops.open(ROOT, os.O_RDONLY, CTX)
    for call in (
        served.ops.opendir(77, CTX),
        served.ops.lookup(77, b"x", CTX),
        served.ops.unlink(77, b"x", CTX),
        served.ops.create(77, b"x", 0, 0, CTX),
    ):
        with refused(errno.ENOTDIR):
            await call


@pytest.mark.parametrize("field", ["mode", "uid", "gid"])
async def test_owner_and_mode_are_the_mounts(field: str, served: Served) -> None:
    await served.lookup()
    with refused(errno.EPERM):
        await served.ops.setattr(77, SimpleNamespace(st_size=0), fields(size=True, **{field: True}), None, CTX)
    assert not served.node.sizes


async def test_times_are_accepted_and_ignored(served: Served) -> None:
    await served.lookup()
    entry = await served.ops.setattr(77, SimpleNamespace(), fields(mtime=True, atime=True, ctime=True), None, CTX)
    assert entry.st_mtime_ns == 1_500_000_007


async def test_a_length_is_set_by_the_opener_where_there_is_one(served: Served) -> None:
    await served.lookup()
    file = ScriptedFile()
    served.node.opens = lambda: file
    info = await served.ops.open(77, os.O_RDWR, CTX)
    await served.ops.setattr(77, SimpleNamespace(st_size=5), fields(size=True), info.fh, CTX)
    assert (file.asked, served.node.sizes) == (["resize 5"], [])
    await served.ops.setattr(77, SimpleNamespace(st_size=6), fields(size=True), None, CTX)
    await served.ops.setattr(77, SimpleNamespace(st_size=7), fields(size=True), 999, CTX)
    assert (file.asked, served.node.sizes) == (["resize 5"], [6, 7])


class Token:
    """Takes entries as long as there is room, as the kernel's buffer does."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.room = 100
        self.taken: list[tuple[bytes, int, int]] = []
        patch.setattr(pyfuse3, "readdir_reply", self._reply)

    def _reply(self, token: object, name: bytes, entry: Any, next_id: int) -> bool:
        assert token is self
        if not self.room:
            return False
        self.room -= 1
        self.taken.append((name, entry.st_ino, next_id))
        return True


async def test_a_listing_is_read_in_pieces_each_from_where_the_last_ended(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.root.nodes = {f"image-{at}": ScriptedNode(100 + at) for at in range(5)}
    fh = await served.ops.opendir(ROOT, CTX)
    token = Token(monkeypatch)
    start = 0
    for _ in range(4):
        token.room = 2
        await served.ops.readdir(fh, start, token)
        start = token.taken[-1][2]
    assert token.taken == [(f"image-{at}".encode(), 100 + at, at + 1) for at in range(5)]
    # Each entry that was taken counts as looked up, and no other.
    served.ops.forget_now([(100 + at, 1) for at in range(5)])
    for at in range(5):
        with refused(errno.ESTALE):
            await served.ops.getattr(100 + at, CTX)


async def test_a_listing_does_not_change_while_it_is_read(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    fh = await served.ops.opendir(ROOT, CTX)
    del served.root.nodes["disk"]
    served.root.nodes["new"] = ScriptedNode(90)
    token = Token(monkeypatch)
    await served.ops.readdir(fh, 0, token)
    assert [name for name, _, _ in token.taken] == [b"disk", b"other"]
    again = await served.ops.opendir(ROOT, CTX)
    await served.ops.readdir(again, 1, token)
    assert token.taken[2:] == [(b"other", 78, 2)]
    await served.ops.releasedir(fh)
    with refused(errno.EIO):
        await served.ops.readdir(fh, 0, token)


async def test_an_entry_that_is_gone_is_left_out_of_a_listing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.node.failure = ImageGone("gone")
    token = Token(monkeypatch)
    await served.ops.readdir(await served.ops.opendir(ROOT, CTX), 0, token)
    assert token.taken == [(b"other", 78, 2)]


async def test_statfs_answers(served: Served) -> None:
    data = await served.ops.statfs(CTX)
    assert (data.f_bsize, data.f_frsize, data.f_namemax) == (4096, 4096, 255)


async def test_images_are_created_renamed_and_removed(handles: Handles) -> None:
    async with shelf("disk", release_after=1e9) as images:
        ops = Operations(RootDirectory(images.registry, Folder(inode=2), EVERYTHING), handles)
        info, entry = await ops.create(ROOT, b"new", 0o600, os.O_RDWR, CTX)
        assert (entry.st_size, list(handles.files)) == (0, [info.fh])
        assert (await ops.getattr(entry.st_ino, CTX)).st_ino == entry.st_ino
        with refused(errno.EEXIST):
            await ops.create(ROOT, b"disk", 0o600, os.O_RDWR | os.O_EXCL, CTX)
        with refused(errno.EEXIST):
            await ops.rename(ROOT, b"new", ROOT, b"disk", 0, CTX)
        await ops.rename(ROOT, b"new", ROOT, b"newer", pyfuse3.RENAME_NOREPLACE, CTX)
        # The kernel asks by inode, without another lookup.
        assert (await ops.getattr(entry.st_ino, CTX)).st_ino == entry.st_ino
        with refused(errno.EBUSY):
            await ops.unlink(ROOT, b"newer", CTX)
        handles.close(info.fh)
        await ops.open(entry.st_ino, os.O_RDONLY, CTX)
        handles.close_all()
        await ops.unlink(ROOT, b"newer", CTX)
        with refused(errno.ENOENT):
            await ops.getattr(entry.st_ino, CTX)
        assert list(images.backend.images) == ["disk"]


async def test_an_unopened_image_is_found_under_its_new_name_by_inode(handles: Handles) -> None:
    async with shelf("disk") as images:
        ops = Operations(RootDirectory(images.registry, Folder(inode=2), EVERYTHING), handles)
        entry = await ops.lookup(ROOT, b"disk", CTX)
        await ops.rename(ROOT, b"disk", ROOT, b"new", 0, CTX)
        for _ in range(2):
            assert (await ops.getattr(entry.st_ino, CTX)).st_size == 4096
        await ops.open(entry.st_ino, os.O_RDWR, CTX)
        assert images.begun == ["new"]


@pytest.mark.parametrize(
    ("parent", "flags", "number"),
    [(2, 0, errno.EXDEV), (ROOT, pyfuse3.RENAME_EXCHANGE, errno.EINVAL), (ROOT, 4, errno.EINVAL)],
)
async def test_only_plain_renames_inside_one_directory_are_made(
    parent: int, flags: int, number: int, handles: Handles
) -> None:
    async with shelf("disk", "other") as images:
        ops = Operations(RootDirectory(images.registry, Folder(inode=2), EVERYTHING), handles)
        with refused(number):
            await ops.rename(ROOT, b"disk", parent, b"new", flags, CTX)
        assert sorted(images.backend.images) == ["disk", "other"]


async def test_a_created_file_that_cannot_be_described_is_closed(handles: Handles) -> None:
    file, node = ScriptedFile(), ScriptedNode(90)
    node.failure = ImageGone("gone")

    class Creating(Folder):
        async def create(self, name: str, flags: int) -> tuple[ScriptedNode, ScriptedFile]:
            await trio.lowlevel.checkpoint()
            return node, file

    ops = Operations(Creating(), handles)
    with refused(errno.ESTALE):
        await ops.create(ROOT, b"new", 0o600, os.O_RDWR, CTX)
    assert (file.closed, handles.files) == (1, {})
