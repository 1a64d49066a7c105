"""What is found out, and durably written, between the locks and the first layer.

Owns how a stack that is about to be opened gets into the manifest and, where it is dirty or taken over, into the
image's record. It must not know how layers are opened.

**Taking over** an image of which another host holds dirty data gives all of that up. So it is refused where a level
would be left torn (:mod:`fusecache.stack.torn`), as a discard is that does not say *torn*; then that host's layers have
to be discarded. Otherwise the record is replaced by one of the next epoch without a holder, durably, then the manifest
is written at that epoch, then the layers open. A crash after the first leaves an image that nobody holds; either way
the other host's manifest and pool files are of an older epoch, fenced for ever.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fusecache.api.backend import BackendImage, ImageRecord
from fusecache.api.errors import NotSupported
from fusecache.api.identity import Identity
from fusecache.api.layer import Emit, LayerPlugin
from fusecache.config.mistakes import ConfigError, Mistake
from fusecache.config.schema import StackConfig
from fusecache.stack.claim import HostClaim
from fusecache.stack.dirty import record_of
from fusecache.stack.plan import PlannedLayer, StackPlan, manifest_in_force, plan_stack
from fusecache.stack.torn import check_takeover
from fusecache.state.files import remove_files
from fusecache.state.image_state import ImageState
from fusecache.state.manifest import Manifest, ManifestLayer

log = logging.getLogger(__name__)

FIRST_EPOCH: Final = 1
"""The epoch of an image that no other host ever took over."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known before any layer is opened.

    Attributes:
        manifest: the one in force.
        record: the image's, as it is now.
        host: this host's machine-id.
        epoch: the image's, as it is now.
    """

    manifest: Manifest | None
    record: ImageRecord | None
    host: str
    epoch: int
    plan: StackPlan


def prepare(
    state: ImageState,
    host: str,
    configured: StackConfig | None,
    record: ImageRecord | None,
    loadable: Callable[[str], LayerPlugin],
) -> Prepared:
    """Apply the open rules; put the local manifest right where the record knows better. Blocks.

    Raises:
        FusecacheError: see :mod:`fusecache.stack.plan`.
    """
    manifest = in_force(state, host, record)
    authority = manifest if record is None else record
    epoch = FIRST_EPOCH if authority is None else authority.epoch
    plan = plan_stack(
        configured,
        manifest,
        host=host,
        epoch=epoch,
        loadable=loadable,
        artifact_exists=lambda path: Path(path).exists(),
    )
    return Prepared(manifest, record, host, epoch, plan)


def in_force(state: ImageState, host: str, record: ImageRecord | None) -> Manifest | None:
    """Return the manifest in force, which is durably the local one from now on. Blocks.

    Raises:
        CorruptState: the local one, or the record's copy, does not parse or is another image's.
    """
    local = state.read_manifest()
    manifest = manifest_in_force(local, record, state.identity, host)
    if manifest is not None and manifest is not local:
        state.write_manifest(manifest)
    return manifest


async def taken_over(prepared: Prepared, image: BackendImage, name: str, *, guard: bool, emit: Emit) -> Prepared:
    """Raise the epoch where another host holds dirty data of the image; what is found otherwise stays as it is.

    Raises:
        LayerDirty: without that data a level is torn; nothing has changed.
    """
    record = prepared.record
    if record is None or record.holder in (None, prepared.host):
        return prepared
    check_takeover(record, prepared.host)
    mine = ImageRecord(record.epoch + 1)
    await image.set_record(mine, guard=guard)
    emit("taken-over", f"{name}: taken over from host {record.holder_name or record.holder}: its dirty data is fenced")
    return replace(prepared, record=mine, epoch=mine.epoch)


async def check_clones(plan: StackPlan, image: BackendImage) -> None:
    """Refuse layers that keep dirty data of an image with clones: its guard would keep those from being opened.

    What is dirty already is opened all the same, to be written back.

    Raises:
        NotSupported: there is one.
    """
    keeping = [layer for layer in plan.layers if layer.plugin.writes_back]
    if not keeping or any(layer.dirty for layer in keeping):
        return
    if clones := await image.clones():
        raise NotSupported(
            f"layer {keeping[0].index} ({keeping[0].plugin.name}) keeps dirty data, and while there are some the "
            f"clones {', '.join(clones)} could not be opened: flatten them, configure no layer that writes back, or "
            "set guard = false in [mount], which lets programs open the image that do not know of the dirty data"
        )


def manifest_of(prepared: Prepared, identity: Identity, artifacts: Sequence[Sequence[Path]]) -> Manifest:
    """Return the manifest of the stack that is about to be opened.

    Args:
        identity: the image's.
        artifacts: of each planned layer.
    """
    layers = [
        ManifestLayer(
            index=layer.index,
            plugin=layer.plugin.name,
            options=plain_options(layer),
            artifacts=tuple(map(str, paths)),
            dirty=layer.dirty,
            torn=layer.torn,
            torn_beyond=layer.torn_beyond,
            holds_group=layer.holds_group,
            files_id=layer.files_id,
        )
        for layer, paths in zip(prepared.plan.layers, artifacts, strict=True)
    ]
    # A layer that is left out still owns its files.
    left_out = {(layer.index, layer.plugin) for layer in prepared.plan.missing}
    before = () if prepared.manifest is None else prepared.manifest.layers
    layers += [layer for layer in before if (layer.index, layer.plugin) in left_out]
    return Manifest(
        identity=identity.text,
        epoch=prepared.epoch,
        host=prepared.host,
        layers=tuple(sorted(layers, key=lambda layer: layer.index)),
    )


async def write_down(
    prepared: Prepared, manifest: Manifest, claim: HostClaim, image: BackendImage, *, guard: bool
) -> None:
    """Make *manifest* durable where it says something else than before, and, of a dirty image, its record too.

    Of a dirty one both are always written: a process that was killed while it marked the image may have left them in
    the page cache only, and layers go on without marking it again.

    Files that layers of before own, and none of these does, are removed first. A crash after

    - some of them are removed leaves all named in the manifest in force: clean layers may miss their files;
    - all are removed, durably, leaves the same;
    - the new manifest is durable leaves none of them, and none named.
    """
    await claim.use(ImageState.forget_dirty_bytes)
    if gone := left_behind(prepared, manifest):
        await claim.use(_remove, gone)
    if manifest.dirty or manifest != prepared.manifest:
        await claim.use(ImageState.write_manifest, manifest)
    if manifest.dirty and not image.read_only:
        await image.set_record(record_of(manifest), guard=guard)


def left_behind(prepared: Prepared, manifest: Manifest) -> Sequence[str]:
    """Return the files that the manifest in force names, and *manifest*, of the stack to be opened, does not. Pure.

    None while a layer is dirty: then the stack of the manifest in force is opened. None of another host's.
    """
    before = prepared.manifest
    if before is None or before.dirty or manifest.dirty or before.host != prepared.host:
        return ()
    kept = {path for layer in manifest.layers for path in layer.artifacts}
    return [path for layer in before.layers for path in layer.artifacts if path not in kept]


def _remove(_: ImageState, files: Sequence[str]) -> None:
    for path in files:
        try:
            remove_files([path])
        except OSError as error:
            log.warning("%s belongs to no layer any more, and cannot be removed: %s", path, error)


def remove_files_of(_: ImageState, manifest: Manifest, index: int) -> None:
    """Remove the files of one layer; blocks.

    Raises:
        OSError: see :func:`remove_files`.
    """
    for layer in manifest.layers:
        if layer.index == index:
            remove_files(layer.artifacts)


def plain_options(layer: PlannedLayer) -> dict[str, Any]:
    """Return the options as the manifest keeps them: dates and times as text, all else as it is.

    Raises:
        ConfigError: a number is not finite.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(layer.options, default=str, allow_nan=False))
    except ValueError:
        raise ConfigError([Mistake(None, layer.title, "a number that is not finite", "finite numbers")]) from None
    return plain
