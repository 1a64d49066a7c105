"""The list of images, for those who must not wait long for it.

Owns the one listing under way and what the last one found. It must not know what the list is for.
"""

import logging
from collections.abc import Sequence
from typing import Final

import trio

from fusecache.api.backend import ImageInfo
from fusecache.api.errors import FusecacheError
from fusecache.control.service import ImageService

log = logging.getLogger(__name__)

PATIENCE: Final = 1.0
"""Seconds that :meth:`Listing.latest` waits for the backend."""


class Listing:
    """Lists images in a task of its own, so that a backend that hangs, beyond the reach of a cancellation perhaps,
    delays nobody for longer than :data:`PATIENCE`, and holds one task however many ask."""

    def __init__(self, service: ImageService, nursery: trio.Nursery) -> None:
        self._service = service
        self._nursery = nursery
        self._found: Sequence[ImageInfo] = ()
        self._good = False
        self._begun = 0
        self._ended = 0
        self._end = trio.Event()

    async def latest(self) -> tuple[Sequence[ImageInfo], bool]:
        """Return the images, and whether that is the present list: false means the last known one, the backend having
        failed or not answered in time."""
        # A listing that began before this call may miss an image that was created before it.
        wanted = self._begun + 1
        with trio.move_on_after(PATIENCE):
            while self._ended < wanted:
                if self._begun == self._ended:
                    self._begun += 1
                    self._end = trio.Event()
                    self._nursery.start_soon(self._list)
                await self._end.wait()
        return self._found, self._good and self._ended >= wanted

    async def _list(self) -> None:
        try:
            self._found = await self._service.list()
            self._good = True
        except Exception as error:
            if not isinstance(error, FusecacheError | OSError):
                log.exception("the images cannot be listed")
            elif self._good or self._ended == 0:
                # Whoever looks at the status asks again and again.
                log.warning("the images cannot be listed: %s", error)
            self._good = False
        finally:
            self._ended += 1
            self._end.set()
