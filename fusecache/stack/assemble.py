"""One image's stack: opened from the backend up, closed from the top down.

Owns the order in which locks are taken, the manifest is written and layers are opened, and the two operations that
concern several layers. It must not know files, FUSE, control commands or which plugins there are.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from fusecache.api.backend import Backend, BackendImage
from fusecache.api.completions import Completions
from fusecache.api.errors import BadCommand, ContractViolation, LayerDirty, PluginMissing, unwrapped
from fusecache.api.file_sync import FileSync
from fusecache.api.identity import Identity
from fusecache.api.layer import Emit, Layer, LayerContext, LayerState
from fusecache.config.load import validate_options
from fusecache.config.schema import StackConfig
from fusecache.stack.claim import HostClaim, claiming
from fusecache.stack.dirty import DirtyLedger
from fusecache.stack.discover import load
from fusecache.stack.link import Link
from fusecache.stack.plan import MissingLayer, StackPlan, check_writeback
from fusecache.stack.prepare import (
    FIRST_EPOCH,
    Prepared,
    check_clones,
    manifest_of,
    plain_options,
    prepare,
    remove_files_of,
    taken_over,
    write_down,
)
from fusecache.stack.remember import remember_dirty
from fusecache.stack.torn import check_takeover, refusal
from fusecache.state.image_state import ImageState
from fusecache.state.store import StateStore

__all__ = ["FIRST_EPOCH", "MissingLayer", "Stack", "StackLayer", "open_stack"]

log = logging.getLogger(__name__)


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
        drop_missing: removes the files of a missing layer, by its index.
        holds_group: whether dirty data of a layer, by its index, may be of a group: see :mod:`fusecache.stack.torn`.
    """

    top: Link
    base: Link
    image: BackendImage
    layers: Sequence[StackLayer]
    missing: Sequence[MissingLayer]
    identity: Identity
    epoch: int
    nursery: trio.Nursery
    drop_missing: Callable[[int], Awaitable[None]] | None = None
    holds_group: Callable[[int], bool] = lambda index: False

    @property
    def dirty(self) -> bool:
        """Whether a layer holds data that is not durable below."""
        return any(_is_dirty(layer.layer) for layer in self.layers)

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

    async def drain(self) -> None:
        """Write everything back as :meth:`writeback` does, but from the layers whose rate is 0: those are paused."""
        for layer in reversed(self.layers):
            if layer.layer.writeback_rate != 0:
                await layer.layer.writeback()
        await self.base.flush()

    async def invalidate(self, index: int, *, dirty: bool = False, torn: bool = False) -> None:
        """Drop one layer's content; data that other layers hold stays. Other requests are held back meanwhile.

        After dirty data was dropped, the layers above drop their clean content: it may be a copy. Of a layer that is
        left out the files are removed.

        Args:
            index: of the layer.
            dirty: drop its dirty data too.
            torn: even where that leaves a level torn.

        Raises:
            BadCommand: there is no layer of that index.
            LayerDirty: the layer is dirty and *dirty* is false; or *dirty* is true and a layer above it is dirty: that
                data was written on top; or a level would be left torn and *torn* is false. Nothing was dropped.
        """
        if self.drop_missing is not None and any(missing.index == index for missing in self.missing):
            await self.drop_missing(index)
            return
        position = self._position(index)
        target, above = self.layers[position], self.layers[position + 1 :]
        if not dirty:
            await target.layer.invalidate(dirty=False)
            return
        # Also where the target is clean as yet: what they write back meanwhile would be dropped with it.
        in_the_way = [f"{layer.index} ({layer.plugin})" for layer in above if _is_dirty(layer.layer)]
        if in_the_way:
            raise LayerDirty(f"layer {index} lies under dirty layers, discard them first: {', '.join(in_the_way)}")
        # The layer begins nothing new once it is asked, and nobody else runs in between.
        loses_data = _is_dirty(target.layer)
        if not torn and (target.layer.torn or (loses_data and self.holds_group(index))):
            raise refusal(index, index, in_group=target.layer.torn)
        try:
            await target.layer.invalidate(dirty=True)
        finally:
            if loses_data:
                with trio.CancelScope(shield=True):
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
    file_sync: FileSync,
    emit: Emit,
    mountpoint: str | None = None,
    read_only: bool = False,
    take_over: bool = False,
    guard: bool = True,
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
        completions, file_sync, emit: handed to the layers.
        mountpoint: where the image is mounted; None for an offline command.
        read_only: open the image for reading only.
        take_over: the host that holds dirty data of the image must not go on: the epoch is raised, and what it holds
            is lost. Where that leaves a level torn, only :func:`fusecache.stack.drop.drop_layer` can be told to do it.
        guard: see :meth:`fusecache.api.BackendImage.set_record`.

    Entering raises:
        ImageNotFound: there is no such image.
        ImageBusy: another owner holds the image or its state, or another host has dirty data for it.
        LayerDirty: *take_over* leaves a level torn; nothing has changed.
        PluginMissing, PoolMissing, Fenced: see :mod:`fusecache.stack.plan`.
        CorruptState: the manifest is not readable, or another image's.
        ConfigError: a layer's options are wrong.
        NotSupported: a layer keeps dirty data, and the image has no durable identity.
        ContractViolation: a plugin opened something that is no layer.
    """
    dedicated = await _may_keep_dirty_data(configured)
    async with claiming(store, name=name, mountpoint=mountpoint, take_over=take_over) as claim:
        if take_over:
            check_takeover(await backend.read_record(name), claim.host)
        async with (
            backend.open(name, claim, read_only=read_only, dedicated=dedicated) as image,
            _own_nursery() as nursery,
            AsyncExitStack() as opened,
        ):
            if claim.state is None:
                base = _linked(opened, Link(image, "the backend"))
                yield Stack(base, base, image, (), (), image.identity, FIRST_EPOCH, nursery)
                return
            around = _Surroundings(name, completions, file_sync, emit, nursery)
            prepared = await _prepared(claim, image, configured, around, guard)
            yield await _opened(opened, claim, image, prepared, around, guard)


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What every layer of a stack is handed, whatever the image."""

    image: str
    completions: Completions
    file_sync: FileSync
    emit: Emit
    nursery: trio.Nursery


async def _prepared(
    claim: HostClaim, image: BackendImage, configured: StackConfig | None, around: _Surroundings, guard: bool
) -> Prepared:
    """Find out how the claimed image is to be opened, once the backend's lock is ours, and tell people."""
    # Whoever held that lock before us is over and done with.
    await claim.use(ImageState.settle)
    prepared = await claim.use(prepare, claim.host, configured, await image.record(), load)
    check_writeback(prepared.plan, durable_identity=image.durable_identity)
    if guard:
        await check_clones(prepared.plan, image)
    _report(prepared.plan, around.image, around.emit)
    return await taken_over(prepared, image, around.image, guard=guard, emit=around.emit)


async def _opened(
    opened: AsyncExitStack,
    claim: HostClaim,
    image: BackendImage,
    prepared: Prepared,
    around: _Surroundings,
    guard: bool,
) -> Stack:
    """Write down what is about to be opened, and open it."""
    assert claim.state is not None
    ledger = DirtyLedger(claim, image, guard=guard)
    contexts = _contexts(prepared, image, claim.state, ledger, around)
    named = await claim.use(_artifacts, prepared.plan, contexts)
    manifest = manifest_of(prepared, image.identity, named)
    await write_down(prepared, manifest, claim, image, guard=guard)
    ledger.adopt(manifest)
    opened.push_async_callback(ledger.close)
    base, layers = await _open_layers(opened, image, prepared.plan, contexts)
    opened.push_async_callback(remember_dirty, claim, {layer.index: layer.layer for layer in layers})

    async def drop_missing(index: int) -> None:
        await claim.use(remove_files_of, manifest, index)

    top, missing, epoch = layers[-1].link if layers else base, prepared.plan.missing, prepared.epoch
    return Stack(
        top, base, image, layers, missing, image.identity, epoch, around.nursery, drop_missing, ledger.holds_group
    )


def _artifacts(_: ImageState, plan: StackPlan, contexts: Sequence[LayerContext]) -> list[list[Path]]:
    return [list(layer.plugin.artifacts(context)) for layer, context in zip(plan.layers, contexts, strict=True)]


def _contexts(
    prepared: Prepared, image: BackendImage, state: ImageState, ledger: DirtyLedger, around: _Surroundings
) -> list[LayerContext]:
    return [
        LayerContext(
            image=around.image,
            identity=image.identity,
            index=layer.index,
            config=validate_options(layer.plugin.config_model, layer.options, f"{around.image}: {layer.title}"),
            state_dir=state.directory,
            epoch=prepared.epoch,
            nursery=around.nursery,
            completions=around.completions,
            file_sync=around.file_sync,
            emit=around.emit,
            dirty=ledger.mark(layer),
        )
        for layer in prepared.plan.layers
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


async def _open_layers(
    opened: AsyncExitStack, image: BackendImage, plan: StackPlan, contexts: Sequence[LayerContext]
) -> tuple[Link, list[StackLayer]]:
    """Open every layer over a link to the one below; return the lowest link, and the layers bottom up."""
    base = link = _linked(opened, Link(image, "the backend"))
    layers: list[StackLayer] = []
    for planned, context in zip(plan.layers, contexts, strict=True):
        layer = await opened.enter_async_context(planned.plugin.open(context, link))
        if not isinstance(layer, Layer):
            raise ContractViolation(f"{planned.title}: the plugin opened {layer!r}, allowed: a Layer")
        link = _linked(opened, Link(layer, planned.title))
        layers.append(StackLayer(planned.index, planned.plugin.name, layer, link, plain_options(planned)))
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
        failure = unwrapped(group)
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


def _is_dirty(layer: Layer) -> bool:
    status = layer.status()
    return status.dirty_bytes > 0 or status.state in (LayerState.DIRTY, LayerState.WRITING_BACK)
