"""The write-back rates set through the control directory, for images that are open and for those that are not.

Owns what was set since the mount began; it is not kept any longer. It must not know files or the command grammar.
"""

from fusecache.api.backend import ImageInfo
from fusecache.api.layer import Layer
from fusecache.control.service import OpenImage


class WritebackRates:
    """Rates in bytes per second by image and layer index; 0 is a pause, None no limit."""

    def __init__(self) -> None:
        self._set: dict[tuple[str, int], int | None] = {}

    def set(self, info: ImageInfo, index: int, rate: int | None, layer: Layer | None) -> None:
        """Set the rate of a layer: at once if it is open, otherwise when it is opened next."""
        self._set[info.key, index] = rate
        if layer is not None:
            layer.set_writeback_rate(rate)

    def get(self, info: ImageInfo, index: int, configured: int | None) -> int | None:
        """Return the rate that a layer which is not open will have; *configured* is what the configuration says."""
        return self._set.get((info.key, index), configured)

    def apply(self, image: OpenImage) -> None:
        """Give an image that was just opened the rates that were set for it."""
        for layer in image.layers:
            key = (image.info.key, layer.index)
            if key in self._set:
                layer.layer.set_writeback_rate(self._set[key])
