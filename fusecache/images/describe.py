"""What is told of an image while its backend does not answer.

Owns how long the backend is waited for, and what is told in its place: an image that is open here has all that a name
leads to. It must not know who asks.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import trio

from fusecache.api.backend import ImageInfo
from fusecache.images.image import Image

_PATIENCE: Final = 0.5
"""Seconds that the backend of an open image is waited for; less than any backend gives itself."""


async def described(image: Image | None, ask: Callable[[], Awaitable[ImageInfo]]) -> ImageInfo:
    """Return what *ask* finds out from the backend about an image.

    Args:
        image: the image, where it is open, under the name it was seen under last. The backend may know better, and is
            asked first; but where it does not answer, this is what it would say, as nobody else has the lock.

    Raises:
        FusecacheError, OSError: what *ask* raises.
    """
    if image is None or image.lost:
        return await ask()
    with trio.move_on_after(_PATIENCE):
        return await ask()
    if image.lost:
        return await ask()
    return replace(image.info, name=image.name, size=image.size, allocated=None, mtime_ns=image.mtime_ns)
