"""The directory backend's exclusive lock, and the identity of images."""

import fcntl
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from fusecache.api import Identity
from fusecache.api.errors import ImageBusy, VolumeReadOnly
from fusecache.backends.marks import ATTRIBUTE
from fusecache.testing.claims import FreeClaim
from tests.support.image_directory import opened, requires_attributes

HOLDER = """
import fcntl, sys
file = open(sys.argv[1])
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[int]:
    """Hold the lock of *path* in another process, and give its pid."""
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process.pid
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def run(*command: str, pass_fds: Collection[int] = ()) -> None:
    subprocess.run(command, pass_fds=pass_fds, check=True, capture_output=True)


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


async def identity_of(directory: Path, name: str, *, read_only: bool = False) -> tuple[Identity, bool]:
    async with opened(directory) as backend, backend.open(name, FreeClaim(), read_only=read_only) as image:
        return image.identity, image.durable_identity


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a directory with the image ``a``."""
    requires_attributes(tmp_path)
    (tmp_path / "a").write_bytes(b"x" * 5000)
    return tmp_path


async def test_an_image_held_by_another_process_is_busy_and_its_owner_named(images: Path) -> None:
    with held_elsewhere(images / "a") as pid:
        async with opened(images) as backend:
            for read_only in (False, True):
                with pytest.raises(ImageBusy) as caught:
                    async with backend.open("a", FreeClaim(), read_only=read_only):
                        pass
                assert str(caught.value) == f"image 'a' is held by pid {pid} ({command_of(pid)})"
    assert (await identity_of(images, "a"))[1]


async def test_two_backends_exclude_each_other(images: Path) -> None:
    async with opened(images) as one, opened(images) as two:
        async with one.open("a", FreeClaim()):
            with pytest.raises(ImageBusy, match=rf"held by pid {os.getpid()} \("):
                async with two.open("a", FreeClaim(), read_only=True):
                    pass
        async with two.open("a", FreeClaim()):
            pass


async def test_a_lock_whose_owner_is_dead_names_another_process(images: Path) -> None:
    # The lock lives on in the descriptor that the process inherited from us.
    with (images / "a").open() as file:
        run("flock", "-x", str(file.fileno()), pass_fds=[file.fileno()])
        async with opened(images) as backend:
            with pytest.raises(ImageBusy, match="held by another process"):
                async with backend.open("a", FreeClaim()):
                    pass


async def test_a_cancelled_holder_gives_the_lock_up(tmp_path: Path) -> None:
    async with opened(tmp_path) as backend:
        await backend.create("a", 10)
        with trio.CancelScope() as scope:
            async with backend.open("a", FreeClaim()):
                scope.cancel()
                await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        with (tmp_path / "a").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_an_identity_is_kept_over_opens_and_renames(images: Path) -> None:
    identity, durable = await identity_of(images, "a")
    inode = (images / "a").stat().st_ino
    value = os.getxattr(images / "a", ATTRIBUTE).decode()
    assert durable
    assert identity.text == f"directory:{value}"
    assert value.endswith(f":{inode}")
    (images / "a").rename(images / "b")
    assert await identity_of(images, "b") == (identity, True)
    assert await identity_of(images, "b", read_only=True) == (identity, True)


@pytest.mark.parametrize("command", [["cp", "-a"], ["cp", "--preserve=xattr"], None])
async def test_a_copy_with_attributes_gets_an_identity_of_its_own(images: Path, command: list[str] | None) -> None:
    original = await identity_of(images, "a")
    if command is None:
        shutil.copy2(images / "a", images / "b")
    else:
        run(*command, str(images / "a"), str(images / "b"))
    assert os.getxattr(images / "b", ATTRIBUTE) == os.getxattr(images / "a", ATTRIBUTE)
    copy = await identity_of(images, "b")
    assert copy[1]
    assert copy != original
    assert await identity_of(images, "b") == copy
    assert await identity_of(images, "a") == original


async def test_reading_only_writes_no_identity(images: Path) -> None:
    found = (images / "a").stat()
    identity, durable = await identity_of(images, "a", read_only=True)
    assert identity.text == f"directory:{found.st_dev}:{found.st_ino}"
    assert not durable
    assert os.listxattr(images / "a") == []


@pytest.mark.parametrize("value", [b"", b"junk", b"\xff\0", b"0" * 36 + b":1", b"x" * 300])
async def test_a_malformed_identity_is_logged_and_replaced(
    images: Path, caplog: pytest.LogCaptureFixture, value: bytes
) -> None:
    os.setxattr(images / "a", ATTRIBUTE, value)
    with caplog.at_level(logging.WARNING):
        identity, durable = await identity_of(images, "a")
    assert durable
    assert identity.text == "directory:" + os.getxattr(images / "a", ATTRIBUTE).decode()
    assert "allowed: <uuid>:<inode number>" in caplog.text


async def test_an_immutable_image_opens_for_reading_only(images: Path) -> None:
    path = images / "a"
    try:
        run("chattr", "+i", str(path))
    except subprocess.CalledProcessError:
        pytest.skip("the file system of the temporary directory has no immutable files, or we may not make any")
    try:
        async with opened(images) as backend:
            assert (await backend.lookup("a")).read_only
            async with backend.open("a", FreeClaim()) as image:
                assert image.read_only
                assert not image.durable_identity
                assert bytes((await image.read(4999, 1))[0]) == b"x"
                await image.flush()
                with pytest.raises(VolumeReadOnly, match="for reading only"):
                    await image.write(0, memoryview(b"y"))
                with pytest.raises(VolumeReadOnly):
                    await image.resize(1)
    finally:
        run("chattr", "-i", str(path))
    assert path.read_bytes() == b"x" * 5000
