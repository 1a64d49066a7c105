"""The life of one open image, as its registry and its hosting task see it.

Owns what the two share, how lives are found, and how the end of one is waited for. It must not know when an image is
opened or closed.
"""

import logging
import math
from typing import Final

import trio

from fusecache.api.backend import ImageInfo
from fusecache.api.errors import FusecacheError, ImageBusy, VolumeClosed
from fusecache.images.image import Image

log = logging.getLogger(__name__)

_FAILED_PATIENCE: Final = 5.0
"""Seconds to wait for a stack that came down to be closed; longer than a backend waits for calls that hang."""


class Host:
    """The life of one open image, shared by the task that hosts it and those that use it."""

    def __init__(self, info: ImageInfo) -> None:
        self.info = info
        self.users = 0
        self.image: Image | None = None
        self.error: Exception | None = None
        self.ready = trio.Event()
        self.failed = False
        self.closing = False
        self.closed = trio.Event()
        self.changed = trio.Event()
        self.opening = trio.CancelScope()

    def change(self) -> None:
        """Have the hosting task look again."""
        if self.image is not None and self.image.lost and not self.users:
            # Whoever comes now gets the lock anew.
            self.closing = True
        self.changed.set()
        self.changed = trio.Event()


class Hosts(dict[str, Host]):
    """All hosts by the backend's keys of their images; those of open images are found by name and by image as well.

    A name is the image's that was seen under it last: behind us an image may have taken the name of another.
    """

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[str, Host] = {}

    def of(self, image: Image) -> Host | None:
        """Return the host of an open image; None where it has ended."""
        host = self.get(image.info.key)
        return host if host is not None and host.image is image else None

    def named(self, name: str) -> Host | None:
        """Return the host of the open image of that name."""
        return self._names.get(name)

    def rename(self, image: Image, name: str) -> None:
        """Say what an open image is called."""
        host = self[image.info.key]
        self._forget(image.name, host)
        image.name = name
        self._names[name] = host

    def remove(self, host: Host) -> None:
        """Remove a host that has ended."""
        del self[host.info.key]
        if host.image is not None:
            self._forget(host.image.name, host)

    def _forget(self, name: str, host: Host) -> None:
        if self._names.get(name) is host:
            del self._names[name]


def unless_needed(host: Host) -> trio.Event | None:
    """What to wait for while the image is neither used nor to be closed at once; None where it is."""
    return None if host.users or host.closing else host.changed


async def watch_lock(host: Host, image: Image) -> None:
    """Tell the image once its lock is lost; a task of the image's nursery."""
    await image.stack.image.until_lost()
    image.lose()
    host.change()


async def flush(image: Image) -> None:
    """Make durable what was acknowledged, before the image closes."""
    try:
        if not image.top.read_only:
            await image.top.flush()
    except (FusecacheError, OSError) as error:
        # Without the lock there is nothing left to be made durable in the backend, and its loss has been told.
        if not image.lost:
            raise
        log.info("image %r: closed without its lock: %s", image.name, error)


async def closed(host: Host) -> None:
    """Wait until the image is closed.

    Raises:
        ImageBusy: its stack came down, and something hangs in it.
    """
    # An orderly end takes its time: it flushes.
    with trio.move_on_after(_FAILED_PATIENCE if host.failed else math.inf):
        await host.closed.wait()
        return
    raise ImageBusy(f"image {host.info.name!r}: its last stack came down and is not closed: something in it hangs")


def first(error: BaseException) -> Exception:
    """Return the first exception of a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else VolumeClosed(repr(error))
