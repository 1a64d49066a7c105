"""What a layer that writes back in groups leaves to answer for to those under it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from fusecache.api import ImageRecord
from fusecache.api.errors import LayerDirty, PoolMissing
from fusecache.stack.assemble import Stack
from fusecache.stack.dirty import LayerMark
from fusecache.stack.torn import check_takeover, check_whole, cleaned, heir
from fusecache.state.manifest import Manifest, ManifestLayer, decode, encode
from tests.support.dirty_stacks import NAME, dropped, host, layer_of, stack_open
from tests.support.places import directory_backend

HERE, THERE = 32 * "a", 32 * "b"

WORDS: Mapping[str, Mapping[str, bool]] = {
    "-": {},
    "d": {"dirty": True},
    "t": {"dirty": True, "torn": True},
    "x": {"dirty": True, "torn": True, "torn_beyond": True},
    "h": {"dirty": True, "holds_group": True},
    "b": {"dirty": True, "torn": True, "holds_group": True},
}


def manifest(words: str, host: str = HERE) -> Manifest:
    """Return a manifest with a layer for each letter of WORDS, bottom up."""
    layers = [{"index": index, "plugin": "p", **WORDS[word]} for index, word in enumerate(words)]
    return Manifest(identity="directory:1", epoch=1, host=host, layers=tuple(map(ManifestLayer.model_validate, layers)))


class TestTheRule:
    """Pure."""

    @pytest.mark.parametrize(("dirty", "index", "found"), [([], 1, None), ([2, 1], 1, None), ([0, 3, 1, 7], 7, 3)])
    def test_the_highest_dirty_layer_under_it_is_the_heir(
        self, dirty: Sequence[int], index: int, found: int | None
    ) -> None:
        assert heir(dirty, index) == found

    @pytest.mark.parametrize(
        ("before", "index", "after"),
        [
            ("ddt", 2, "dh-"),
            ("ddb", 2, "dh-"),
            ("xdx", 2, "xh-"),
            ("dx", 1, "h-"),
            ("d-t", 2, "h--"),
            ("dh-", 1, "h--"),
            ("dt-", 1, "h--"),
            ("tt-", 1, "b--"),
            ("h", 0, "-"),
            ("--t", 2, "---"),
            ("ddd", 2, "dd-"),
            ("td", 1, "t-"),
        ],
    )
    def test_what_is_torn_leaves_the_word_to_its_heir(self, before: str, index: int, after: str) -> None:
        assert cleaned(manifest(before), index) == manifest(after)

    @pytest.mark.parametrize(
        ("words", "found"),
        [
            ("hdt", "layer 2 is in the middle"),
            ("dhd", "layer 1 holds writes"),
            ("b", "layer 0 is in the middle"),
            ("x", "layer 0 is in"),
        ],
    )
    def test_of_what_is_not_whole_the_highest_is_told(self, words: str, found: str) -> None:
        with pytest.raises(LayerDirty, match=f"{found} .*`fusecache discard CONFIG IMAGE --layer 7 --dirty --torn`"):
            check_whole(manifest(words).layers, 7)
        check_whole(manifest("-dd").layers, 7)

    def test_what_another_host_has_is_not_taken_over_if_that_leaves_a_level_torn(self) -> None:
        def record(words: str, holder: str) -> ImageRecord:
            return ImageRecord(1, holder, "name", encode(manifest(words, holder)).decode())

        with pytest.raises(LayerDirty, match=r"layer 0 holds .* --layer 1 --dirty --torn"):
            check_takeover(record("hd-", THERE), HERE)
        for fine in (None, ImageRecord(1), record("t", HERE), record("dd", THERE)):
            check_takeover(fine, HERE)


def mark_of(stack: Stack, index: int) -> LayerMark:
    mark = layer_of(stack, index).mark
    assert isinstance(mark, LayerMark)
    return mark


def words_of(text: bytes) -> str:
    """Return a manifest's layers as letters of WORDS, bottom up."""
    names = {tuple(sorted(words)): letter for letter, words in WORDS.items()}
    layers = decode(text).layers
    return "".join(
        names[tuple(sorted(word for word in ("dirty", "torn", "torn_beyond", "holds_group") if getattr(layer, word)))]
        for layer in layers
    )


async def said(images: Path, here: Path) -> str:
    """Return what record and manifest say, which is the same."""
    async with directory_backend(images) as backend:
        record = await backend.read_record(NAME)
    assert record is not None
    (local,) = (here / "images").glob("*/manifest")
    assert record.manifest in ("", local.read_text())
    return words_of(local.read_bytes())


pytestmark = pytest.mark.usefixtures("installed")


async def test_whatever_ends_the_word_torn_passes_it_on_in_the_same_write(images: Path, here: Path) -> None:
    async with stack_open(images, here, 2, 1, 0) as stack:
        low, middle, top = (mark_of(stack, index) for index in range(3))
        for mark in (low, middle, top):
            await mark.set()
        await top.tear()
        assert await said(images, here) == "ddt"
        # As long as it is, nothing under it is whole either.
        assert [stack.holds_group(index) for index in range(3)] == [True, True, False]
        await top.mend()
        assert await said(images, here) == "dhd"
        assert [stack.holds_group(index) for index in range(3)] == [True, True, False]
        await top.tear(beyond=True)
        await middle.clear()
        assert await said(images, here) == "h-x"
        await top.clear()
        assert await said(images, here) == "h--"
        assert [stack.holds_group(index) for index in range(3)] == [True, False, False]
        await low.clear()
        assert await said(images, here) == "---"
        await low.set()
        assert await said(images, here) == "d--"


async def test_a_group_that_is_below_as_a_whole_leaves_nothing_to_answer_for(images: Path, here: Path) -> None:
    async with stack_open(images, here, 1, 0) as stack:
        low, top = mark_of(stack, 0), mark_of(stack, 1)
        await low.set()
        await top.set()
        await top.tear()
        await low.clear()
        await top.mend()
        await low.set()
        assert await said(images, here) == "dd"


async def left_behind(images: Path, here: Path, *, beyond: bool = False) -> None:
    """Leave two dirty layers, the upper one torn, or torn beyond."""
    async with stack_open(images, here, 1, 0) as stack:
        for data in (b"one", b"two"):
            await stack.top.write(0, memoryview(data))
            await stack.writeback(1)
        await stack.top.write(0, memoryview(b"six"))
        await mark_of(stack, 1).tear(beyond=beyond)
    assert await said(images, here) == ("dx" if beyond else "dt")


@pytest.mark.parametrize("beyond", [False, True])
async def test_the_word_outlives_the_stack(images: Path, here: Path, beyond: bool) -> None:
    await left_behind(images, here, beyond=beyond)
    async with stack_open(images, here) as stack:
        mark = mark_of(stack, 1)
        assert (mark.is_torn, mark.is_torn_beyond) == (True, beyond)
        await mark.mend()
        assert not mark.is_torn_beyond
    assert await said(images, here) == "hd"
    async with stack_open(images, here) as stack:
        assert mark_of(stack, 0).holds_group
        assert not mark_of(stack, 0).is_torn
        await stack.writeback(1)
        await mark_of(stack, 1).clear()
        with pytest.raises(LayerDirty, match="--layer 0 --dirty --torn"):
            await stack.invalidate(0, dirty=True)
        await stack.writeback()
    assert await said(images, here) == "--"


@pytest.mark.parametrize("beyond", [False, True])
async def test_each_discard_of_a_closed_image_asks_down_to_the_image(images: Path, here: Path, beyond: bool) -> None:
    await left_behind(images, here, beyond=beyond)
    with pytest.raises(LayerDirty, match=r"lies under dirty layers.*: 1"):
        await dropped(images, here, 0, dirty=True, torn=True)
    for index, after in ((1, "h-"), (0, "--")):
        with pytest.raises(LayerDirty, match=f"--layer {index} --dirty --torn"):
            await dropped(images, here, index, dirty=True)
        await dropped(images, here, index, dirty=True, torn=True)
        assert await said(images, here) == after


@pytest.mark.parametrize("beyond", [False, True])
async def test_another_host_discards_or_takes_over_only_what_leaves_no_level_torn(
    images: Path, here: Path, tmp_path: Path, beyond: bool
) -> None:
    there = host(tmp_path / "there", "b")
    await left_behind(images, here, beyond=beyond)
    for index, what in ((1, "is in the middle"), (0, "holds writes")):
        with pytest.raises(LayerDirty, match=f"layer {index} {what}"):
            await dropped(images, there, index, dirty=True, take_over=True)
        with pytest.raises(LayerDirty, match=f"layer {index} {what} .* --layer {index} --dirty --torn"):
            async with stack_open(images, there, take_over=True):
                raise AssertionError("the stack is open")
        await dropped(images, there, index, dirty=True, torn=True, take_over=True)
    async with stack_open(images, there, take_over=True) as stack:
        assert stack.epoch == 3


async def test_a_lost_pool_file_of_what_holds_a_group_is_told_with_the_command_that_helps(
    images: Path, here: Path
) -> None:
    await left_behind(images, here)
    await dropped(images, here, 1, dirty=True, torn=True)
    (pool,) = (here / "images").glob("*/writeback.0.pool")
    pool.unlink()
    with pytest.raises(PoolMissing, match="`fusecache discard CONFIG IMAGE --layer 0 --dirty --torn`"):
        async with stack_open(images, here):
            raise AssertionError("the stack is open")
