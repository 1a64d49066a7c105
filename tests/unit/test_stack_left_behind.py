"""What is left of a stack that is closed, or of layers that the config has no more: figures, and no files."""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fusecache.state.dirty import dirty_images
from fusecache.state.manifest import decode
from tests.support.crash_steps import Seen, before_each_change
from tests.support.dirty_stacks import NAME, dropped, pool_of, stack_open

pytestmark = pytest.mark.usefixtures("installed")


async def use(images: Path, here: Path, *indexes: int, leave: bytes = b"") -> None:
    """Open the image with write-back layers and close it, with dirty data left in the top one."""
    async with stack_open(images, here, *indexes) as stack:
        if leave:
            await stack.top.write(0, memoryview(leave))


def named(here: Path) -> list[int]:
    """Return the layers in the manifest."""
    (manifest,) = (here / "images").glob("*/manifest")
    return [layer.index for layer in decode(manifest.read_bytes()).layers]


def there(here: Path, *indexes: int) -> list[bool]:
    return [pool_of(here, index).exists() for index in indexes]


# ---- files of layers that are configured no more ----


@pytest.mark.parametrize("still", [(0,), (1,), ()])
async def test_a_clean_layer_that_the_config_has_no_more_leaves_no_file(
    images: Path, here: Path, still: tuple[int, ...]
) -> None:
    await use(images, here, 0, 1, 2)
    assert there(here, 0, 1, 2) == [True] * 3
    await use(images, here, *still)
    assert there(here, 0, 1, 2) == [index in still for index in range(3)]
    assert named(here) == list(still)


async def test_a_dirty_stack_keeps_its_files_until_it_is_clean(images: Path, here: Path) -> None:
    await use(images, here, 0, 1, leave=b"data")
    async with stack_open(images, here, 0) as stack:
        assert [layer.index for layer in stack.layers] == [0, 1]
        await stack.writeback()
    assert there(here, 0, 1) == [True, True]
    await use(images, here, 0)
    assert there(here, 0, 1) == [True, False]
    assert (images / NAME).read_bytes()[:4] == b"data"


async def test_files_that_are_gone_or_cannot_be_removed_keep_no_image_from_opening(
    images: Path, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await use(images, here, 0, 1, 2)
    pool_of(here, 1).unlink()
    pool_of(here, 2).unlink()
    pool_of(here, 2).mkdir()
    await use(images, here, 0)
    assert there(here, 0, 1, 2) == [True, False, True]
    assert f"{pool_of(here, 2)} belongs to no layer any more, and cannot be removed" in caplog.text


async def test_what_a_crash_left_of_making_a_file_is_removed_with_it(images: Path, here: Path) -> None:
    await use(images, here, 0, 1, 2)
    unfinished = [pool_of(here, index).with_name(f"writeback.{index}.pool.new") for index in range(3)]
    for path in unfinished:
        path.touch()
    pool_of(here, 1).unlink()
    await use(images, here, 0, 2)
    assert [path.exists() for path in unfinished] == [True, False, True]
    await dropped(images, here, 2)
    assert [path.exists() for path in unfinished] == [True, False, False]


async def test_a_crash_at_any_step_leaves_no_file_unnamed_and_every_config_opens(
    images: Path, here: Path, tmp_path: Path
) -> None:
    async with stack_open(images, here, 0, 1, 2) as stack:
        await stack.top.write(0, memoryview(b"data"))
        await stack.writeback()
    seen = Seen(here, tmp_path / "seen")
    with pytest.MonkeyPatch.context() as patch:
        before_each_change(patch, lambda name, args: seen.look())
        await use(images, here, 0)
    steps = [named_and_there(step) for step, _ in seen.steps]
    assert all(files <= layers for layers, files in steps)
    everything = {0, 1, 2}
    found = [step for step, _ in itertools.groupby(steps)]
    assert found == [(everything, everything), (everything, {0, 2}), (everything, {0}), ({0}, {0})]
    for step, _ in seen.steps:
        for indexes in ((0,), (2, 1, 0), ()):
            shutil.rmtree(here)
            shutil.copytree(step, here)
            await use(images, here, *indexes)
            assert named_and_there(here) == (set(indexes), set(indexes))
    assert (images / NAME).read_bytes()[:4] == b"data"


def named_and_there(state: Path) -> tuple[set[int], set[int]]:
    """Return the layers that the manifest names, and those that have a file."""
    return set(named(state)), {index for index in range(3) if pool_of(state, index).exists()}


# ---- how much is dirty ----


def noted(here: Path) -> dict[str, Any] | None:
    (image,) = dirty_images(here)
    return None if image.dirty_bytes is None else {str(index): size for index, size in image.dirty_bytes.items()}


async def test_a_closed_image_tells_how_much_each_layer_left_dirty(images: Path, here: Path) -> None:
    await use(images, here, 0, 1, leave=b"data")
    assert noted(here) == {"1": 4}
    async with stack_open(images, here, 0, 1) as stack:
        # Should it be killed now, nobody knows.
        assert noted(here) is None
        await stack.writeback(1)
        await stack.top.write(8, memoryview(b"of more"))
    assert noted(here) == {"0": 4, "1": 7}
    async with stack_open(images, here, 0, 1) as stack:
        await stack.writeback()
    assert not list(dirty_images(here))
    assert not list((here / "images").glob("*/dirty"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"0": {}}', '{"a": 1}', "null"])
async def test_a_note_that_does_not_parse_is_none(images: Path, here: Path, text: str) -> None:
    await use(images, here, 0, leave=b"data")
    (note,) = (here / "images").glob("*/dirty")
    assert json.loads(note.read_text()) == {"0": 4}
    note.write_text(text)
    assert noted(here) is None
    await dropped(images, here, dirty=True)
