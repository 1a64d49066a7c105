"""What is left of a stack that is closed, or of layers that the config has no more: figures, and no files."""

import json
from pathlib import Path
from typing import Any

import pytest

from fusecache.state.dirty import dirty_images
from fusecache.state.files import remove_files
from fusecache.state.image_state import ImageState
from fusecache.state.manifest import Manifest, decode
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


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", ["first file", "second file", "manifest"])
async def test_a_crash_in_between_leaves_nothing_unnamed(images: Path, here: Path, step: str) -> None:
    await use(images, here, 0, 1, 2)
    write = ImageState.write_manifest
    removed: list[str] = []

    def removing(files: list[str]) -> None:
        if len(removed) == ["first file", "second file", "manifest"].index(step):
            raise Killed
        removed.extend(files)
        remove_files(files)

    def writing(state: ImageState, manifest: Manifest) -> None:
        if step == "manifest" and manifest.layers != () and len(manifest.layers) == 1:
            raise Killed
        write(state, manifest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusecache.stack.prepare.remove_files", removing)
        patch.setattr(ImageState, "write_manifest", writing)
        with pytest.raises(Killed):
            await use(images, here, 0)
    assert named(here) == [0, 1, 2]
    await use(images, here, 0)
    assert there(here, 0, 1, 2) == [True, False, False]
    assert named(here) == [0]


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
