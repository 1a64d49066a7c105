"""The directory backend's names: what is an image, and creating, renaming and removing."""

import errno
import os
import socket
import stat
import threading
import time
from pathlib import Path

import pytest
import trio
import trio.testing

from fusecache.api.errors import FusecacheError, ImageBusy, ImageExists, ImageGone, ImageNotFound, NotSupported
from fusecache.backends import open_backend
from fusecache.testing.claims import FreeClaim
from tests.support.image_directory import Events, config, delivered, opened, requires_attributes


def snapshot(directory: Path) -> dict[str, tuple[int, int, list[str]]]:
    """Return what a mere look must not change."""
    return {
        path.name: (path.lstat().st_mtime_ns, path.lstat().st_ctime_ns, os.listxattr(path, follow_symlinks=False))
        for path in (directory, *directory.iterdir())
    }


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def write_file(directory: Path, name: bytes, content: bytes) -> None:
    Path(os.fsdecode(os.path.join(os.fsencode(directory), name))).write_bytes(content)  # noqa: PTH118 - bytes


async def test_every_regular_file_is_an_image_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a", ".hidden", ".control", "image@snap", "with blank"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    async with opened(tmp_path) as backend:
        assert {image.name for image in await backend.list()} == {
            "a",
            ".hidden",
            ".control",
            "image@snap",
            "with blank",
        }
        for name in ("directory", "link", "fifo", "socket"):
            with pytest.raises(ImageNotFound, match="not a regular file"):
                await backend.lookup(name)
            with pytest.raises(ImageNotFound, match="not a regular file"):
                async with backend.open(name, FreeClaim()):
                    pass


async def test_listing_and_looking_up_write_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 1000)
    before = snapshot(tmp_path)
    async with opened(tmp_path) as backend:
        await backend.list()
        await backend.lookup("a")
        async with backend.open("a", FreeClaim(), read_only=True) as image:
            await image.info()
    assert snapshot(tmp_path) == before


async def test_an_image_is_described_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 5000)
    found = path.stat()
    async with opened(tmp_path) as backend:
        info = await backend.lookup("a")
        assert [info] == list(await backend.list())
    assert info.key == f"directory:{found.st_dev}:{found.st_ino}"
    assert (info.size, info.allocated) == (5000, found.st_blocks * 512)
    assert info.mtime_ns == found.st_mtime_ns
    assert not info.read_only


async def test_a_thousand_images_are_listed_in_little_time(tmp_path: Path) -> None:
    for n in range(1000):
        (tmp_path / f"image-{n}").touch()
    async with opened(tmp_path) as backend:
        await backend.list()
        spent = time.process_time()
        assert len(await backend.list()) == 1000
        assert time.process_time() - spent < 0.1


async def test_names_that_are_not_utf8_lead_to_their_files(tmp_path: Path) -> None:
    raw = b"bad-\xff-name"
    write_file(tmp_path, raw, b"content")
    async with opened(tmp_path) as backend:
        (info,) = await backend.list()
        assert os.fsencode(info.name) == raw
        async with backend.open(info.name, FreeClaim()) as image:
            assert bytes((await image.read(0, 7))[0]) == b"content"
        await backend.rename(info.name, "good")
        assert (await backend.lookup("good")).key == info.key


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "\ud800"])
async def test_a_name_no_file_can_have_is_refused(tmp_path: Path, name: str) -> None:
    async with opened(tmp_path) as backend:
        for call in (backend.lookup(name), backend.create(name, 1), backend.remove(name), backend.rename("a", name)):
            with pytest.raises(OSError, match="found the image name") as caught:
                await call
            assert caught.value.errno == errno.EINVAL


async def test_a_name_may_have_255_bytes_and_no_more(tmp_path: Path) -> None:
    async with opened(tmp_path) as backend:
        await backend.create("n" * 255, 0)
        with pytest.raises(OSError, match="256 bytes, allowed: at most 255") as caught:
            await backend.create("ü" * 128, 0)
        assert caught.value.errno == errno.ENAMETOOLONG


async def test_a_created_image_is_sparse_private_and_reads_as_zeroes(tmp_path: Path) -> None:
    async with opened(tmp_path) as backend:
        info = await backend.create("new", 1_000_001)
        assert (info.size, info.allocated) == (1_000_001, 0)
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
        async with backend.open("new", FreeClaim()) as image:
            assert bytes((await image.read(1_000_000, 1))[0]) == b"\0"
        with pytest.raises(ImageExists, match="'new' is taken"):
            await backend.create("new", 1)
        assert (await backend.lookup("new")).size == 1_000_001


async def test_an_image_that_cannot_be_created_leaves_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as backend:
        with pytest.raises(OSError, match="Invalid argument"):
            await backend.create("new", -1)
        assert names(tmp_path) == []


async def test_a_rename_keeps_the_image_and_never_replaces_another(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    async with opened(tmp_path) as backend:
        key = (await backend.lookup("a")).key
        with pytest.raises(ImageExists, match="'b' is taken"):
            await backend.rename("a", "b")
        await backend.rename("a", "c")
        assert (await backend.lookup("c")).key == key
        with pytest.raises(ImageNotFound):
            await backend.rename("a", "d")
    assert (tmp_path / "b").read_bytes() == b"b"
    assert names(tmp_path) == ["b", "c"]


async def test_an_open_image_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    async with opened(tmp_path) as backend:
        async with backend.open("a", FreeClaim(), read_only=True):
            with pytest.raises(ImageBusy, match=f"held by pid {os.getpid()}"):
                await backend.remove("a")
        await backend.remove("a")
        assert not (tmp_path / "a").exists()
        with pytest.raises(ImageNotFound):
            await backend.remove("a")


async def test_a_cancelled_create_happened_wholly(tmp_path: Path) -> None:
    async with opened(tmp_path) as backend:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.create, "new", 12345)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert [(image.name, image.size) for image in await backend.list()] == [("new", 12345)]


async def test_an_open_image_knows_its_present_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    async with opened(tmp_path) as backend, backend.open("a", FreeClaim()) as image:
        assert (await image.info()).name == "a"
        await backend.rename("a", "b")
        assert (await image.info()).name == "b"
        (tmp_path / "b").rename(tmp_path / "c")
        (tmp_path / "b").write_bytes(b"another")
        assert (await image.info()).name == "c"
        (tmp_path / "c").unlink()
        with pytest.raises(ImageGone, match="removed while it was open"):
            await image.info()
        with pytest.raises(ImageGone):
            await image.flush()


async def test_an_image_moved_away_is_gone(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "a").write_bytes(b"a")
    async with opened(images) as backend, backend.open("a", FreeClaim()) as image:
        (images / "a").rename(tmp_path / "a")
        with pytest.raises(ImageGone, match="moved out of"):
            await image.info()


async def test_a_directory_that_vanished_is_an_error_not_an_empty_one(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    async with opened(images) as backend:
        images.rmdir()
        for call in (backend.list(), backend.lookup("a"), backend.create("a", 1)):
            with pytest.raises(FusecacheError, match="was removed behind us") as caught:
                await call
            assert caught.value.errno == errno.EIO


async def test_only_a_directory_can_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with delivered() as completions:
        for name, error in (("missing", errno.ENOENT), ("file", errno.ENOTDIR)):
            with pytest.raises(OSError, match=name) as caught:
                async with open_backend(config(tmp_path / name), completions, Events().emit):
                    pass
            assert caught.value.errno == error


async def test_an_unknown_type_is_refused(tmp_path: Path) -> None:
    async with delivered() as completions:
        with pytest.raises(NotSupported, match="found backend type 'tape', allowed: directory"):
            open_backend(config(tmp_path, type="tape"), completions, Events().emit)


async def test_no_descriptor_and_no_thread_outlives_the_backend(tmp_path: Path) -> None:
    requires_attributes(tmp_path)
    (tmp_path / "a").write_bytes(b"a")

    def ours() -> list[str]:
        links = []
        for path in Path("/proc/self/fd").iterdir():
            try:
                links.append(str(path.readlink()))
            except FileNotFoundError:
                continue
        return [link for link in links if link.startswith(str(tmp_path))]

    async with opened(tmp_path) as backend:
        async with backend.open("a", FreeClaim()):
            assert len(ours()) == 2
        assert ours() == [str(tmp_path)]
    assert ours() == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("directory-")]
