"""What the control directory needs of the images it controls.

Owns nothing: the interface between control and whoever opens images. It must not know how they are opened.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from fusecache.api.backend import ImageInfo
from fusecache.config.schema import StackConfig
from fusecache.stack.assemble import MissingLayer, StackLayer


class OpenImage(Protocol):
    """An image whose stack is open.

    Attributes:
        name: its present name.
        info: its description when it was opened.
        lost: its lock was taken away.
    """

    name: str
    info: ImageInfo
    lost: bool

    @property
    def size(self) -> int: ...
    @property
    def note(self) -> str:
        """What is not as usual; otherwise empty."""

    @property
    def layers(self) -> Sequence[StackLayer]: ...
    @property
    def missing(self) -> Sequence[MissingLayer]: ...

    async def writeback(self, index: int | None) -> None:
        """Write a layer's dirty data to the level below; with None, everything down into the backend."""

    async def snapshot(self, name: str) -> None:
        """Write everything back and have the backend make a snapshot of that name.

        Raises:
            NotSupported, BadCommand, ImageExists: see :meth:`fusecache.api.BackendImage.make_snapshot`.
            FusecacheError, OSError: a write-back failed; there is no snapshot.
        """


class ImageService(Protocol):
    """All images of a mount."""

    async def list(self) -> Sequence[ImageInfo]:
        """Return all images that are shown."""

    async def lookup(self, name: str) -> ImageInfo:
        """Return an image's description without opening it, or raise ImageNotFound."""

    def opened(self, name: str) -> OpenImage | None:
        """Return the image if it is open. Never waits."""

    def all_open(self) -> Sequence[OpenImage]:
        """Return the open images. Never waits."""

    def using(self, name: str) -> AbstractAsyncContextManager[OpenImage]:
        """Keep an image open for the length of a block, opening it if need be."""

    async def drop_layer(self, info: ImageInfo, index: int, *, dirty: bool, torn: bool = False) -> None:
        """Drop a layer's content, open or not, with its plugin or without; LayerDirty where that would lose data and
        *dirty* is false, or leave the level below torn and *torn* is false."""

    def configured(self, name: str) -> StackConfig | None:
        """Return what the configuration says of the image's stack; None is no layers."""
