"""Marks of dirty layers: durable in order, one change after another, and right after errors and cancellations."""

import os
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fusecache.api import ImageRecord
from fusecache.api.errors import VolumeReadOnly
from fusecache.backends.directory_image import DirectoryImage
from fusecache.stack.assemble import Stack
from fusecache.stack.dirty import LayerMark
from fusecache.state.image_state import ImageState
from fusecache.state.manifest import Manifest, decode, encode
from fusecache.testing.harness import cancelled_at_each_await
from tests.support.dirty_stacks import NAME, layer_of, stack_open
from tests.support.places import directory_backend

HERE = 32 * "a"


pytestmark = pytest.mark.usefixtures("installed")


class Steps:
    """What is durably written, in order; the next write of a kind fails if told so.

    Attributes:
        told: ``"manifest"`` or ``"record"``, and the indexes of the layers that are dirty in it.
        guards: of the records.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.told: list[tuple[str, list[int]]] = []
        self.guards: list[bool] = []
        self.failures: dict[str, list[Exception]] = {"manifest": [], "record": []}
        set_record, write_manifest = DirectoryImage.set_record, ImageState.write_manifest

        async def setting(image: DirectoryImage, record: ImageRecord, *, guard: bool) -> None:
            self._take("record", self.dirty_in(record.manifest.encode()))
            self.guards.append(guard)
            await set_record(image, record, guard=guard)

        def writing(state: ImageState, manifest: Manifest) -> None:
            self._take("manifest", self.dirty_in(encode(manifest)))
            write_manifest(state, manifest)

        patch.setattr(DirectoryImage, "set_record", setting)
        patch.setattr(ImageState, "write_manifest", writing)

    def _take(self, kind: str, dirty: list[int]) -> None:
        if self.failures[kind]:
            raise self.failures[kind].pop(0)
        self.told.append((kind, dirty))

    @staticmethod
    def dirty_in(text: bytes) -> list[int]:
        """Return the layers that are dirty by a manifest's text."""
        return [layer.index for layer in decode(text).layers if layer.dirty] if text else []


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def mark_of(stack: Stack, index: int = 0) -> LayerMark:
    mark = layer_of(stack, index).mark
    assert isinstance(mark, LayerMark)
    return mark


async def durable(stack: Stack, here: Path) -> tuple[list[int], list[int]]:
    """Return the layers that are dirty by the manifest, and by the record, as they are now."""
    record = await stack.image.record()
    copy = b"" if record is None else record.manifest.encode()
    assert record is None or (record.holder is None) == (not copy)
    manifest = here / "images" / stack.identity.digest / "manifest"
    return Steps.dirty_in(manifest.read_bytes()), Steps.dirty_in(copy)


@pytest.mark.parametrize("guard", [True, False])
async def test_a_mark_is_durable_before_the_first_change_is_acknowledged(
    images: Path, here: Path, steps: Steps, guard: bool
) -> None:
    async with stack_open(images, here, 0, guard=guard) as stack:
        steps.told.clear()
        await stack.top.write(0, memoryview(b"data"))
        assert steps.told == [("manifest", [0]), ("record", [0])]
        assert mark_of(stack).is_set
        record = await stack.image.record()
        manifest = (here / "images" / stack.identity.digest / "manifest").read_text()
        assert record == ImageRecord(1, HERE, os.uname().nodename, manifest)
        await stack.top.write(4, memoryview(b"more"))
        await mark_of(stack).set()
        assert len(steps.told) == 2
        await stack.writeback()
    assert steps.told[2:] == [("record", []), ("manifest", [])]
    assert steps.guards == [guard, guard]


async def test_a_layer_that_is_left_dirty_opens_with_its_mark_set_and_durable(
    images: Path, here: Path, steps: Steps
) -> None:
    async with stack_open(images, here, 0) as stack:
        await stack.top.write(0, memoryview(b"data"))
    steps.told.clear()
    async with stack_open(images, here, 0) as stack:
        assert mark_of(stack).is_set
    # Whoever left it may have been killed before it was.
    assert steps.told == [("manifest", [0]), ("record", [0])]


async def test_the_holder_stays_until_the_last_layer_is_clean(images: Path, here: Path, steps: Steps) -> None:
    async with stack_open(images, here, 1, 0) as stack:
        steps.told.clear()
        async with trio.open_nursery() as nursery:
            for index in (1, 0):
                nursery.start_soon(mark_of(stack, index).set)
        assert [dirty for _, dirty in steps.told[2:]] == [[0, 1], [0, 1]]
        assert [kind for kind, _ in steps.told] == ["manifest", "record", "manifest", "record"]
        steps.told.clear()
        await mark_of(stack, 0).clear()
        await mark_of(stack, 1).clear()
    assert steps.told == [("record", [1]), ("manifest", [1]), ("record", []), ("manifest", [])]


async def test_a_mark_is_not_set_from_the_beginning_of_clearing_it(images: Path, here: Path) -> None:
    async with stack_open(images, here, 0) as stack:
        mark = mark_of(stack)
        await mark.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mark.clear)
            await trio.testing.wait_all_tasks_blocked()
            assert not mark.is_set
            await mark.set()
            assert await durable(stack, here) == ([0], [0])
        assert mark.is_set


@pytest.mark.parametrize("error", [OSError("the disk is full"), VolumeReadOnly("its lock is not ours any more")])
async def test_where_the_record_fails_the_manifest_is_put_back(
    images: Path, here: Path, steps: Steps, error: Exception
) -> None:
    async with stack_open(images, here, 0) as stack:
        steps.failures["record"] = [error]
        with pytest.raises(type(error)):
            await stack.top.write(0, memoryview(b"data"))
        assert not mark_of(stack).is_set
        assert await durable(stack, here) == ([], [])
        await stack.top.write(0, memoryview(b"data"))
        assert await durable(stack, here) == ([0], [0])


async def test_where_the_manifest_fails_nothing_is_marked(images: Path, here: Path, steps: Steps) -> None:
    async with stack_open(images, here, 0) as stack:
        steps.failures["manifest"] = [OSError("the disk is full")]
        with pytest.raises(OSError, match="the disk is full"):
            await mark_of(stack).set()
        assert not mark_of(stack).is_set
        assert await durable(stack, here) == ([], [])


async def test_a_mark_that_could_not_be_cleared_is_cleared_by_the_next_call(
    images: Path, here: Path, steps: Steps
) -> None:
    async with stack_open(images, here, 0) as stack:
        mark = mark_of(stack)
        await mark.set()
        steps.failures["record"] = [OSError("away")]
        with pytest.raises(OSError, match="away"):
            await mark.clear()
        assert not mark.is_set
        assert await durable(stack, here) == ([0], [0])
        await mark.clear()
        assert await durable(stack, here) == ([], [])
        steps.told.clear()
        await mark.clear()
        assert steps.told == []


async def test_a_cancelled_set_or_clear_is_right_after_the_next(images: Path, here: Path) -> None:
    async with stack_open(images, here, 1, 0) as stack:
        mark, other = mark_of(stack, 1), mark_of(stack, 0)
        await other.set()

        async def cleared(where: str) -> None:
            manifest, record = await durable(stack, here)
            assert not mark.is_set or (manifest, record) == ([0, 1], [0, 1]), where
            assert other.is_set
            await mark.clear()
            assert await durable(stack, here) == ([0], [0]), where

        async def set_again(where: str) -> None:
            assert not mark.is_set
            await mark.set()
            assert await durable(stack, here) == ([0, 1], [0, 1]), where

        await cancelled_at_each_await(mark.set, cleared)
        await mark.set()
        await cancelled_at_each_await(mark.clear, set_again)


def said_in(text: bytes, word: str) -> list[int]:
    """Return the layers of which a manifest's text says that word."""
    return [layer.index for layer in decode(text).layers if getattr(layer, word)] if text else []


async def torn(stack: Stack, here: Path, word: str = "torn") -> tuple[list[int], list[int]]:
    """Return the layers that are torn by the manifest, and by the record, as they are now."""
    record = await stack.image.record()
    manifest = here / "images" / stack.identity.digest / "manifest"
    return said_in(manifest.read_bytes(), word), said_in(b"" if record is None else record.manifest.encode(), word)


async def beyond(stack: Stack, here: Path) -> tuple[list[int], list[int]]:
    """As :func:`torn`, of those that are so beyond a group."""
    return await torn(stack, here, "torn_beyond")


async def test_torn_is_said_first_in_the_manifest_and_taken_back_first_in_the_record(
    images: Path, here: Path, steps: Steps
) -> None:
    async with stack_open(images, here, 1, 0) as stack:
        mark, other = mark_of(stack, 1), mark_of(stack, 0)
        await mark.set()
        steps.told.clear()
        await mark.tear()
        await mark.tear()
        assert mark.is_torn
        await other.set()
        assert await torn(stack, here) == ([1], [1])
        await mark.mend()
        await mark.mend()
        assert [kind for kind, _ in steps.told] == ["manifest", "record"] * 2 + ["record", "manifest"]
        assert await torn(stack, here) == ([], [])
        await mark.tear()
        await mark.clear()
        assert not mark.is_torn
        assert await torn(stack, here) == ([], [])
        assert await durable(stack, here) == ([0], [0])


async def test_a_torn_mark_says_beyond_until_it_is_taken_back_and_one_that_is_not_set_says_all_at_once(
    images: Path, here: Path, steps: Steps
) -> None:
    async with stack_open(images, here, 0) as stack:
        mark = mark_of(stack)
        steps.told.clear()
        await mark.tear()
        assert steps.told == [("manifest", [0]), ("record", [0])]
        assert mark.is_set
        assert await torn(stack, here) == ([0], [0])
        assert not mark.is_torn_beyond
        for failing in ("manifest", "record"):
            steps.failures[failing] = [OSError("away")]
            with pytest.raises(OSError, match="away"):
                await mark.tear(beyond=True)
            assert (mark.is_torn, mark.is_torn_beyond) == (True, False)
            assert await beyond(stack, here) == ([], [])
        await mark.tear(beyond=True)
        await mark.tear()
        assert mark.is_torn_beyond
        assert await beyond(stack, here) == ([0], [0])
        await mark.mend()
        await mark.tear()
        assert await torn(stack, here) == ([0], [0])
        assert await beyond(stack, here) == ([], [])
        await mark.tear(beyond=True)
        await mark.clear()
        assert not mark.is_torn_beyond
        assert await durable(stack, here) == ([], [])


async def test_a_layer_that_is_left_torn_opens_so(images: Path, here: Path) -> None:
    async with stack_open(images, here, 0) as stack:
        await stack.top.write(0, memoryview(b"data"))
        await mark_of(stack).tear()
    async with stack_open(images, here, 0) as stack:
        assert mark_of(stack).is_torn
        assert await torn(stack, here) == ([0], [0])


async def test_where_the_record_fails_nothing_is_torn(images: Path, here: Path, steps: Steps) -> None:
    async with stack_open(images, here, 0) as stack:
        mark = mark_of(stack)
        await mark.set()
        steps.failures["record"] = [OSError("away")]
        with pytest.raises(OSError, match="away"):
            await mark.tear()
        assert not mark.is_torn
        assert await torn(stack, here) == ([], [])
        await mark.tear()
        steps.failures["record"] = [OSError("away")]
        with pytest.raises(OSError, match="away"):
            await mark.mend()
        assert not mark.is_torn
        assert await torn(stack, here) == ([0], [0])
    # At the latest the close settles it.
    async with stack_open(images, here, 0) as stack:
        assert not mark_of(stack).is_torn


async def test_a_cancelled_tear_or_mend_is_right_after_the_next(images: Path, here: Path) -> None:
    async with stack_open(images, here, 0) as stack:
        mark = mark_of(stack)
        await mark.set()

        async def mended(where: str) -> None:
            assert not mark.is_torn or await torn(stack, here) == ([0], [0]), where
            await mark.mend()
            assert await torn(stack, here) == ([], []), where

        async def torn_again(where: str) -> None:
            assert not mark.is_torn
            await mark.tear()
            assert await torn(stack, here) == ([0], [0]), where

        await cancelled_at_each_await(mark.tear, mended)
        await mark.tear()
        await cancelled_at_each_await(mark.mend, torn_again)


async def test_a_cancelled_set_leaves_a_clean_image_when_the_stack_closes(images: Path, here: Path) -> None:
    async with stack_open(images, here, 0) as stack:
        with trio.CancelScope() as scope:
            real = stack.image.set_record

            async def cancelled(record: ImageRecord, *, guard: bool) -> None:
                await real(record, guard=guard)
                scope.cancel()
                await trio.lowlevel.checkpoint()

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(stack.image, "set_record", cancelled)
                await mark_of(stack).set()
        assert not mark_of(stack).is_set
        assert await durable(stack, here) == ([0], [0])
    async with directory_backend(images) as backend:
        record = await backend.read_record(NAME)
    assert record == ImageRecord(1)


async def test_a_manifest_that_comes_late_does_not_replace_a_newer_one(
    images: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stack_open(images, here, 0) as stack:
        mark = mark_of(stack)
        use, late = mark._ledger._claim.use, []

        async def delayed(work: Any, *args: Any) -> None:
            late.append((work, args))
            await trio.sleep_forever()

        with monkeypatch.context() as patch, trio.CancelScope() as scope:
            patch.setattr(mark._ledger._claim, "use", delayed)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mark.set)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        await mark.set()
        await mark.clear()
        ((work, args),) = late
        await use(work, *args)
        assert await durable(stack, here) == ([], [])
