"""The hops of all open images, for the metrics.

Owns the walk through an open image's stack. It must not know metrics' names or formats.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from fusecache.control.view import status_of
from fusecache.images.image import Image
from fusecache.metrics.names import BACKEND_LAYER
from fusecache.metrics.registry import Hop


class OpenImages(Protocol):
    """The open images of a mount; see :class:`fusecache.images.registry.Registry`."""

    def all_open(self) -> Sequence[Image]: ...
    def opened_as(self, key: str) -> Image | None: ...


def hops_of(images: OpenImages, backend: str) -> Iterator[Sequence[Hop]]:
    """Yield the hops of each open image, from the top down; *backend* is the backend's type.

    Those of an image are read at its step. One that is closed before then is left out.
    """
    for image in tuple(images.all_open()):
        if images.opened_as(image.info.key) is image:
            yield [
                *(
                    Hop(image.name, str(layer.index), layer.plugin, layer.link.stats, status_of(layer))
                    for layer in reversed(image.layers)
                ),
                Hop(image.name, BACKEND_LAYER, backend, image.stack.base.stats),
            ]
