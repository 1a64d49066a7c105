"""The hops of all open images, for the metrics.

Owns the walk through an open image's stack. It must not know metrics' names or formats.
"""

from collections.abc import Iterable, Iterator

from fusecache.control.view import status_of
from fusecache.images.image import Image
from fusecache.metrics.names import BACKEND_LAYER
from fusecache.metrics.registry import Hop


def hops_of(images: Iterable[Image], backend: str) -> Iterator[Hop]:
    """Yield every hop of *images*, each image's from the top down; *backend* is the backend's type."""
    for image in images:
        for layer in reversed(image.layers):
            yield Hop(image.name, str(layer.index), layer.plugin, layer.link.stats, status_of(layer))
        yield Hop(image.name, BACKEND_LAYER, backend, image.stack.base.stats)
