"""Opening a stack: in order, recorded before it can matter, and undone where it fails."""

from pathlib import Path

import pytest
import trio

from fusecache.api import (
    joined,
)
from fusecache.api.errors import (
    ContractViolation,
    CorruptState,
    ImageBusy,
    ImageNotFound,
    PluginMissing,
    PoolMissing,
    VolumeClosed,
)
from fusecache.config.load import ConfigError
from fusecache.config.schema import LayerConfig, StackConfig
from fusecache.state.manifest import Manifest, ManifestLayer
from fusecache.state.store import StateStore
from fusecache.testing.memory import MemoryBackend
from fusecache_passthrough import PassthroughLayer
from tests.support.stacks import (
    IMAGE,
    Open,
    Options,
    TellingPlugin,
    backend,
    events,
    layers,
    opener,
    plugin,
    read_manifest,
    store,
    write_manifest,
)

__all__ = ["backend", "events", "opener", "plugin", "store"]


async def test_an_image_without_layers_is_its_backend(opener: Open, backend: MemoryBackend) -> None:
    async with opener() as stack:
        assert stack.top is stack.base
        assert (stack.layers, stack.missing, stack.alignment) == ([], [], 1)
        assert stack.identity == backend.images[IMAGE].identity
        await stack.top.write(0, memoryview(b"data"))
        await stack.writeback()
    assert backend.images[IMAGE].content.read(0, 4) == b"data"


async def test_the_shipped_layer_is_found_by_its_entry_point(opener: Open) -> None:
    async with opener(configured=layers(1, 0, plugin="passthrough")) as stack:
        assert [type(layer.layer) for layer in stack.layers] == [PassthroughLayer] * 2
        await stack.top.write(10, memoryview(b"data"))
        assert joined(await stack.top.read(10, 4)) == b"data"
        assert [layer.layer.status().writes for layer in stack.layers] == [1, 1]


async def test_layers_open_bottom_up_and_close_top_down(opener: Open, plugin: TellingPlugin) -> None:
    async with opener(configured=layers(5, 3, 0)) as stack:
        assert plugin.told == ["open 0", "open 3", "open 5"]
        assert [(layer.index, layer.plugin) for layer in stack.layers] == [(n, "telling") for n in (0, 3, 5)]
        assert stack.top is stack.layers[-1].link
        link = stack.layers[0].link
    assert plugin.told[3:] == ["close 5", "close 3", "close 0"]
    for closed in (link, stack.top, stack.base):
        with pytest.raises(VolumeClosed):
            await closed.read(0, 1)


async def test_a_layer_learns_its_place(opener: Open, plugin: TellingPlugin, store: StateStore) -> None:
    async with opener(configured=layers(3, alignment=512)) as stack:
        (context,) = plugin.contexts
        assert (context.image, context.identity, context.index, context.epoch) == (IMAGE, stack.identity, 3, 1)
        assert context.config == Options(alignment=512)
        assert context.state_dir == store.directory / "images" / stack.identity.digest
        assert context.nursery is stack.nursery
        assert (stack.alignment, stack.top.alignment, stack.base.alignment) == (512, 512, 1)


async def test_the_manifest_is_written_before_a_layer_creates_a_file(
    opener: Open, plugin: TellingPlugin, store: StateStore, backend: MemoryBackend
) -> None:
    plugin.failure = OSError("no room")
    with pytest.raises(OSError, match="no room"):
        async with opener(configured=layers(1, pool="p")):
            raise AssertionError("the stack is not open")
    identity = backend.images[IMAGE].identity
    file = store.directory / "images" / identity.digest / "p.1"
    assert not file.exists()
    expected = ManifestLayer(index=1, plugin="telling", options={"pool": "p"}, artifacts=(str(file),))
    assert read_manifest(store, identity) == Manifest(
        identity=identity.text, epoch=1, host=store.host(), layers=(expected,)
    )


async def test_an_unchanged_manifest_is_not_written_again(
    opener: Open, plugin: TellingPlugin, store: StateStore
) -> None:
    async with opener(configured=layers(1, 0)) as stack:
        path = store.directory / "images" / stack.identity.digest / "manifest"
        before = path.stat().st_ino
    async with opener(configured=layers(1, 0)):
        assert path.stat().st_ino == before
    async with opener(configured=layers(1)):
        assert path.stat().st_ino != before


async def test_a_failure_in_the_middle_closes_what_was_open(opener: Open, plugin: TellingPlugin) -> None:
    plugin.failure = OSError("no room")
    with pytest.raises(OSError, match="no room"):
        async with opener(configured=layers(1, 0)):
            raise AssertionError("the stack is not open")
    assert plugin.told == ["open 0", "close 0"]
    async with opener():
        pass


async def test_an_image_is_open_once(opener: Open, backend: MemoryBackend, store: StateStore) -> None:
    async with opener(mountpoint="/mnt/images") as stack:
        with pytest.raises(ImageBusy):
            async with opener():
                raise AssertionError("the stack is not open")
        # Where the backend would let another in, the state directory does not.
        backend.images[IMAGE].owner = None
        with pytest.raises(ImageBusy, match="mounted at /mnt/images"):
            async with opener():
                raise AssertionError("the stack is not open")
        assert joined(await stack.top.read(0, 1)) == b"\0"


async def test_an_image_that_does_not_exist_is_not_opened(opener: Open, store: StateStore) -> None:
    with pytest.raises(ImageNotFound):
        async with opener(name="absent"):
            raise AssertionError("the stack is not open")
    assert list((store.directory / "images").iterdir()) == []


async def test_wrong_options_are_refused_and_nothing_is_recorded(
    opener: Open, plugin: TellingPlugin, store: StateStore, backend: MemoryBackend
) -> None:
    with pytest.raises(ConfigError, match=r"disk\.img: layer 1 \(telling\)\.alignmnt"):
        async with opener(configured=layers(1, alignmnt=512)):
            raise AssertionError("the stack is not open")
    assert read_manifest(store, backend.images[IMAGE].identity) is None


async def test_a_number_that_no_manifest_can_hold_is_refused(opener: Open, plugin: TellingPlugin) -> None:
    with pytest.raises(ConfigError, match="not finite"):
        async with opener(configured=layers(1, rate=float("inf"))):
            raise AssertionError("the stack is not open")


async def test_a_plugin_that_opens_no_layer_is_refused(opener: Open, plugin: TellingPlugin) -> None:
    with pytest.raises(ContractViolation, match=r"layer 0 \(wrong\): the plugin opened <Link"):
        async with opener(configured=layers(0, plugin="wrong")):
            raise AssertionError("the stack is not open")


async def test_a_missing_plugin_is_told_and_its_files_stay_on_record(
    opener: Open,
    plugin: TellingPlugin,
    store: StateStore,
    backend: MemoryBackend,
    events: list[tuple[str, str]],
) -> None:
    identity = backend.images[IMAGE].identity
    gone = ManifestLayer(index=1, plugin="gone", artifacts=("/pool/1",))
    write_manifest(store, identity, layers=(gone,))
    config = StackConfig(images=("*",), layers=(LayerConfig(index=1, plugin="gone"), *layers(0).layers))
    async with opener(configured=config) as stack:
        assert [layer.index for layer in stack.layers] == [0]
        assert [(layer.index, layer.plugin) for layer in stack.missing] == [(1, "gone")]
    manifest = read_manifest(store, identity)
    assert manifest is not None
    assert manifest.layers[1] == gone
    ((kind, text),) = events
    assert kind == "layer-missing"
    assert "opened without layer 1: layer plugin 'gone' is not installed" in text
    with pytest.raises(PluginMissing):
        async with opener(configured=layers(1, plugin="gone", required=True)):
            raise AssertionError("the stack is not open")


async def test_a_dirty_stack_is_opened_as_recorded_and_stays_dirty(
    opener: Open,
    plugin: TellingPlugin,
    store: StateStore,
    backend: MemoryBackend,
    events: list[tuple[str, str]],
    tmp_path: Path,
) -> None:
    identity = backend.images[IMAGE].identity
    file = store.directory / "images" / identity.digest / "p.4"
    dirty = ManifestLayer(index=4, plugin="telling", options={"pool": "p"}, artifacts=(str(file),), dirty=True)
    write_manifest(store, identity, epoch=3, layers=(dirty,))
    with pytest.raises(PoolMissing, match=str(file)):
        async with opener():
            raise AssertionError("the stack is not open")
    file.touch()
    async with opener(configured=layers(1)) as stack:
        assert [layer.index for layer in stack.layers] == [4]
        assert (stack.epoch, plugin.contexts[0].epoch) == (3, 3)
    manifest = read_manifest(store, identity)
    assert manifest is not None
    assert manifest.layers == (dirty,)
    assert [kind for kind, _ in events] == ["config-deferred"]


async def test_a_damaged_manifest_fails_the_open(opener: Open, store: StateStore, backend: MemoryBackend) -> None:
    path = store.directory / "images" / backend.images[IMAGE].identity.digest / "manifest"
    path.parent.mkdir()
    path.write_bytes(b"junk")
    with pytest.raises(CorruptState):
        async with opener(configured=layers(0, plugin="passthrough")):
            raise AssertionError("the stack is not open")
    assert path.read_bytes() == b"junk"


async def test_a_crashed_task_of_the_stack_closes_it_and_is_raised(opener: Open, plugin: TellingPlugin) -> None:
    async def crash() -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("write-back")

    plugin.task = crash
    with pytest.raises(KeyError, match="write-back"):
        async with opener(configured=layers(0)):
            await trio.sleep_forever()
    assert plugin.told == ["open 0", "close 0"]
    async with opener():
        pass


async def test_tasks_of_the_stack_end_with_it(opener: Open, plugin: TellingPlugin) -> None:
    plugin.task = trio.sleep_forever
    async with opener(configured=layers(0)):
        pass
    assert plugin.told == ["open 0", "close 0"]


async def test_what_the_body_raises_comes_out_as_it_is(opener: Open, plugin: TellingPlugin) -> None:
    failure = KeyError("body")
    with pytest.raises(KeyError) as caught:
        async with opener(configured=layers(0)):
            raise failure
    assert caught.value is failure
    assert plugin.told == ["open 0", "close 0"]


async def test_a_cancelled_stack_is_closed(opener: Open, plugin: TellingPlugin) -> None:
    with trio.CancelScope() as scope:
        async with opener(configured=layers(0)):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert plugin.told == ["open 0", "close 0"]
    async with opener():
        pass


async def test_a_read_only_image_is_opened_read_only(opener: Open) -> None:
    async with opener(configured=layers(0, plugin="passthrough"), read_only=True) as stack:
        assert stack.top.read_only
