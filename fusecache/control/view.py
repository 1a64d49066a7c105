"""What can be told of an image's layers at this instant, whether the image is open or not.

Owns where each figure comes from: the open stack, or else the manifest of an image that was left dirty, or else the
configuration. Nothing here waits. It must not know how the figures are shown.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fusecache.api.backend import ImageInfo
from fusecache.api.layer import Layer, LayerState, LayerStatus
from fusecache.api.units import parse_rate
from fusecache.config.schema import LayerConfig
from fusecache.control.left import Left, LeftDirty
from fusecache.control.rates import WritebackRates
from fusecache.control.service import ImageService
from fusecache.stack.assemble import MissingLayer, StackLayer
from fusecache.stack.stats import Op
from fusecache.state.manifest import ManifestLayer

log = logging.getLogger(__name__)

_SEVERITY = {state: rank for rank, state in enumerate(LayerState)}


@dataclass(frozen=True, slots=True)
class LayerView:
    """One layer of an image.

    Attributes:
        status: figures of the open layer; of one that is not open, its state, and its dirty bytes where they are known.
        errors: requests that failed at this layer, and errors it counted itself, since it was opened.
        rate: bytes per second that background write-back may take; 0 is a pause, None no limit.
        options: its own options in the configuration.
        layer: the open layer.
        absent: why the image was opened without the layer; empty where it was not.
    """

    index: int
    plugin: str
    status: LayerStatus
    rate: int | None
    options: Mapping[str, object]
    errors: int = 0
    layer: Layer | None = None
    absent: str = ""
    dirty_known: bool = True

    @property
    def dirty_bytes(self) -> int | None:
        """Bytes that are not durable below; None where the layer is dirty and nobody knows how much."""
        return self.status.dirty_bytes if self.dirty_known else None


def status_of(layer: StackLayer) -> LayerStatus:
    """Return the figures of an open layer; where it cannot tell them, a failed layer's: a plugin at fault must not
    hide the other layers, nor stand in the way of commands."""
    try:
        return layer.layer.status()
    except Exception:
        log.exception("layer %d (%s) cannot tell its status", layer.index, layer.plugin)
        return LayerStatus(state=LayerState.FAILED)


def layers_of(service: ImageService, rates: WritebackRates, left: LeftDirty, info: ImageInfo) -> Sequence[LayerView]:
    """Return the layers of an image, index 0 first."""
    image, stack, dirty = service.opened(info.name), service.configured(info.name), left.of(info)
    if image is not None:
        views = [_open_view(layer) for layer in image.layers]
        views += [_closed_view(layer, rates, info, LayerState.MISSING, layer.reason) for layer in image.missing]
    elif dirty is not None:
        # This is the stack that the image will be opened with, whatever is configured.
        views = [
            _left_view(layer, _closed_view(layer, rates, info, dirty.state if layer.dirty else LayerState.CLEAN), dirty)
            for layer in dirty.manifest.layers
        ]
    else:
        views = [_closed_view(layer, rates, info) for layer in stack.layers] if stack is not None else []
    return sorted(views, key=lambda view: view.index)


def indexes_of(service: ImageService, left: LeftDirty, info: ImageInfo) -> Sequence[int]:
    """Return the layer indexes of an image, lowest first."""
    image, stack, dirty = service.opened(info.name), service.configured(info.name), left.of(info)
    if image is not None:
        return sorted([layer.index for layer in image.layers] + [layer.index for layer in image.missing])
    if dirty is not None:
        return [layer.index for layer in dirty.manifest.layers]
    return sorted(layer.index for layer in stack.layers) if stack is not None else []


def _open_view(layer: StackLayer) -> LayerView:
    status = status_of(layer)
    return LayerView(
        layer.index,
        layer.plugin,
        status=status,
        errors=sum(layer.link.stats[op].errors for op in Op) + status.errors,
        rate=layer.layer.writeback_rate,
        options=layer.options,
        layer=layer.layer,
    )


def _closed_view(
    layer: LayerConfig | MissingLayer | ManifestLayer,
    rates: WritebackRates,
    info: ImageInfo,
    state: LayerState = LayerState.CLEAN,
    absent: str = "",
) -> LayerView:
    return LayerView(
        layer.index,
        layer.plugin,
        status=LayerStatus(state=state),
        rate=rates.get(info, layer.index, _configured_rate(layer.options)),
        options=layer.options,
        absent=absent,
    )


def _left_view(layer: ManifestLayer, view: LayerView, left: Left) -> LayerView:
    """Return *view* with what is known of how much was left dirty."""
    if not layer.dirty:
        return view
    if left.dirty_bytes is None:
        return replace(view, dirty_known=False)
    return replace(view, status=replace(view.status, dirty_bytes=left.dirty_bytes.get(layer.index, 0)))


def _configured_rate(options: Mapping[str, object]) -> int | None:
    try:
        return parse_rate(str(options.get("writeback_rate", "max")))
    except (ValueError, OverflowError):
        # Only the layer's own plugin can say whether its options are right, and that it does when it is loaded.
        return None


def worst_state(layers: Sequence[LayerView]) -> LayerState:
    """Return the state that stands for the whole image: the most serious of its layers'."""
    return max((layer.status.state for layer in layers), key=_SEVERITY.__getitem__, default=LayerState.CLEAN)
