"""The record of a directory's image: in an attribute of the file, whole, durable, and the file's own."""

import os
import subprocess
from pathlib import Path

import pytest

from fusecache.api import ImageRecord
from fusecache.api.errors import CorruptState, Fenced, NotSupported, VolumeReadOnly
from fusecache.backends.marks import RECORD_ATTRIBUTE
from fusecache.testing import FreeClaim
from tests.support.image_directory import opened, requires_attributes

HERE = "0" * 32
DIRTY = ImageRecord(epoch=2, holder=HERE, holder_name="here", manifest="m")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    requires_attributes(tmp_path)
    (tmp_path / "a").write_bytes(b"data")
    return tmp_path


async def put(images: Path, record: ImageRecord) -> None:
    async with opened(images) as backend, backend.open("a", FreeClaim()) as image:
        await image.set_record(record, guard=True)


def copy(images: Path) -> None:
    subprocess.run(["cp", "-a", images / "a", images / "copy"], check=True)


async def test_a_record_is_durable_when_set(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, set_attribute = os.fsync, os.setxattr

    def synced(fd: int) -> None:
        calls.append("sync")
        sync(fd)

    def changed(fd: int, name: str, value: bytes) -> None:
        calls.append(name)
        set_attribute(fd, name, value)

    async with opened(images) as backend, backend.open("a", FreeClaim()) as image:
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "setxattr", changed)
        await image.set_record(DIRTY, guard=True)
    assert calls == [RECORD_ATTRIBUTE, "sync"]
    assert os.getxattr(images / "a", RECORD_ATTRIBUTE).startswith(b"fusecache-record 1 crc32c ")


async def test_a_damaged_record_keeps_the_image_closed(images: Path) -> None:
    await put(images, DIRTY)
    for value in (b"junk", b"\xff", os.getxattr(images / "a", RECORD_ATTRIBUTE)[:-1]):
        os.setxattr(images / "a", RECORD_ATTRIBUTE, value)
        async with opened(images) as backend:
            with pytest.raises(CorruptState, match=f"a: attribute {RECORD_ATTRIBUTE}: "):
                async with backend.open("a", FreeClaim()):
                    raise AssertionError("the image is open")
            with pytest.raises(CorruptState):
                await backend.read_record("a")
        assert os.getxattr(images / "a", RECORD_ATTRIBUTE) == value


async def test_a_copy_of_a_clean_image_has_no_record(images: Path) -> None:
    await put(images, ImageRecord(epoch=3))
    copy(images)
    async with opened(images) as backend:
        assert await backend.read_record("copy") is None
        async with backend.open("copy", FreeClaim()) as image:
            assert await image.record() is None
            await image.set_record(DIRTY, guard=True)
        assert await backend.read_record("a") == ImageRecord(epoch=3)
        assert await backend.read_record("copy") == DIRTY


async def test_a_copy_that_lacks_dirty_data_is_not_opened_until_it_is_accepted(images: Path) -> None:
    await put(images, DIRTY)
    copy(images)
    async with opened(images) as backend:
        with pytest.raises(Fenced, match=r"the copy lacks that data; .* `setfattr -x user\.fusecache\.record .*/copy`"):
            async with backend.open("copy", FreeClaim()):
                raise AssertionError("the image is open")
        os.removexattr(images / "copy", RECORD_ATTRIBUTE)
        async with backend.open("copy", FreeClaim()), backend.open("a", FreeClaim()) as image:
            assert await image.record() == DIRTY


async def test_a_file_without_attributes_can_have_no_record(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    async with opened(images) as backend, backend.open("a", FreeClaim()) as image:
        assert not image.durable_identity
        assert await image.record() is None
        with pytest.raises(NotSupported, match="no record"):
            await image.set_record(DIRTY, guard=True)


async def test_a_reader_changes_no_record(images: Path) -> None:
    await put(images, DIRTY)
    async with opened(images) as backend, backend.open("a", FreeClaim(), read_only=True) as image:
        with pytest.raises(VolumeReadOnly):
            await image.set_record(ImageRecord(epoch=9), guard=False)
        assert await image.record() == DIRTY


async def test_the_claim_knows_no_client(images: Path) -> None:
    claim = FreeClaim()
    async with opened(images) as backend, backend.open("a", claim) as image:
        assert claim.asked == [(image.identity, "")]
