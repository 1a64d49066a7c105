"""An open image of a directory when the world around it fails."""

import errno
import os
import resource
from pathlib import Path

import pytest

from fusecache.api import joined
from fusecache.api.errors import FusecacheError
from fusecache.backends.files import ImageFile
from fusecache.testing.claims import FreeClaim
from tests.support.image_directory import Events, failing_ext4, opened, small_tmpfs

MODES = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])


async def test_a_full_file_system_is_told_and_spoils_nothing_else(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "small", "64k") as small:
        async with opened(small) as backend:
            await backend.create("a", 1 << 20)
            async with backend.open("a", FreeClaim()) as image:
                await image.write(0, memoryview(b"x" * 4096))
                with pytest.raises(OSError, match="No space left") as caught:
                    await image.write(4096, memoryview(b"y" * (1 << 19)))
                assert caught.value.errno == errno.ENOSPC
                assert joined(await image.read(0, 4096)) == b"x" * 4096
                await image.discard(4096, (1 << 20) - 4096)
                await image.write(1 << 19, memoryview(b"z" * 4096))


async def test_a_file_size_limit_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    async with opened(tmp_path) as backend, backend.open("a", FreeClaim()) as image:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                await image.resize((1 << 30) + 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.errno == errno.EFBIG
        assert image.size == 100
        await image.resize(200)


async def test_after_a_failed_flush_every_flush_fails(tmp_path: Path) -> None:
    events = Events()
    with failing_ext4(tmp_path / "failing") as disk:
        async with opened(disk, events=events) as backend:
            await backend.create("a", 8 << 20)
            async with backend.open("a", FreeClaim()) as image:
                await image.write(0, memoryview(os.urandom(8 << 20)))
                with pytest.raises(OSError, match=r"No space|Input/output") as first:
                    await image.flush()
                # The kernel itself reports it once and then forgets.
                with pytest.raises(OSError, match=r"an earlier flush of .*/a failed") as second:
                    await image.flush()
                assert second.value.errno == first.value.errno
    assert events.kinds == ["flush-failed"]


@MODES
async def test_an_image_that_shrank_is_an_error_and_one_event(tmp_path: Path, direct: bool) -> None:
    events = Events()
    (tmp_path / "a").write_bytes(b"x" * 20_000)
    async with opened(tmp_path, direct=direct, events=events) as backend, backend.open("a", FreeClaim()) as image:
        os.truncate(tmp_path / "a", 10_000)
        assert joined(await image.read(0, 10_000)) == b"x" * 10_000
        for offset, length in ((9_999, 2), (0, 20_000), (15_000, 1), (8192, 4096), (12288, 4096)):
            with pytest.raises(FusecacheError, match="a ends at 10000 bytes instead of 20000") as caught:
                await image.read(offset, length)
            assert caught.value.errno == errno.EIO
        with pytest.raises(FusecacheError, match="ends at 10000 bytes"):
            await image.flush()
        with pytest.raises(FusecacheError, match="ends at 10000 bytes"):
            await image.resize(30_000)
    assert events.kinds == ["image-shrank"]
    assert (tmp_path / "a").stat().st_size == 10_000


async def test_what_lay_behind_the_end_never_shows(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    async with opened(tmp_path) as backend, backend.open("a", FreeClaim()) as image:
        (tmp_path / "a").write_bytes(b"y" * 200)
        await image.resize(300)
        assert joined(await image.read(0, 300)) == b"y" * 100 + bytes(200)


def test_direct_is_refused_with_a_reason_where_the_file_system_cannot() -> None:
    # The one file system of every machine that is sure to refuse.
    file = ImageFile(os.open("/proc/version", os.O_RDONLY), "a", read_only=True)
    with pytest.raises(OSError, match="refuses O_DIRECT; allowed here: direct = false") as caught:
        file.open_direct()
    assert caught.value.errno == errno.EINVAL
    file.close()


async def test_where_ranges_cannot_be_zeroed_zeroes_are_written(tmp_path: Path) -> None:
    # tmpfs punches holes, and has no other way to zero a range.
    with small_tmpfs(tmp_path / "small", "8m") as small:
        (small / "a").write_bytes(b"x" * (3 << 20))
        async with opened(small) as backend, backend.open("a", FreeClaim()) as image:
            await image.write_zeroes(1, (1 << 20) + 7)
            await image.write_zeroes((2 << 20) - 3, 5)
        expected = bytearray(b"x" * (3 << 20))
        expected[1 : (1 << 20) + 8] = bytes((1 << 20) + 7)
        expected[(2 << 20) - 3 : (2 << 20) + 2] = bytes(5)
        assert (small / "a").read_bytes() == expected
