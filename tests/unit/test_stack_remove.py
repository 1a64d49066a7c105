"""Removing an image: with all files that its layers ever had here, configured or not, and never with dirty data."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest

from fusecache.api import ImageRecord
from fusecache.api.errors import CorruptState, Fenced, ImageBusy, ImageNotFound, LayerDirty
from fusecache.testing.claims import FreeClaim
from tests.support.crash_steps import Seen, before_each_change
from tests.support.dirty_stacks import NAME, dropped, host, pool_of, removed, stack_open, writeback_installed
from tests.support.places import directory_backend


async def use(images: Path, here: Path, *indexes: int, leave: bytes = b"") -> None:
    """Open the image with write-back layers and close it, with dirty data left in the top one."""
    with writeback_installed():
        async with stack_open(images, here, *indexes) as stack:
            if leave:
                await stack.top.write(0, memoryview(leave))


async def set_record(images: Path, record: ImageRecord) -> None:
    async with directory_backend(images) as backend, backend.open(NAME, FreeClaim(32 * "a")) as image:
        await image.set_record(record, guard=False)


def pools(here: Path) -> set[str]:
    """Return which pool files there are."""
    return {path.name for path in here.rglob("*.pool*")}


async def test_an_image_goes_with_the_files_of_all_its_layers_and_no_others(images: Path, here: Path) -> None:
    """No plugin is asked: none is installed any more."""
    await use(images, here, 0, 1, 2)
    unfinished, other = pool_of(here, 1).with_suffix(".pool.new"), pool_of(here).with_name("other.pool")
    for path in (unfinished, other):
        path.touch()
    pool_of(here, 2).unlink()
    await removed(images, here)
    assert not (images / NAME).exists()
    assert pools(here) == {"other.pool"}


async def test_an_image_that_never_had_layers_is_removed(images: Path, here: Path) -> None:
    await removed(images, here)
    assert not (images / NAME).exists()
    with pytest.raises(ImageNotFound):
        await removed(images, here)


async def test_an_image_with_a_dirty_layer_is_not_removed_whatever_else_is_clean(images: Path, here: Path) -> None:
    await use(images, here, 0, 1, leave=b"data")
    before = pools(here)
    with pytest.raises(LayerDirty, match="layer 1 is dirty: `fusecache discard CONFIG IMAGE --layer 1 --dirty`"):
        await removed(images, here)
    assert pools(here) == before
    assert (images / NAME).exists()
    await dropped(images, here, 1, dirty=True)
    await removed(images, here)
    assert not pools(here)


async def test_a_fenced_layer_is_to_be_discarded_before_its_image_is_removed(images: Path, here: Path) -> None:
    await use(images, here, 0, leave=b"data")
    await set_record(images, ImageRecord(2))
    with pytest.raises(LayerDirty):
        await removed(images, here)
    assert pools(here) == {"writeback.0.pool"}
    await dropped(images, here, dirty=True)
    await removed(images, here)
    assert not pools(here)


async def test_a_word_that_an_image_is_dirty_is_void_where_its_record_does_not_say_so(images: Path, here: Path) -> None:
    await use(images, here, 0, leave=b"data")
    await set_record(images, ImageRecord(1))
    await removed(images, here)
    assert not pools(here)


async def test_other_hosts_keep_their_files_and_their_dirty_images(images: Path, here: Path, tmp_path: Path) -> None:
    there = host(tmp_path / "there", "b")
    await use(images, there, 0)
    await use(images, here, 0, leave=b"data")
    with pytest.raises(ImageBusy):
        await removed(images, there)
    assert pools(there) == pools(here) == {"writeback.0.pool"}
    await dropped(images, here, dirty=True)
    await use(images, here, 0)
    await removed(images, here)
    assert pools(there) == {"writeback.0.pool"}
    assert not pools(here)


async def test_a_copy_of_a_dirty_image_is_removed_and_its_original_keeps_its_files(images: Path, here: Path) -> None:
    await use(images, here, 0, leave=b"data")
    original = (images / NAME).rename(images / "original")
    shutil.copy2(original, images / NAME)
    with pytest.raises(Fenced):
        await use(images, here, 0)
    await removed(images, here)
    assert not (images / NAME).exists()
    assert original.exists()
    assert pools(here) == {"writeback.0.pool"}


async def test_an_image_that_is_open_is_not_removed_and_keeps_its_files(images: Path, here: Path) -> None:
    with writeback_installed():
        async with stack_open(images, here, 0):
            with pytest.raises(ImageBusy):
                await removed(images, here)
            assert pools(here) == {"writeback.0.pool"}


async def test_an_image_stays_while_a_file_cannot_be_removed_or_is_not_known(images: Path, here: Path) -> None:
    await use(images, here, 0, 1)
    pool_of(here, 1).unlink()
    pool_of(here, 1).mkdir()
    with pytest.raises(IsADirectoryError):
        await removed(images, here)
    assert (images / NAME).exists()
    pool_of(here, 1).rmdir()
    await use(images, here, 0, 1)
    manifest = pool_of(here).with_name("manifest")
    manifest.write_bytes(manifest.read_bytes()[:-3])
    with pytest.raises(CorruptState):
        await removed(images, here)
    assert (images / NAME).exists()
    assert pools(here) == {"writeback.0.pool", "writeback.1.pool"}


class Steps:
    """A removal, looked at before each of its system calls.

    Attributes:
        seen: the state directory, and whether the image was there.
        calls: those that concern pool files, their directory, and the image's name.
    """

    def __init__(self, images: Path, here: Path, copies: Path) -> None:
        self.seen = Seen(here, copies)
        self.calls: list[str] = []
        self._image = images / NAME
        self._directory = pool_of(here).parent

    def look(self, name: str, args: tuple[Any, ...]) -> None:
        self.seen.look(self._image.exists())
        target = Path(f"/proc/self/fd/{args[0]}").readlink() if isinstance(args[0], int) else Path(args[0])
        if target == self._directory or target.suffix == ".pool" or target.name == NAME:
            self.calls.append(f"{name} {target.name}")


async def test_a_crash_at_any_step_leaves_no_file_without_its_image(images: Path, here: Path, tmp_path: Path) -> None:
    await use(images, here, 0, 1)
    steps = Steps(images, here, tmp_path / "seen")
    spare = tmp_path / "spare"
    spare.hardlink_to(images / NAME)
    with pytest.MonkeyPatch.context() as patch:
        before_each_change(patch, steps.look)
        await removed(images, here)
    found = list(dict.fromkeys((frozenset(pools(copy)), image) for copy, image in steps.seen.steps))
    one = frozenset({"writeback.1.pool"})
    assert found == [(one | {"writeback.0.pool"}, True), (one, True), (frozenset(), True), (frozenset(), False)]
    # Loss of power: each removal is durable before the next step.
    directory = pool_of(here).parent.name
    durable = [call for call in dict.fromkeys(steps.calls) if call.startswith("unlink")]
    assert durable == ["unlink writeback.0.pool", "unlink writeback.1.pool", f"unlink {NAME}"]
    for before, after in itertools.pairwise(durable):
        between = steps.calls[steps.calls.index(before) : steps.calls.index(after)]
        assert f"fsync {directory}" in between
    for copy, image in steps.seen.steps:
        for indexes in ((0, 1), (2,), ()) if image else ():
            shutil.rmtree(here)
            shutil.copytree(copy, here)
            (images / NAME).hardlink_to(spare)
            await use(images, here, *indexes)
            assert pools(here) == {f"writeback.{index}.pool" for index in indexes}
            await removed(images, here)
            assert not pools(here)
            assert not (images / NAME).exists()
