"""Which layers an image is opened with: the open rules, as one pure function.

Owns the decision between what is configured and what the manifest says. It must not do I/O, nor know how plugins are
found or layers opened.

====================  =============  ==========  ================================================================
manifest: the layer   plugin loads   pool files  then
====================  =============  ==========  ================================================================
is clean or absent    yes            any         it is opened, and creates what is missing
is clean or absent    no             any         the image opens without it; fails (ENODEV) if it is ``required``
is dirty              yes            all there   it is opened, and recovers
is dirty              yes            gone        the open fails (ENODATA)
is dirty              no             any         the open fails (ENODEV): reading around dirty data would be stale
is dirty, other host                             the open fails (EBUSY), naming the host
is dirty, old epoch                              the open fails (ESTALE): the layer is fenced
====================  =============  ==========  ================================================================

While any layer is dirty the manifest's stack is opened, whatever is configured; a changed config takes effect at the
first open that finds the stack clean.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fusecache.api.backend import ImageRecord
from fusecache.api.errors import CorruptState, Fenced, ImageBusy, NotSupported, PluginMissing, PoolMissing
from fusecache.api.identity import Identity
from fusecache.api.layer import LayerPlugin
from fusecache.config.schema import StackConfig
from fusecache.state.manifest import Manifest, ManifestLayer, decode


@dataclass(frozen=True, slots=True)
class PlannedLayer:
    """A layer to be opened.

    Attributes:
        index: the layer index.
        plugin: makes it.
        options: its own options, not yet validated.
        dirty: it holds dirty data and recovers.
        torn, torn_beyond, holds_group, files_id: see :class:`fusecache.state.manifest.ManifestLayer`.
    """

    index: int
    plugin: LayerPlugin
    options: Mapping[str, object]
    dirty: bool = False
    torn: bool = False
    torn_beyond: bool = False
    holds_group: bool = False
    files_id: str = ""

    @property
    def title(self) -> str:
        """What to call it in messages."""
        return f"layer {self.index} ({self.plugin.name})"


@dataclass(frozen=True, slots=True)
class MissingLayer:
    """A clean layer that the image is opened without.

    Attributes:
        index: the layer index.
        plugin: the name of the plugin that does not load.
        options: the layer's own options.
        reason: why the plugin does not load.
    """

    index: int
    plugin: str
    options: Mapping[str, object]
    reason: str


@dataclass(frozen=True, slots=True)
class StackPlan:
    """How an image is to be opened.

    Attributes:
        layers: to be opened, bottom up.
        missing: to be left out, bottom up.
        deferred: how the configured stack differs, where the manifest's is opened in its place; else None.
    """

    layers: Sequence[PlannedLayer]
    missing: Sequence[MissingLayer]
    deferred: str | None = None


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One layer as the config or the manifest gives it."""

    index: int
    plugin: str
    options: Mapping[str, object]
    required: bool = False
    dirty: bool = False
    torn: bool = False
    torn_beyond: bool = False
    holds_group: bool = False
    files_id: str = ""
    artifacts: Sequence[str] = field(default_factory=tuple)

    def __str__(self) -> str:
        options = f" {json.dumps(self.options, sort_keys=True, default=str)}" if self.options else ""
        return f"{self.index} {self.plugin}{options}"


def plan_stack(
    configured: StackConfig | None,
    manifest: Manifest | None,
    *,
    host: str,
    epoch: int,
    loadable: Callable[[str], LayerPlugin],
    artifact_exists: Callable[[str], bool],
) -> StackPlan:
    """Apply the open rules.

    Args:
        configured: the image's stack in the config; None is no layers.
        manifest: the image's; None where it has none.
        host: this host's machine-id.
        epoch: the image's epoch.
        loadable: returns the plugin of that name, or raises PluginMissing.
        artifact_exists: says whether a file that a dirty layer owns is there.

    Raises:
        PluginMissing: of a layer that is dirty or required.
        PoolMissing: a dirty layer's file is gone.
        ImageBusy: a layer is dirty on another host.
        Fenced: the manifest is dirty and older than the image's epoch.
    """
    wanted, deferred = _configured_layers(configured), None
    if manifest is not None and manifest.dirty:
        _check_owner(manifest, host, epoch)
        wanted, deferred = _manifest_layers(manifest, wanted)
    layers: list[PlannedLayer] = []
    missing: list[MissingLayer] = []
    for layer in wanted:
        try:
            plugin = loadable(layer.plugin)
        except PluginMissing as error:
            if layer.dirty or layer.required:
                raise PluginMissing(_without_plugin(layer, error)) from error
            missing.append(MissingLayer(layer.index, layer.plugin, layer.options, str(error)))
            continue
        if layer.dirty:
            _check_artifacts(layer, artifact_exists)
        words = layer.dirty, layer.torn, layer.torn_beyond, layer.holds_group, layer.files_id
        layers.append(PlannedLayer(layer.index, plugin, layer.options, *words))
    return StackPlan(layers, missing, deferred)


def manifest_in_force(
    local: Manifest | None, record: ImageRecord | None, identity: Identity, host: str
) -> Manifest | None:
    """Return the manifest to open an image by: the image's record is the authority on what is dirty.

    - The record names this host: its copy. A local manifest that says otherwise was lost with the state directory or
      brought back from before, or a crash came between the two (see :mod:`fusecache.stack.dirty`).
    - The record does not, and the local manifest of the same epoch says dirty: the local one with all layers clean.
      A crash came before the record said it, when nothing had been acknowledged, or after it ceased to, when all was
      below; others may have changed the image since.
    - The local manifest is dirty and of an older epoch: that, and it is fenced.
    - There is no record: the local one.

    Raises:
        CorruptState: the record names this host, and its copy does not parse or is another image's.
    """
    if record is None:
        return local
    if record.holder == host:
        copy = copy_of(record, identity)
        return local if local == copy else copy
    if local is not None and local.dirty and local.epoch >= record.epoch:
        return _cleaned(local)
    return local


def copy_of(record: ImageRecord, identity: Identity) -> Manifest:
    """Return the holder's manifest out of the image's record.

    Raises:
        CorruptState: it does not parse, or is another image's.
    """
    try:
        copy = decode(record.manifest.encode())
    except CorruptState as error:
        raise CorruptState(
            f"host {record.holder} holds dirty data by the image's record, whose copy is no manifest: {error}"
        ) from error
    if copy.identity != identity.text:
        raise CorruptState(f"the copy in the image's record is of {copy.identity}, allowed: {identity}")
    return copy


def _cleaned(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"layers": tuple(layer.cleaned() for layer in manifest.layers)})


def check_writeback(plan: StackPlan, *, durable_identity: bool) -> None:
    """Refuse layers that keep dirty data of an image which they might not know again.

    Raises:
        NotSupported: there is one.
    """
    refused = [layer for layer in plan.layers if layer.plugin.writes_back]
    if refused and not durable_identity:
        raise NotSupported(
            f"layer {refused[0].index} ({refused[0].plugin.name}) keeps dirty data, and the image has no lasting "
            "identity to find it again by: put the image where the backend can mark it, or configure no layer that "
            "writes back"
        )


def _configured_layers(configured: StackConfig | None) -> list[_Wanted]:
    layers = () if configured is None else configured.layers
    wanted = [_Wanted(layer.index, layer.plugin, layer.options, layer.required) for layer in layers]
    return sorted(wanted, key=lambda layer: layer.index)


def _manifest_layers(manifest: Manifest, configured: Sequence[_Wanted]) -> tuple[list[_Wanted], str | None]:
    """Return the manifest's layers, and how the configured ones differ."""
    required = {(layer.index, layer.plugin) for layer in configured if layer.required}
    wanted = [_of_manifest(layer, (layer.index, layer.plugin) in required) for layer in manifest.layers]
    found, opened = _described(configured), _described(wanted)
    if found == opened:
        return wanted, None
    return wanted, f"configured is {found}; until the stack is clean it is opened as {opened}"


def _of_manifest(layer: ManifestLayer, required: bool) -> _Wanted:
    return _Wanted(
        layer.index,
        layer.plugin,
        layer.options,
        required,
        layer.dirty,
        layer.torn,
        layer.torn_beyond,
        layer.holds_group,
        layer.files_id,
        layer.artifacts,
    )


def _described(layers: Sequence[_Wanted]) -> str:
    return f"[{', '.join(map(str, layers))}]"


def _check_owner(manifest: Manifest, host: str, epoch: int) -> None:
    if manifest.epoch < epoch:
        top = max(layer.index for layer in manifest.layers if layer.dirty)
        raise Fenced(
            f"the manifest is dirty at epoch {manifest.epoch}, the image is at epoch {epoch}: its dirty layers can "
            f"only be inspected, with `fusecache inspect POOLFILE`, and discarded: {_discard(top)} comes first"
        )
    if manifest.host != host:
        raise ImageBusy(
            f"the image is dirty on host {manifest.host}, this is host {host}: write it back there with "
            f"`fusecache flush CONFIG IMAGE`, or give that data up with {_discard('N')}, the top layer first"
        )


def _check_artifacts(layer: _Wanted, exists: Callable[[str], bool]) -> None:
    gone = [path for path in layer.artifacts if not exists(path)]
    if gone:
        raise PoolMissing(
            f"layer {layer.index} ({layer.plugin}) is dirty and {', '.join(gone)} is gone: "
            f"bring it back, or {_give_up(layer)}"
        )


def _without_plugin(layer: _Wanted, error: Exception) -> str:
    if layer.dirty:
        return (
            f"layer {layer.index} is dirty and cannot be opened: {error}; bring the plugin back, or {_give_up(layer)}"
        )
    return f"layer {layer.index} is required and cannot be opened: {error}"


def _give_up(layer: _Wanted) -> str:
    torn = " --torn" if layer.torn or layer.holds_group else ""
    return f"give its data up with {_discard(layer.index, torn)}"


def _discard(layer: int | str, torn: str = "") -> str:
    return f"`fusecache discard CONFIG IMAGE --layer {layer} --dirty{torn}`"
