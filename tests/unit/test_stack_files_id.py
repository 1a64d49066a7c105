"""A mark names the files that hold the dirty data: after a crash at any step the right ones, or the layer is clean."""

from pathlib import Path
from typing import Any

import pytest

from fusecache.api import ImageRecord
from fusecache.backends.directory_image import DirectoryImage
from fusecache.stack.plan import manifest_in_force
from fusecache.state.image_state import ImageState
from fusecache.state.manifest import Manifest
from tests.support.dirty_stacks import layer_of, stack_open

pytestmark = pytest.mark.usefixtures("installed")


class Steps:
    """What is durable after each step.

    Attributes:
        named: the files of the layer by what the next open goes by; None where it is clean.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.named: list[str | None] = []
        self._record: ImageRecord | None = None
        self._manifest: Manifest | None = None
        write_manifest, set_record = ImageState.write_manifest, DirectoryImage.set_record

        def writing(state: ImageState, manifest: Manifest) -> None:
            write_manifest(state, manifest)
            self._manifest = manifest
            self._look(state)

        async def setting(image: DirectoryImage, record: ImageRecord, **options: Any) -> None:
            await set_record(image, record, **options)
            self._record = record
            self._look(image)

        patch.setattr(ImageState, "write_manifest", writing)
        patch.setattr(DirectoryImage, "set_record", setting)

    def _look(self, image: ImageState | DirectoryImage) -> None:
        record = self._record or ImageRecord(1)
        host = self._manifest.host if self._manifest is not None else ""
        found = manifest_in_force(self._manifest, record, image.identity, host)
        assert found is not None
        (layer,) = found.layers
        self.named.append(layer.files_id if layer.dirty else None)

    def taken(self) -> list[str | None]:
        """Return what was durable after each step since the last call."""
        named, self.named = self.named, []
        return named


async def test_the_record_names_the_files_as_soon_as_it_says_dirty(
    images: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(monkeypatch)
    async with stack_open(images, here, 0) as stack:
        mark = layer_of(stack).mark
        assert steps.taken() == [None]
        await mark.set("one")
        assert steps.taken() == [None, "one"]
        await mark.set("one")
        assert steps.taken() == []
        await mark.tear()
        await mark.mend()
        assert steps.taken() == 4 * ["one"]
        await mark.clear()
        assert steps.taken() == [None, None]
        # Of a mark that is not set it is said for the files of before.
        await mark.tear(beyond=True)
        assert steps.taken() == [None, "one"]
        await mark.set("two")
        assert steps.taken() == ["one", "two"]
        await mark.clear()
        await mark.set("three")
        assert steps.taken() == [None, None, None, "three"]
        layer_of(stack).keep(0, b"data")
    async with stack_open(images, here, 0) as stack:
        assert layer_of(stack).mark.files_id == "three"
    assert steps.taken() == ["three", "three"]


async def test_files_that_could_not_be_named_are_not(images: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stack_open(images, here, 0) as stack:
        mark = layer_of(stack).mark
        await mark.set("one")

        async def failing(*_: object, **options: object) -> None:
            raise OSError("no record is written")

        steps = Steps(monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(DirectoryImage, "set_record", failing)
            with pytest.raises(OSError, match="no record"):
                await mark.set("two")
        assert mark.files_id == "one"
        assert mark.is_set
        await mark.set("two")
        assert steps.taken()[-1] == "two"
