"""A layer is dropped without its plugin: top first, never by accident, and nothing but its own files."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from fusecache.api import Identity, ImageRecord, joined
from fusecache.api.errors import BadCommand, ImageBusy, ImageNotFound, LayerDirty, PluginMissing
from fusecache.stack.drop import Drop, plan_drop
from fusecache.state.manifest import Manifest, ManifestLayer, encode
from tests.support.dirty_stacks import NAME, dropped, host, pool_of, stack_open, writeback_installed

HERE, THERE = 32 * "a", 32 * "b"
IDENTITY = Identity("directory:1")


async def soil(images: Path, here: Path, *indexes: int) -> None:
    """Leave the top layer dirty, by a write to it, and those below by write-backs of those above."""
    with writeback_installed():
        async with stack_open(images, here, *reversed(indexes)) as stack:
            for index in indexes:
                await stack.top.write(0, memoryview(b"data"))
                for above in sorted(indexes, reverse=True):
                    if above > index:
                        await stack.writeback(above)


async def test_a_dirty_layer_without_its_plugin_is_dropped(images: Path, here: Path) -> None:
    await soil(images, here, 0)
    pool, other = pool_of(here), pool_of(here).with_name("other")
    other.touch()
    with pytest.raises(PluginMissing):
        async with stack_open(images, here, 0):
            raise AssertionError("the stack is open")
    with pytest.raises(LayerDirty, match="layer 0 is dirty: `fusecache discard CONFIG IMAGE --layer 0 --dirty`"):
        await dropped(images, here)
    assert pool.exists()
    await dropped(images, here, dirty=True)
    assert not pool.exists()
    assert other.exists()
    async with stack_open(images, here) as stack:
        assert stack.epoch == 1
        assert joined(await stack.top.read(0, 4)) == bytes(4)


async def test_layers_are_dropped_top_first(images: Path, here: Path) -> None:
    await soil(images, here, 0, 1, 2)
    for index, above in ((0, r"1 \(writeback\), 2 \(writeback\)"), (1, r"2 \(writeback\)")):
        with pytest.raises(LayerDirty, match=f"layer {index} lies under dirty layers, discard them first: {above}"):
            await dropped(images, here, index, dirty=True)
        assert pool_of(here, index).exists()
    for index in (2, 1, 0):
        await dropped(images, here, index, dirty=True)
        assert not pool_of(here, index).exists()
    async with stack_open(images, here):
        pass


async def test_the_layers_below_a_dropped_one_stay_dirty(images: Path, here: Path, installed: None) -> None:
    await soil(images, here, 0, 1)
    await dropped(images, here, 1, dirty=True)
    async with stack_open(images, here) as stack:
        assert [layer.layer.status().dirty_bytes for layer in stack.layers] == [4, 0]


async def test_a_clean_layer_s_files_are_removed(images: Path, here: Path) -> None:
    with writeback_installed():
        async with stack_open(images, here, 0):
            pass
    await dropped(images, here)
    assert not pool_of(here).exists()
    await dropped(images, here)


async def test_an_unknown_layer_or_image_is_refused(images: Path, here: Path) -> None:
    with pytest.raises(BadCommand, match="found layer 7, allowed: 0"):
        await dropped(images, here, 7)
    await dropped(images, here, 0)
    (images / NAME).rename(images / "other")
    with pytest.raises(ImageNotFound):
        await dropped(images, here, 0)


async def test_nothing_is_dropped_of_an_image_that_is_open(images: Path, here: Path, installed: None) -> None:
    async with stack_open(images, here, 0) as stack:
        await stack.top.write(0, memoryview(b"data"))
        with pytest.raises(ImageBusy):
            await dropped(images, here, dirty=True)
        assert pool_of(here).exists()


async def test_another_host_s_layer_is_dropped_on_demand_only(images: Path, here: Path, tmp_path: Path) -> None:
    await soil(images, here, 0)
    there = host(tmp_path / "there", "b")
    with pytest.raises(LayerDirty, match=f"layer 0 is dirty on host .* \\({HERE}\\): `fusecache discard"):
        await dropped(images, there)
    with pytest.raises(ImageBusy):
        await dropped(images, there, dirty=True)
    await dropped(images, there, dirty=True, take_over=True)
    assert pool_of(here).exists()
    async with stack_open(images, there) as stack:
        assert stack.epoch == 2


async def test_files_of_a_layer_that_is_left_out_are_dropped_while_the_image_is_open(images: Path, here: Path) -> None:
    with writeback_installed():
        async with stack_open(images, here, 0):
            pass
    async with stack_open(images, here, 0) as stack:
        assert [layer.index for layer in stack.missing] == [0]
        await stack.invalidate(0, dirty=True)
        assert not pool_of(here).exists()
        with pytest.raises(PluginMissing):
            await stack.writeback(0)


class TestThePlan:
    """What is decided without any file."""

    @staticmethod
    def manifest(*dirty: bool, host: str = HERE, epoch: int = 1) -> Manifest:
        layers = [
            ManifestLayer(index=index, plugin="p", artifacts=(f"/{index}",), dirty=is_dirty)
            for index, is_dirty in enumerate(dirty)
        ]
        return Manifest(identity=IDENTITY.text, epoch=epoch, host=host, layers=tuple(layers))

    @staticmethod
    def record(manifest: Manifest, epoch: int = 1) -> ImageRecord:
        return ImageRecord(epoch, manifest.host, "name", encode(manifest).decode())

    def plan(self, local: Manifest | None, record: ImageRecord | None, index: int, known: Sequence[int] = ()) -> Drop:
        return plan_drop(local, record, IDENTITY, HERE, index, dirty=True, configured=known)

    def test_the_record_goes_on_to_name_who_has_dirty_layers_left(self) -> None:
        both, one = self.manifest(True, True), self.manifest(True, False)
        assert self.plan(both, self.record(both), 1) == Drop(("/1",), self.record(one), one)
        none = self.manifest(False, False)
        assert self.plan(one, self.record(one), 0) == Drop(("/0",), ImageRecord(1), none)

    def test_a_clean_layer_changes_no_record(self) -> None:
        one = self.manifest(True, False)
        assert self.plan(one, self.record(one), 1) == Drop(("/1",))

    def test_what_is_left_of_another_host_s_stack_is_fenced(self) -> None:
        both, one = self.manifest(True, True, host=THERE), self.manifest(True, False, host=THERE)
        drop = self.plan(None, self.record(both), 1)
        assert drop == Drop((), self.record(one, epoch=2), None)
        drop = self.plan(None, drop.record, 0)
        assert drop == Drop((), ImageRecord(3), None)

    def test_what_is_left_of_a_fenced_stack_stays_fenced(self) -> None:
        both = self.manifest(True, True)
        drop = self.plan(both, ImageRecord(5), 1)
        assert drop == Drop(("/1",), ImageRecord(6), self.manifest(True, False))
        drop = self.plan(drop.manifest, drop.record, 0)
        assert drop == Drop(("/0",), ImageRecord(7), self.manifest(False, False, epoch=7))

    def test_a_torn_layer_is_dropped_only_if_torn_will_do_unless_it_is_fenced(self) -> None:
        torn = self.manifest(True)
        torn = torn.model_copy(update={"layers": (torn.layers[0].model_copy(update={"torn": True}),)})
        with pytest.raises(LayerDirty, match="--layer 0 --dirty --torn"):
            self.plan(torn, self.record(torn), 0)
        expected = Drop(("/0",), ImageRecord(1), self.manifest(False))
        assert plan_drop(torn, self.record(torn), IDENTITY, HERE, 0, dirty=True, torn=True) == expected
        fenced = self.manifest(False, epoch=6)
        assert self.plan(torn, ImageRecord(5), 0) == Drop(("/0",), ImageRecord(6), fenced)

    def test_what_is_torn_is_asked_about_before_a_layer_above_it_is_dropped_on_another_host(self) -> None:
        both = self.manifest(True, True, host=THERE)
        torn = both.model_copy(update={"layers": (both.layers[0].model_copy(update={"torn": True}), both.layers[1])})
        with pytest.raises(LayerDirty, match=r"layer 0 is in the middle .* --layer 1 --dirty --torn"):
            self.plan(None, self.record(torn), 1)
        drop = plan_drop(None, self.record(torn), IDENTITY, HERE, 1, dirty=True, torn=True)
        assert drop.record is not None
        assert drop.record.epoch == 2

    def test_a_layer_of_the_config_alone_has_nothing_to_drop(self) -> None:
        assert self.plan(None, None, 3, known=[3]) == Drop()
        with pytest.raises(BadCommand, match="found layer 3, allowed: none, there are no layers"):
            self.plan(None, None, 3)
