"""The open rules, row by row."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest

from fusecache.api.backend import ImageRecord
from fusecache.api.errors import CorruptState, Fenced, ImageBusy, PluginMissing, PoolMissing
from fusecache.api.identity import Identity
from fusecache.api.layer import API_VERSION, Layer, LayerContext, LayerPlugin
from fusecache.api.volume import Volume
from fusecache.config.schema import LayerConfig, StackConfig
from fusecache.stack.plan import StackPlan, manifest_in_force, plan_stack
from fusecache.state.manifest import Manifest, ManifestLayer, encode

HERE, THERE = "a" * 32, "b" * 32


@dataclass
class NoOptions:
    """Nothing."""


class Loadable(LayerPlugin):
    """Is loaded and never opened."""

    api_version = API_VERSION
    config_model = NoOptions

    def __init__(self, name: str) -> None:
        self.name = name  # type: ignore[misc]

    def open(self, context: LayerContext, below: Volume) -> AbstractAsyncContextManager[Layer]:
        raise NotImplementedError


def load(name: str) -> LayerPlugin:
    if name.startswith("no-"):
        raise PluginMissing(f"{name} is not installed")
    return Loadable(name)


def stack(*layers: tuple[int, str], required: bool = False, options: Mapping[str, object] | None = None) -> StackConfig:
    configs = tuple(
        LayerConfig(index=index, plugin=plugin, required=required, options=options or {}) for index, plugin in layers
    )
    return StackConfig(images=("*",), layers=configs)


def record(*layers: ManifestLayer, host: str = HERE, epoch: int = 1) -> Manifest:
    return Manifest(identity="directory:1", epoch=epoch, host=host, layers=layers)


def clean(index: int, plugin: str) -> ManifestLayer:
    return ManifestLayer(index=index, plugin=plugin, artifacts=(f"/pool/{index}",))


def dirty(index: int, plugin: str) -> ManifestLayer:
    return ManifestLayer(index=index, plugin=plugin, artifacts=(f"/pool/{index}",), dirty=True)


def plan(
    configured: StackConfig | None, manifest: Manifest | None, *, files: Sequence[str] = (), epoch: int = 1
) -> StackPlan:
    return plan_stack(
        configured, manifest, host=HERE, epoch=epoch, loadable=load, artifact_exists=lambda path: path in files
    )


def opened(planned: StackPlan) -> list[tuple[int, str, bool]]:
    return [(layer.index, layer.plugin.name, layer.dirty) for layer in planned.layers]


def test_without_config_and_manifest_there_are_no_layers() -> None:
    assert plan(None, None) == StackPlan([], [])


def test_layers_come_bottom_up_with_their_options() -> None:
    planned = plan(stack((7, "top"), (2, "bottom"), options={"size": "1MiB"}), None)
    assert opened(planned) == [(2, "bottom", False), (7, "top", False)]
    assert [layer.options for layer in planned.layers] == [{"size": "1MiB"}] * 2
    assert planned.deferred is None


@pytest.mark.parametrize("manifest", [None, record(), record(clean(0, "rwl")), record(clean(0, "no-rwl"), host=THERE)])
def test_over_a_clean_manifest_the_configured_stack_is_opened(manifest: Manifest | None) -> None:
    planned = plan(stack((0, "other")), manifest)
    assert opened(planned) == [(0, "other", False)]
    assert planned.deferred is None


@pytest.mark.parametrize("manifest", [None, record(clean(1, "no-rwl"))])
def test_a_clean_layer_without_its_plugin_is_left_out(manifest: Manifest | None) -> None:
    planned = plan(stack((1, "no-rwl"), (0, "passthrough"), options={"a": 1}), manifest)
    assert opened(planned) == [(0, "passthrough", False)]
    (missing,) = planned.missing
    assert (missing.index, missing.plugin, missing.options) == (1, "no-rwl", {"a": 1})
    assert missing.reason == "no-rwl is not installed"


def test_a_required_layer_without_its_plugin_fails_the_open() -> None:
    with pytest.raises(PluginMissing, match="layer 1 is required and cannot be opened: no-rwl is not installed"):
        plan(stack((1, "no-rwl"), required=True), None)


def test_a_dirty_layer_is_opened_and_recovers() -> None:
    manifest = record(clean(0, "passthrough"), dirty(1, "rwl"))
    planned = plan(stack((1, "rwl"), (0, "passthrough")), manifest, files=["/pool/1"])
    assert opened(planned) == [(0, "passthrough", False), (1, "rwl", True)]
    assert planned.deferred is None


def test_a_dirty_layer_without_its_pool_file_fails_the_open() -> None:
    with pytest.raises(PoolMissing, match=r"layer 1 \(rwl\) is dirty and /pool/1 is gone"):
        plan(stack((1, "rwl")), record(dirty(1, "rwl")), files=["/pool/0"])


@pytest.mark.parametrize("files", [(), ("/pool/1",)])
def test_a_dirty_layer_without_its_plugin_fails_the_open(files: Sequence[str]) -> None:
    with pytest.raises(PluginMissing, match="layer 1 is dirty and cannot be opened: no-rwl is not installed"):
        plan(None, record(dirty(1, "no-rwl")), files=files)


def test_a_clean_layer_of_a_dirty_stack_may_be_left_out_unless_it_is_required() -> None:
    manifest = record(clean(0, "no-rwl"), dirty(1, "rwl"))
    planned = plan(stack((1, "rwl"), (0, "no-rwl")), manifest, files=["/pool/1"])
    assert opened(planned) == [(1, "rwl", True)]
    assert [layer.index for layer in planned.missing] == [0]
    with pytest.raises(PluginMissing, match="layer 0 is required"):
        plan(stack((1, "rwl"), (0, "no-rwl"), required=True), manifest, files=["/pool/1"])


def test_a_dirty_layer_of_another_host_fails_the_open_naming_it() -> None:
    with pytest.raises(ImageBusy, match=f"dirty on host {THERE}.*`fusecache discard CONFIG IMAGE --layer N --dirty`"):
        plan(stack((1, "rwl")), record(dirty(1, "rwl"), host=THERE), files=["/pool/1"])


@pytest.mark.parametrize("host", [HERE, THERE])
def test_a_dirty_layer_of_an_older_epoch_is_fenced(host: str) -> None:
    with pytest.raises(Fenced, match=r"dirty at epoch 1, the image is at epoch 2.* --layer 1 --dirty` comes"):
        plan(stack((1, "rwl")), record(dirty(1, "rwl"), host=host), files=["/pool/1"], epoch=2)


def test_a_clean_manifest_of_an_older_epoch_does_not_matter() -> None:
    assert opened(plan(stack((1, "rwl")), record(clean(1, "rwl")), epoch=2)) == [(1, "rwl", False)]


@pytest.mark.parametrize(
    "configured",
    [
        None,
        stack((1, "rwl")),
        stack((1, "rwl"), (0, "rwl")),
        stack((2, "rwl"), (0, "passthrough")),
        stack((1, "rwl"), (0, "passthrough"), options={"size": "2MiB"}),
    ],
)
def test_a_changed_config_waits_until_the_stack_is_clean(configured: StackConfig | None) -> None:
    manifest = record(clean(0, "passthrough"), dirty(1, "rwl"))
    planned = plan(configured, manifest, files=["/pool/1"])
    assert opened(planned) == [(0, "passthrough", False), (1, "rwl", True)]
    assert planned.deferred is not None
    assert planned.deferred.endswith("until the stack is clean it is opened as [0 passthrough, 1 rwl]")


def test_equal_options_are_no_change() -> None:
    layer = ManifestLayer(index=0, plugin="rwl", options={"b": [1, 2], "a": "x"}, dirty=True)
    assert plan(stack((0, "rwl"), options={"a": "x", "b": (1, 2)}), record(layer)).deferred is None


class TestTheManifestInForce:
    """What is dirty is for the image's record to say."""

    IDENTITY = Identity("directory:1")
    LOST = record(dirty(0, "p"))

    def in_force(self, local: Manifest | None, holder: str | None, copy: str, epoch: int = 1) -> Manifest | None:
        return manifest_in_force(local, ImageRecord(epoch, holder, "", copy), self.IDENTITY, HERE)

    @pytest.mark.parametrize("local", [None, record(clean(0, "p")), record(dirty(1, "p"))])
    def test_it_is_the_local_one_where_there_is_no_record(self, local: Manifest | None) -> None:
        assert manifest_in_force(local, None, self.IDENTITY, HERE) is local

    @pytest.mark.parametrize("holder", [None, THERE])
    def test_a_dirty_local_one_that_the_record_does_not_vouch_for_is_clean(self, holder: str | None) -> None:
        copy = encode(record(dirty(0, "p"), host=THERE)).decode()
        for local in (None, record(clean(0, "p"))):
            assert self.in_force(local, holder, copy) is local
        assert self.in_force(record(dirty(0, "p"), clean(1, "q")), holder, copy) == record(clean(0, "p"), clean(1, "q"))

    @pytest.mark.parametrize("holder", [None, THERE])
    def test_a_dirty_local_one_of_an_older_epoch_stays_fenced(self, holder: str | None) -> None:
        local = record(dirty(0, "p"))
        assert self.in_force(local, holder, "", epoch=2) is local
        with pytest.raises(Fenced):
            plan(None, self.in_force(local, holder, "", epoch=2), files=["/pool/0"], epoch=2)

    @pytest.mark.parametrize("local", [None, record(clean(0, "p")), record(), record(dirty(0, "p"), dirty(1, "p"))])
    def test_what_the_record_says_of_this_host_is_so(self, local: Manifest | None) -> None:
        assert self.in_force(local, HERE, encode(self.LOST).decode()) == self.LOST

    def test_a_local_one_that_says_the_same_is_not_written_again(self) -> None:
        local = record(dirty(0, "p"))
        assert self.in_force(local, HERE, encode(self.LOST).decode()) is local

    def test_a_copy_that_is_none_is_refused(self) -> None:
        other = self.LOST.model_copy(update={"identity": "directory:2"})
        for copy, reason in (("", "whose copy is no manifest"), (encode(other).decode(), "is of directory:2")):
            with pytest.raises(CorruptState, match=reason):
                self.in_force(None, HERE, copy)


def test_a_lost_pool_file_is_told_with_the_command_that_gives_it_up() -> None:
    with pytest.raises(
        PoolMissing, match=r"/pool/1 is gone: bring it back, or .*`fusecache discard CONFIG IMAGE --layer 1 --dirty`"
    ):
        plan(None, record(dirty(1, "rwl")))
