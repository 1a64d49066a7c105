"""An open image of a directory, as a volume: contents, attempts, cancellation."""

import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from fusecache.api import Attempt, BackendImage, Buffers, Extent, ExtentKind, joined
from fusecache.backends.directory_image import DirectoryImage
from fusecache.testing.claims import FreeClaim
from tests.support.image_directory import finished, opened, requires_direct

MODES = pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
BLOCK = 4096
# Odd sizes, and whole blocks; offsets near and on edges of blocks.
SIZES = st.sampled_from([1, 511, 4096, 4097, 40_960, 50_001])
POINTS = st.one_of(
    st.integers(0, 70_000),
    st.builds(lambda block, shift: max(0, block * BLOCK + shift), st.integers(0, 17), st.integers(-1, 1)),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "read", "discard", "zero", "extents", "resize", "flush"]), POINTS, POINTS
    ),
    max_size=25,
)


class Checked:
    """An image and what it must hold."""

    def __init__(self, image: BackendImage, expected: bytearray) -> None:
        self.image = image
        self.expected = expected

    async def step(self, kind: str, one: int, other: int, fill: int) -> None:
        if kind == "resize":
            await self.resize(one)
            return
        if kind == "flush":
            await self.image.flush()
            return
        start = min(one, other) % max(1, self.image.size)
        length = min(abs(one - other) + 1, self.image.size - start)
        if length <= 0:
            return
        await getattr(self, kind)(start, length, fill)

    async def resize(self, size: int) -> None:
        await self.image.resize(size)
        del self.expected[size:]
        self.expected.extend(bytes(size - len(self.expected)))
        assert self.image.size == size

    async def read(self, start: int, length: int, fill: int) -> None:
        assert joined(await self.image.read(start, length)) == self.expected[start : start + length]

    async def write(self, start: int, length: int, fill: int) -> None:
        # On a page or beside it, and sometimes of memory that cannot be written.
        data: Any = bytearray(fill % 2 + length)
        data[:] = bytes([fill]) * len(data)
        view = memoryview(bytes(data) if fill % 3 == 0 else data)[fill % 2 :]
        await self.image.write(start, view)
        self.expected[start : start + length] = view

    async def discard(self, start: int, length: int, fill: int) -> None:
        await self.image.discard(start, length)
        self.expected[start : start + length] = bytes(length)

    async def zero(self, start: int, length: int, fill: int) -> None:
        await self.image.write_zeroes(start, length)
        self.expected[start : start + length] = bytes(length)

    async def extents(self, start: int, length: int, fill: int) -> None:
        extents = await self.image.extents(start, length)
        at = start
        for extent in extents:
            assert extent.offset == at
            assert extent.length > 0
            at = extent.end
            if extent.kind is ExtentKind.HOLE:
                assert not any(self.expected[extent.offset : extent.end])
        assert at == start + length


@MODES
@given(size=SIZES, steps=STEPS)
def test_an_image_holds_what_a_byte_array_holds(
    tmp_path_factory: pytest.TempPathFactory, direct: bool, size: int, steps: list[tuple[str, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("images")
    if direct:
        requires_direct(path)

    async def run() -> None:
        content = os.urandom(size)
        (path / "a").write_bytes(content)
        async with opened(path, direct=direct) as backend:
            async with backend.open("a", FreeClaim()) as image:
                checked = Checked(image, bytearray(content))
                for n, (kind, one, other) in enumerate(steps):
                    await checked.step(kind, one, other, n + 1)
                if image.size:
                    await checked.read(0, image.size, 0)
            assert (path / "a").read_bytes() == checked.expected

    trio.run(run)


@MODES
async def test_requests_side_by_side_do_not_disturb_each_other(tmp_path: Path, direct: bool) -> None:
    if direct:
        requires_direct(tmp_path)
    size = 64 * BLOCK + 777
    expected = bytearray(os.urandom(size))
    (tmp_path / "a").write_bytes(expected)
    # Ranges that share blocks and touch, whole blocks and parts of them.
    edges = sorted({0, size, *range(0, size, 3000), *range(0, size, 2 * BLOCK)})
    async with (
        opened(tmp_path, direct=direct) as backend,
        backend.open("a", FreeClaim()) as image,
        trio.open_nursery() as nursery,
    ):
        for n, (start, end) in enumerate(itertools.pairwise(edges)):
            if n % 7 == 3:
                nursery.start_soon(image.discard, start, end - start)
                expected[start:end] = bytes(end - start)
            else:
                data = bytes([n % 255 + 1]) * (end - start)
                nursery.start_soon(image.write, start, memoryview(data))
                expected[start:end] = data
    assert (tmp_path / "a").read_bytes() == expected


async def test_a_cached_read_is_answered_at_once_and_an_uncached_one_later(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content := os.urandom(1 << 20))
    async with opened(tmp_path) as backend, backend.open("a", FreeClaim()) as image:
        results: list[Buffers] = []
        ended = trio.Event()

        def done(error: BaseException | None, buffers: Buffers) -> None:
            results.append(buffers)
            ended.set()

        await image.read(4096, 4096)
        at_once = image.try_read(4096, 4096, done)
        if at_once is not Attempt.PENDING:
            assert isinstance(at_once, Sequence)
            assert joined(at_once) == content[4096:8192]
            # What comes of threads is ours; the next attempt does not touch it.
            await image.flush()
            evict(tmp_path / "a")
            assert image.try_read(8192, 4096, done) is Attempt.PENDING
        await ended.wait()
        assert joined(results[0]) in (content[4096:8192], content[8192:12288])
        await image.read(0, 4096)
        assert joined(results[0]) in (content[4096:8192], content[8192:12288])


def evict(path: Path) -> None:
    """Drop the file's pages from the cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


async def test_a_read_larger_than_the_scratch_memory_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content := os.urandom((3 << 20) + 5))
    async with opened(tmp_path) as backend, backend.open("a", FreeClaim()) as image:
        assert joined(await image.read(0, len(content))) == content


async def test_attempts_to_change_and_flush_finish_by_their_callback(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 12288)
    async with opened(tmp_path) as backend, backend.open("a", FreeClaim()) as image:
        await finished(lambda done: image.try_write(1, memoryview(b"ab"), done))
        assert await finished(lambda done: image.try_write_zeroes(4096, 10, done)) is Attempt.PENDING
        assert await finished(lambda done: image.try_discard(8192, 4096, done)) is Attempt.PENDING
        assert await finished(image.try_flush) is Attempt.PENDING
    expected = b"xab" + b"x" * 4093 + bytes(10) + b"x" * 4086 + bytes(4096)
    assert (tmp_path / "a").read_bytes() == expected


@MODES
async def test_a_discard_frees_space_and_zeroes_keep_it(tmp_path: Path, direct: bool) -> None:
    if direct:
        requires_direct(tmp_path)
    (tmp_path / "a").write_bytes(os.urandom(1 << 20))
    async with opened(tmp_path, direct=direct) as backend, backend.open("a", FreeClaim()) as image:
        await image.flush()
        before = (await image.info()).allocated
        assert before is not None
        await image.write_zeroes(0, 1 << 19)
        assert (await image.info()).allocated == before
        await image.discard(0, 1 << 19)
        after = (await image.info()).allocated
        assert after is not None
        assert after <= before - (1 << 19)
        assert await image.extents(0, 1 << 20) == [
            Extent(0, 1 << 19, ExtentKind.HOLE),
            Extent(1 << 19, 1 << 19, ExtentKind.DATA),
        ]


async def test_very_many_extents_are_described_piece_by_piece(tmp_path: Path) -> None:
    async with opened(tmp_path) as backend:
        size = 3000 * 2 * BLOCK
        await backend.create("a", size)
        async with backend.open("a", FreeClaim()) as image:
            for n in range(3000):
                await image.write(n * 2 * BLOCK, memoryview(b"x" * BLOCK))
            extents = await image.extents(0, size)
    assert len(extents) == 6000
    assert all(one.end == other.offset for one, other in itertools.pairwise(extents))


async def test_a_cancelled_write_ends_before_its_caller_does(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    go = threading.Event()
    async with opened(tmp_path) as backend, backend.open("a", FreeClaim()) as image:
        assert isinstance(image, DirectoryImage)
        image._changes.submit(lambda error: None, go.wait)
        image._try_writes = False
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(image.write, 0, memoryview(b"y" * 50))
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                go.set()
        assert (tmp_path / "a").read_bytes() == b"y" * 50 + b"x" * 50
        with trio.CancelScope() as scope:
            scope.cancel()
            await image.write(0, memoryview(b"z"))
        assert scope.cancelled_caught
        assert joined(await image.read(0, 1)) == b"y"


async def test_closing_waits_for_what_is_under_way(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    ended: list[BaseException | None] = []
    async with opened(tmp_path) as backend:
        async with backend.open("a", FreeClaim()) as image:
            for n in range(100):
                image.try_discard(n, 1, ended.append)
        assert ended == [None] * 100
    assert (tmp_path / "a").read_bytes() == bytes(100)


async def test_a_call_that_hangs_keeps_its_image_locked_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fusecache.backends.directory_image._PATIENCE", 0.01)
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "b").write_bytes(b"x" * 100)
    go = threading.Event()
    async with opened(tmp_path) as backend:
        async with backend.open("a", FreeClaim()) as image:
            assert isinstance(image, DirectoryImage)
            for lane in (image._changes, image._others):
                for _ in range(50):
                    lane.submit(lambda error: None, go.wait)
            async with backend.open("b", FreeClaim()) as other:
                await other.write(0, memoryview(b"y"))
                await other.flush()
        assert "is left open and locked" in caplog.text
        go.set()
        await image._changes.drained()
        await image._others.drained()
        image._file.close()
