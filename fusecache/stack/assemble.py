"""One image's stack: opened from the backend up, closed from the top down.

Owns the order in which locks are taken, the manifest is written and layers are opened, and the two operations that
concern several layers. It must not know files, FUSE, control commands or which plugins there are.
"""

import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

from fusecache.api.backend import Backend, BackendImage, ImageRecord
from fusecache.api.completions import Completions
from fusecache.api.errors import BadCommand, ContractViolation, LayerDirty, PluginMissing
from fusecache.api.identity import Identity
from fusecache.api.layer import Emit, Layer, LayerContext, LayerState
from fusecache.config.load import validate_options
from fusecache.config.mistakes import ConfigError, Mistake
from fusecache.config.schema import StackConfig
from fusecache.stack.claim import HostClaim, claiming
from fusecache.stack.discover import load
from fusecache.stack.link import Link
from fusecache.stack.plan import MissingLayer, PlannedLayer, StackPlan, check_writeback, manifest_in_force, plan_stack
from fusecache.state.image_state import ImageState
from fusecache.state.manifest import Manifest, ManifestLayer
from fusecache.state.store import StateStore

__all__ = ["FIRST_EPOCH", "MissingLayer", "Stack", "StackLayer", "open_stack"]

log = logging.getLogger(__name__)

FIRST_EPOCH: Final = 1
"""The epoch of an image that no other host ever took over."""


@dataclass(frozen=True, slots=True)
class StackLayer:
    """One open layer of a stack.

    Attributes:
        index: the layer index.
        plugin: its plugin's name.
        layer: for status, write-back and the like; requests go through *link*.
        link: the hop into this layer.
        options: as configured; JSON-compatible.
    """

    index: int
    plugin: str
    layer: Layer
    link: Link
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stack:
    """The open layers of one image and the backend volume under them.

    Attributes:
        top: where requests enter.
        base: the hop into the backend; the same as *top* where there are no layers.
        image: the backend's image, for its description; requests go through *base*.
        layers: bottom up.
        missing: configured layers that are left out because their plugin does not load; bottom up.
        identity, epoch: the image's.
        nursery: for tasks that live as long as the open image; a crash of one closes the image.
    """

    top: Link
    base: Link
    image: BackendImage
    layers: Sequence[StackLayer]
    missing: Sequence[MissingLayer]
    identity: Identity
    epoch: int
    nursery: trio.Nursery

    @property
    def alignment(self) -> int:
        """The largest in the stack: requests that keep to it are aligned at every hop."""
        return max(link.alignment for link in (self.base, *(layer.link for layer in self.layers)))

    async def writeback(self, index: int | None = None) -> None:
        """Write dirty data to the level below, at full speed, and make it durable there.

        Args:
            index: of the one layer to write back; None is all of them, top down, and the backend.

        When it returns, what was dirty at the call is durable in the level below, or in the backend. A cancellation
        leaves what is not yet written back dirty.

        Raises:
            BadCommand: there is no layer of that index.
            PluginMissing: that layer is left out.
        """
        if index is not None:
            await self.layers[self._position(index)].layer.writeback()
            return
        for layer in reversed(self.layers):
            await layer.layer.writeback()
        await self.base.flush()

    async def invalidate(self, index: int, *, dirty: bool = False) -> None:
        """Drop one layer's content; data that other layers hold stays. Other requests are held back meanwhile.

        After dirty data was dropped, the layers above drop their clean content: it may be a copy.

        Args:
            index: of the layer.
            dirty: drop its dirty data too.

        Raises:
            BadCommand: there is no layer of that index.
            PluginMissing: that layer is left out.
            LayerDirty: the layer is dirty and *dirty* is false, or a layer above it is dirty: that data was written
                on top. Nothing was dropped.
        """
        position = self._position(index)
        target, above = self.layers[position], self.layers[position + 1 :]
        loses_data = dirty and _is_dirty(target.layer)
        if loses_data:
            in_the_way = [f"{layer.index} ({layer.plugin})" for layer in above if _is_dirty(layer.layer)]
            if in_the_way:
                raise LayerDirty(f"layer {index} lies under dirty layers, discard them first: {', '.join(in_the_way)}")
        await target.layer.invalidate(dirty=dirty)
        if loses_data:
            for layer in above:
                await layer.layer.invalidate(dirty=False)

    def _position(self, index: int) -> int:
        """Return where the layer of that index is in :attr:`layers`."""
        for position, layer in enumerate(self.layers):
            if layer.index == index:
                return position
        for missing in self.missing:
            if missing.index == index:
                raise PluginMissing(f"layer {index} is left out: {missing.reason}")
        indexes = sorted([layer.index for layer in self.layers] + [missing.index for missing in self.missing])
        raise BadCommand(f"found layer {index}, allowed: {', '.join(map(str, indexes)) or 'none, there are no layers'}")


@asynccontextmanager
async def open_stack(
    *,
    backend: Backend,
    name: str,
    configured: StackConfig | None,
    store: StateStore,
    completions: Completions,
    emit: Emit,
    mountpoint: str | None = None,
    read_only: bool = False,
    take_over: bool = False,
) -> AsyncIterator[Stack]:
    """Open an image with its layers; leaving the context closes them, top first, and keeps dirty data where it is.

    In this order: the lock in the state directory, the backend's exclusive lock, the manifest, which is durably
    updated before any layer creates a file, then the layers bottom up. A failure or cancellation closes what is open.
    An image for which the backend takes no lock has neither layers nor state.

    If a task in the stack's nursery crashes, the body is cancelled and the context raises what the task raised, once
    all tasks have ended: one that hangs keeps the locks. A pending attempt does not: it may end later, or never.

    Args:
        backend: where the image lives.
        name: the image's.
        configured: the image's stack in the config; None is no layers.
        completions, emit: handed to the layers.
        mountpoint: where the image is mounted; None for an offline command.
        read_only: open the image for reading only.
        take_over: the host that holds dirty data of the image must not go on; the caller raises the epoch.

    Entering raises:
        ImageNotFound: there is no such image.
        ImageBusy: another owner holds the image or its state, or another host has dirty data for it.
        PluginMissing, PoolMissing, Fenced: see :mod:`fusecache.stack.plan`.
        CorruptState: the manifest is not readable, or another image's.
        ConfigError: a layer's options are wrong.
        NotSupported: a layer keeps dirty data, and the image has no durable identity.
        ContractViolation: a plugin opened something that is no layer.
    """
    dedicated = await _may_keep_dirty_data(configured)
    async with (
        claiming(store, name=name, mountpoint=mountpoint, take_over=take_over) as claim,
        backend.open(name, claim, read_only=read_only, dedicated=dedicated) as image,
        _own_nursery() as nursery,
        AsyncExitStack() as opened,
    ):
        if claim.state is None:
            base = _linked(opened, Link(image, "the backend"))
            yield Stack(base, base, image, (), (), image.identity, FIRST_EPOCH, nursery)
            return
        around = _Surroundings(name, completions, emit, nursery)
        prepared = await _prepared(claim, image, configured, around)
        contexts = _contexts(prepared.plan, image, claim.state, prepared.epoch, around)
        await claim.use(_update_manifest, prepared, contexts)
        base, layers = await _open_layers(opened, image, prepared.plan, contexts)
        top = layers[-1].link if layers else base
        yield Stack(top, base, image, layers, prepared.plan.missing, image.identity, prepared.epoch, nursery)


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What every layer of a stack is handed, whatever the image."""

    image: str
    completions: Completions
    emit: Emit
    nursery: trio.Nursery


async def _prepared(
    claim: HostClaim, image: BackendImage, configured: StackConfig | None, around: _Surroundings
) -> "_Prepared":
    """Find out how the claimed image is to be opened, once the backend's lock is ours, and tell people."""
    # Whoever held that lock before us is over and done with.
    await claim.use(ImageState.settle)
    prepared = await claim.use(_prepare, claim.host, configured, await image.record())
    check_writeback(prepared.plan, durable_identity=image.durable_identity)
    _report(prepared.plan, around.image, around.emit)
    return prepared


def _contexts(
    plan: StackPlan, image: BackendImage, state: ImageState, epoch: int, around: _Surroundings
) -> list[LayerContext]:
    return [
        LayerContext(
            image=around.image,
            identity=image.identity,
            index=layer.index,
            config=validate_options(layer.plugin.config_model, layer.options, f"{around.image}: {_named(layer)}"),
            state_dir=state.directory,
            epoch=epoch,
            nursery=around.nursery,
            completions=around.completions,
            emit=around.emit,
        )
        for layer in plan.layers
    ]


async def _may_keep_dirty_data(configured: StackConfig | None) -> bool:
    """Say whether a configured layer may keep dirty data; its plugin is imported for that, on a thread.

    A manifest with a dirty layer that is not configured any more cannot be asked: it is known only after the backend
    has chosen its client. That is enough, because a client that is shared costs nothing but the lock: when another
    image's lock is broken and this image goes down with it, later changes are refused, dirty data stays in the layer,
    and the next open finds it there. A backend whose own record names a holder may know better, and use a client of
    its own.
    """
    if configured is None:
        return False
    return await trio.to_thread.run_sync(lambda: any(_writes_back(layer.plugin) for layer in configured.layers))


def _writes_back(plugin: str) -> bool:
    try:
        return load(plugin).writes_back
    except PluginMissing:
        # The open rules deal with it.
        return False


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What is known before any layer is opened."""

    manifest: Manifest | None
    host: str
    epoch: int
    plan: StackPlan


def _prepare(state: ImageState, host: str, configured: StackConfig | None, record: ImageRecord | None) -> _Prepared:
    local = state.read_manifest()
    manifest = manifest_in_force(local, record, state.identity, host)
    if manifest is not None and manifest is not local:
        state.write_manifest(manifest)
    authority = manifest if record is None else record
    epoch = FIRST_EPOCH if authority is None else authority.epoch
    plan = plan_stack(
        configured,
        manifest,
        host=host,
        epoch=epoch,
        loadable=load,
        artifact_exists=lambda path: Path(path).exists(),
    )
    return _Prepared(manifest, host, epoch, plan)


def _update_manifest(state: ImageState, prepared: _Prepared, contexts: Sequence[LayerContext]) -> None:
    """Record the stack that is about to be opened, unless the manifest says just that."""
    layers = [
        ManifestLayer(
            index=layer.index,
            plugin=layer.plugin.name,
            options=_plain_options(layer),
            artifacts=tuple(map(str, layer.plugin.artifacts(context))),
            dirty=layer.dirty,
        )
        for layer, context in zip(prepared.plan.layers, contexts, strict=True)
    ]
    # A layer that is left out still owns its files.
    left_out = {(layer.index, layer.plugin) for layer in prepared.plan.missing}
    before = () if prepared.manifest is None else prepared.manifest.layers
    layers += [layer for layer in before if (layer.index, layer.plugin) in left_out]
    manifest = Manifest(
        identity=state.identity.text,
        epoch=prepared.epoch,
        host=prepared.host,
        layers=tuple(sorted(layers, key=lambda layer: layer.index)),
    )
    if manifest != prepared.manifest:
        state.write_manifest(manifest)


async def _open_layers(
    opened: AsyncExitStack, image: BackendImage, plan: StackPlan, contexts: Sequence[LayerContext]
) -> tuple[Link, list[StackLayer]]:
    """Open every layer over a link to the one below; return the lowest link, and the layers bottom up."""
    base = link = _linked(opened, Link(image, "the backend"))
    layers: list[StackLayer] = []
    for planned, context in zip(plan.layers, contexts, strict=True):
        layer = await opened.enter_async_context(planned.plugin.open(context, link))
        if not isinstance(layer, Layer):
            raise ContractViolation(f"{_named(planned)}: the plugin opened {layer!r}, allowed: a Layer")
        link = _linked(opened, Link(layer, _named(planned)))
        layers.append(StackLayer(planned.index, planned.plugin.name, layer, link, _plain_options(planned)))
    return base, layers


def _linked(opened: AsyncExitStack, link: Link) -> Link:
    """Have *link* closed before what lies under it."""
    opened.callback(link.close)
    return link


@asynccontextmanager
async def _own_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks end with the body, and that raises an exception which is alone as it is, not in a group."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        failure: BaseException = group
        while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
            failure = failure.exceptions[0]
    else:
        return
    # Out here, so that the group does not become the context of its own member.
    raise failure


def _report(plan: StackPlan, image: str, emit: Emit) -> None:
    """Tell people where the stack is not the configured one."""
    for missing in plan.missing:
        log.warning("%s: opened without layer %d: %s", image, missing.index, missing.reason)
        emit("layer-missing", f"{image}: opened without layer {missing.index}: {missing.reason}")
    if plan.deferred:
        log.warning("%s: %s", image, plan.deferred)
        emit("config-deferred", f"{image}: {plan.deferred}")


def _named(layer: PlannedLayer) -> str:
    return f"layer {layer.index} ({layer.plugin.name})"


def _plain_options(layer: PlannedLayer) -> dict[str, Any]:
    """Return the options as the manifest keeps them: dates and times as text, all else as it is."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(layer.options, default=str, allow_nan=False))
    except ValueError:
        raise ConfigError([Mistake(None, _named(layer), "a number that is not finite", "finite numbers")]) from None
    return plain


def _is_dirty(layer: Layer) -> bool:
    status = layer.status()
    return status.dirty_bytes > 0 or status.state in (LayerState.DIRTY, LayerState.WRITING_BACK)
