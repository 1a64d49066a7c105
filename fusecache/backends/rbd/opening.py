"""How librbd's images are opened and closed without waiting for ever, and without leaving any open.

Owns the time between the request to open an image and the handle that owns it. It must not know locks or records.
"""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import rbd
import trio

from fusecache.api.errors import VolumeClosed
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.errors import error_of
from fusecache.backends.rbd.handle import OpenHandle

log = logging.getLogger(__name__)

_PATIENCE: Final = 3.0
"""How long the end of a failed open waits for the cluster, in seconds."""

_unfinished: Final[set["_Opening"]] = set()
"""What librbd has still to open or close. Nothing may free what it uses."""


async def open_handle(
    client: Client, image_id: str, name: str, *, snapshot: str | None = None, read_only: bool = False
) -> OpenHandle:
    """Open the image of that id, of the name *name*, or a snapshot of it; takes no lock.

    Bounded by :attr:`Client.timeout`. What comes later, or after a cancellation, is closed as soon as it comes.

    Raises:
        ImageNotFound: there is none.
        OSError: ENOSYS, the image's guard, or the config, names a plugin that librbd does not find.
        FusecacheError: EIO, the cluster did not answer in time.
    """
    opening = _Opening(client.keep)

    def submit(finish: Callable[..., None]) -> None:
        def arrived(completion: Any, image: Any) -> None:
            result = completion.get_return_value()
            opening.arrived(image if result >= 0 else None)
            finish(result)

        # By id: the name may lead to another image by now.
        rbd.RBD().aio_open_image(arrived, client.ioctx, image_id=image_id, snapshot=snapshot, read_only=read_only)
        opening.submitted = True

    try:
        (result,) = await client.operate(submit)
        if result < 0:
            raise error_of(-result, f"image {name!r} cannot be opened")
        handle: OpenHandle = await client.acquire(
            opening.handed_over, client.keep, snapshot, undo=lambda handle: handle.close(lambda: None)
        )
    except BaseException:
        opening.give_up()
        raise
    return handle


async def close_handle(client: Client, handle: OpenHandle) -> None:
    """Close what could not be used after all; shielded.

    Where that takes the cluster more than three seconds it is left behind, and whatever lock it has stays until
    librbd is through or the process ends.
    """
    closed = trio.Event()
    client.completions.expect()
    handle.close(partial(client.completions.post, closed.set))
    with trio.move_on_after(_PATIENCE, shield=True) as patience:
        await closed.wait()
    if patience.cancelled_caught:
        log.error("%s is left behind: the cluster does not answer", handle.name)


class _Opening:
    """An image that librbd is opening: who has to close it is settled here, between three threads."""

    def __init__(self, keep: Callable[[], Callable[[], None]]) -> None:
        self._release = keep()
        self._lock = threading.Lock()  # guards the three below
        self._image: Any = None
        self._wanted = True
        self._handed_over = False
        self.submitted = False
        _unfinished.add(self)

    def arrived(self, image: Any) -> None:
        """Take the open image from librbd, on its thread; None where it could not be opened."""
        with self._lock:
            self._image = image
            late = not self._wanted
        if image is None:
            self._over()
        elif late:
            self._close()

    def handed_over(self, keep: Callable[[], Callable[[], None]], snapshot: str | None) -> OpenHandle:
        """Return the handle that owns the image from now on; on a thread that may block."""
        with self._lock:
            if not self._wanted:
                raise VolumeClosed("the image is not being opened any more")
            self._handed_over = True
        try:
            return OpenHandle(self._image, keep, snapshot)
        finally:
            self._over()

    def give_up(self) -> None:
        """Have the image closed, now or when it comes, unless it has been handed over."""
        with self._lock:
            self._wanted = False
            close = self._image is not None and not self._handed_over
        if not self.submitted:
            self._over()
        elif close:
            self._close()

    def _close(self) -> None:
        try:
            self._image.aio_close(lambda completion: self._over())
        except rbd.Error:
            log.exception("an image that nobody waited for could not be closed")
            self._over()

    def _over(self) -> None:
        self._release()
        _unfinished.discard(self)
