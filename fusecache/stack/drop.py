"""Dropping one layer of an image that is not open, without opening any: with or without its plugin.

Owns what is removed and recorded, and in which order. It must not know plugins.

With *M* the local manifest and *R* the image's record, a crash after each step of dropping a dirty layer leaves:

====  ============================  ===================================================================================
step                                then
====  ============================  ===================================================================================
1     some of its files are         M and R say dirty: an open fails (ENODATA) until the command is repeated
      removed, then all; durable
2     R does not name the layer;    its data is given up, and no file has it any more. M's word is void (see
      durable                       :func:`fusecache.stack.plan.manifest_in_force`). Where M is fenced its word
                                    stands, and an open fails (ESTALE) until the command is repeated
3     M says clean; durable         the same, without exceptions
====  ============================  ===================================================================================

So a file never outlives the word that its data counts, and the command can be repeated after any of them. Nor does a
copy of the file count that is put back: the name of the files goes with the word, and the next word has another
(:mod:`fusecache.stack.dirty`). The epoch is raised, in step 2, where the data was another host's, whose files cannot be
removed here, or was fenced: what is of an older epoch never counts again. That holds for every other dirty layer of
that host: it can only be dropped as well.
Which drops leave a level torn, and ask about it, stands in :mod:`fusecache.stack.torn`.

What layers above keep of the image is not looked at: they are clean, and nothing cached outlives the lock.
"""

from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from fusecache.api.backend import Backend, ImageRecord
from fusecache.api.errors import BadCommand, LayerDirty
from fusecache.api.identity import Identity
from fusecache.api.layer import Emit
from fusecache.config.schema import StackConfig
from fusecache.stack.claim import claiming
from fusecache.stack.dirty import record_of
from fusecache.stack.plan import copy_of
from fusecache.stack.prepare import in_force
from fusecache.stack.torn import check_whole, cleaned
from fusecache.state.files import remove_files
from fusecache.state.image_state import ImageState
from fusecache.state.manifest import Manifest, decode, encode
from fusecache.state.store import StateStore


@dataclass(frozen=True, slots=True)
class Drop:
    """What dropping a layer comes to.

    Attributes:
        files: to be removed.
        record: to be the image's from then on; None is no change.
        manifest: to be the local one; None is no change.
    """

    files: tuple[str, ...] = ()
    record: ImageRecord | None = None
    manifest: Manifest | None = None


async def drop_layer(
    *,
    backend: Backend,
    name: str,
    configured: StackConfig | None,
    store: StateStore,
    index: int,
    emit: Emit,
    dirty: bool = False,
    torn: bool = False,
    take_over: bool = False,
    guard: bool = True,
    mountpoint: str | None = None,
) -> None:
    """Drop one layer of an image that nobody has open. See the module for what a crash or a cancellation leaves.

    Args:
        backend: where the image lives.
        name: the image's.
        configured: its stack in the config; a layer of it that was never opened has nothing to drop.
        index: of the layer. Where another host holds dirty data of the image, one of the stack over there is meant.
        emit: told what was lost.
        dirty: drop it even if it is dirty.
        torn: drop it even if that leaves a level torn.
        take_over: drop it even if another host holds it, which must not go on.
        guard: see :meth:`fusecache.api.BackendImage.set_record`.
        mountpoint: where the image is mounted; None for an offline command.

    Raises:
        BadCommand: there is no layer of that index.
        LayerDirty: the layer is dirty and *dirty* is false; or it is dirty and so is one above it; or a level would be
            left torn and *torn* is false.
        ImageNotFound: there is no such image.
        ImageBusy: it is open, or another host holds dirty data of it and *take_over* is false.
        CorruptState: the manifest or the record does not parse.
        VolumeReadOnly: the lock was lost meanwhile.
        OSError: a file cannot be removed.
    """
    async with (
        claiming(store, name=name, mountpoint=mountpoint, take_over=take_over) as claim,
        AsyncExitStack() as opened,
    ):
        if not (dirty and torn):
            _refuse_elsewhere(await backend.read_record(name), claim.host, index, dirty=dirty)
        image = await opened.enter_async_context(backend.open(name, claim))
        if claim.state is None:
            raise BadCommand(f"found layer {index}, allowed: none, the image {name!r} has no layers")
        await claim.use(ImageState.settle)
        record = await image.record()
        local = await claim.use(in_force, claim.host, record)
        known = [layer.index for layer in configured.layers] if configured is not None else []
        drop = plan_drop(local, record, image.identity, claim.host, index, dirty=dirty, torn=torn, configured=known)
        await claim.use(_remove, drop.files)
        if drop.record is not None:
            await image.set_record(drop.record, guard=guard)
            emit("layer-dropped", f"{name}: dirty layer {index} was dropped, and what it held is lost")
        if drop.manifest is not None:
            await claim.use(ImageState.write_manifest, drop.manifest)


def _refuse_elsewhere(record: ImageRecord | None, host: str, index: int, *, dirty: bool) -> None:
    """Say that the layer is dirty or torn, and where, before the backend says no more than that another host has the
    image, or breaks its lock."""
    if record is None or record.holder in (None, host):
        return
    layers = decode(record.manifest.encode()).layers
    if not any(layer.dirty for layer in layers if layer.index == index):
        return
    if not dirty:
        where = f"host {record.holder_name} ({record.holder})"
        raise LayerDirty(f"layer {index} is dirty on {where}: {_give_up(index)}")
    # Whichever of them is dropped: none of that host's layers goes below any more.
    check_whole(layers, index)


def plan_drop(
    local: Manifest | None,
    record: ImageRecord | None,
    identity: Identity,
    host: str,
    index: int,
    *,
    dirty: bool,
    torn: bool = False,
    configured: Iterable[int] = (),
) -> Drop:
    """Decide what dropping a layer comes to.

    Args:
        local: the local manifest in force.
        record: the image's.
        host: this host's machine-id.
        index, dirty, torn: as of :func:`drop_layer`.
        configured: indexes of layers that there may be without a manifest.

    Raises:
        BadCommand, LayerDirty, CorruptState: see :func:`drop_layer`.
    """
    elsewhere = record is not None and record.holder not in (None, host)
    manifest = copy_of(record, identity) if record is not None and elsewhere else local
    layers = {layer.index: layer for layer in manifest.layers} if manifest is not None else {}
    if index not in layers or manifest is None:
        allowed = sorted({*layers, *configured})
        if index in allowed:
            return Drop()
        raise BadCommand(f"found layer {index}, allowed: {', '.join(map(str, allowed)) or 'none, there are no layers'}")
    target = layers[index]
    files = target.artifacts if manifest.host == host else ()
    if not target.dirty:
        return Drop(files)
    _check_dirty(manifest, index, dirty)
    epoch = manifest.epoch if record is None else record.epoch
    fenced = manifest.epoch < epoch
    # What is fenced never goes below any more: the image has gone on without it. What is elsewhere gets fenced.
    if not torn and not fenced:
        check_whole(manifest.layers if elsewhere else (target,), index)
    after = cleaned(manifest, index)
    if elsewhere or fenced:
        epoch += 1
    if not after.dirty:
        # What is left of a fenced stack stays fenced.
        after = after.model_copy(update={"epoch": epoch})
    return Drop(files, _record_after(record, after, epoch), None if elsewhere else after)


def _check_dirty(manifest: Manifest, index: int, dirty: bool) -> None:
    if not dirty:
        raise LayerDirty(f"layer {index} is dirty: {_give_up(index)}")
    above = [f"{layer.index} ({layer.plugin})" for layer in manifest.layers if layer.index > index and layer.dirty]
    if above:
        raise LayerDirty(f"layer {index} lies under dirty layers, discard them first: {', '.join(above)}")


def _give_up(index: int) -> str:
    return f"`fusecache discard CONFIG IMAGE --layer {index} --dirty` gives its data up"


def _record_after(record: ImageRecord | None, after: Manifest, epoch: int) -> ImageRecord:
    """Return the record; it goes on to name the holder where it did, and that one still has dirty layers."""
    if not after.dirty or (record is not None and record.holder is None):
        return ImageRecord(epoch)
    if record is None:
        return record_of(after)
    return ImageRecord(epoch, record.holder, record.holder_name, encode(after).decode())


def _remove(_: ImageState, files: Iterable[str]) -> None:
    remove_files(files)
