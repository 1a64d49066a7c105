"""Any offset and length can be asked of an image, whatever its stack wants: the bytes are those of a byte array."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from fusecache.api import ExtentKind
from fusecache.api.errors import ImageGone
from fusecache.images import image as image_module
from fusecache.images.image import Image
from fusecache.testing.faulty import Fault, FaultyVolume
from fusecache.testing.harness import content, put
from fusecache.testing.memory import MemoryVolume
from fusecache.testing.requests import CHANGES, AttemptMode
from fusecache.testing.watched import WatchedVolume
from tests.support.images import Call, is_idle, opened, read, write

Kind = Literal["read", "write", "write_zeroes", "discard"]


class Step(NamedTuple):
    """A request, its range as parts of the image: from ``at``, over ``reach`` bytes, or up to the end."""

    kind: Kind
    at: int
    reach: int
    to_the_end: bool

    def range(self, size: int) -> tuple[int, int]:
        offset = self.at % size
        return offset, size - offset if self.to_the_end else min(self.reach, size - offset)


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["read", "write", "write_zeroes", "discard"]),
        st.one_of(st.integers(0, 5000), st.integers(0, 9).map(lambda block: block * 512)),
        st.one_of(st.integers(1, 1600), st.sampled_from([512, 1024])),
        st.booleans(),
    ),
    min_size=1,
    max_size=10,
)
SIZES = st.one_of(st.integers(1, 4200), st.sampled_from([512, 1024, 1025, 1535, 4096]))


def begin(image: Image, step: Step, model: bytearray, fill: int) -> tuple[Call, bytes]:
    """Begin a request and do the same to *model*; return what a read must find."""
    offset, length = step.range(len(model))
    if step.kind == "read":
        return read(image, offset, length), bytes(model[offset : offset + length])
    data = bytes([fill]) * length if step.kind == "write" else bytes(length)
    model[offset : offset + length] = data
    if step.kind == "write":
        return write(image, offset, data), b""
    return Call(lambda done: getattr(image, step.kind)(offset, length, done)), b""


async def run(size: int, steps: Sequence[Step], alignment: int, attempts: AttemptMode, together: bool) -> None:
    volume = MemoryVolume(size, alignment=alignment, attempts=attempts)
    model = bytearray(range(256)) * (size // 256 + 1)
    del model[size:]
    await put(volume, 0, bytes(model))
    watched = WatchedVolume(volume)
    async with opened(watched) as image:
        begun = []
        for number, step in enumerate(steps):
            call, expected = begin(image, step, model, number + 1)
            begun.append((call, expected))
            if not together:
                await call.result()
        # Whatever was under way at once, the outcome is that of one after the other in the order of arrival.
        for call, expected in begun:
            assert await call.result() == expected
        assert await content(volume) == model
        assert is_idle(image.guard)
    assert not watched.violations


@given(
    size=SIZES,
    steps=STEPS,
    alignment=st.sampled_from([1, 512, 1024]),
    attempts=st.sampled_from(["done", "pending", "declined"]),
    together=st.booleans(),
)
def test_an_image_reads_like_a_byte_array(
    size: int, steps: Sequence[Step], alignment: int, attempts: AttemptMode, together: bool
) -> None:
    trio.run(partial(run, size, steps, alignment, attempts, together))


async def test_what_is_aligned_goes_down_as_it_is() -> None:
    watched = WatchedVolume(MemoryVolume(1000, alignment=512))
    async with opened(watched) as image:
        await write(image, 512, b"a" * 488).result()
        await Call(lambda done: image.discard(0, 1000, done)).result()
    assert [(request.operation, request.offset, request.length) for request in watched.ended] == [
        ("write", 512, 488),
        ("discard", 0, 1000),
    ]


async def test_an_unaligned_discard_frees_the_whole_blocks_inside_and_zeroes_the_rest() -> None:
    volume = MemoryVolume(4000, alignment=512)
    await put(volume, 0, b"a" * 4000)
    async with opened(volume) as image:
        await Call(lambda done: image.discard(100, 3900, done)).result()
    assert await content(volume) == b"a" * 100 + bytes(3900)
    holes = [extent for extent in volume.content.extents(0, 4000) if extent.kind is ExtentKind.HOLE]
    assert [(hole.offset, hole.end) for hole in holes] == [(512, 4000)]


async def test_an_unaligned_write_reads_only_the_blocks_at_its_edges() -> None:
    watched = WatchedVolume(MemoryVolume(1 << 20, alignment=512))
    async with opened(watched) as image:
        await write(image, 100, b"a" * 100_000).result()
    assert sorted((request.operation, request.offset, request.length) for request in watched.ended) == [
        ("read", 0, 512),
        ("read", 99_840, 512),
        ("write", 0, 100_352),
    ]


@pytest.mark.parametrize("kind", ["write", "write_zeroes", "discard"])
async def test_a_change_whose_edges_cannot_be_read_changes_nothing(kind: Kind) -> None:
    faulty = FaultyVolume(MemoryVolume(2000, alignment=512))
    faulty.inject(Fault({"read"}, ImageGone("gone"), count=1))
    watched = WatchedVolume(faulty)
    async with opened(watched) as image:
        call, _ = begin(image, Step(kind, 10, 100, False), bytearray(2000), 1)
        with pytest.raises(ImageGone):
            await call.result()
        assert not [request for request in watched.ended if request.operation in CHANGES]
        assert is_idle(image.guard)
        call, _ = begin(image, Step(kind, 10, 100, False), bytearray(2000), 1)
        await call.result()


async def test_a_neighbour_in_the_same_block_is_not_lost() -> None:
    volume = MemoryVolume(512, alignment=512)
    async with opened(WatchedVolume(volume)) as image:
        calls = [write(image, at, bytes([at + 1])) for at in range(16)]
        for call in calls:
            await call.result()
    assert (await content(volume))[:16] == bytes(range(1, 17))


@pytest.mark.parametrize("data", [b"a" * 488, b"a" * 10])
async def test_a_write_at_the_old_end_that_waited_for_the_image_to_grow_is_done(data: bytes) -> None:
    volume = MemoryVolume(1000, alignment=512)
    async with opened(WatchedVolume(volume)) as image, trio.open_nursery() as nursery:
        async with image.barrier():
            nursery.start_soon(image.resize, 3000)
            await trio.testing.wait_all_tasks_blocked()
            calls = [write(image, 1000 - len(data), data)]
        # In the block that was cut by the old end: the first must still keep others out of it.
        calls.append(write(image, 990, b"b" * 20))
        for call in calls:
            await call.result()
    expected = bytes(1000 - len(data)) + data + bytes(2000)
    assert await content(volume) == expected[:990] + b"b" * 20 + expected[1010:]


async def test_a_seek_finds_data_and_holes_whatever_the_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_module, "_SEEK_SLICE", 1024)
    volume = MemoryVolume(8000, alignment=512)
    await put(volume, 512, b"a" * 512)
    await put(volume, 5120, b"a" * 1024)
    async with opened(volume) as image:
        for offset, data, hole in [
            (0, 512, 0),
            (511, 512, 511),
            (512, 512, 1024),
            (700, 700, 1024),
            (1024, 5120, 1024),
            (5121, 5121, 6144),
            (6144, None, 6144),
            (7999, None, 7999),
        ]:
            assert await image.seek(offset, hole=False) == data
            assert await image.seek(offset, hole=True) == hole


async def test_the_end_of_an_image_counts_as_a_hole() -> None:
    volume = MemoryVolume(1000, alignment=512)
    await put(volume, 0, b"a" * 1000)
    async with opened(volume) as image:
        assert await image.seek(3, hole=True) == 1000
        assert await image.seek(1000, hole=False) is None
