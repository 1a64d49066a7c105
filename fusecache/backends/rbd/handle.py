"""An open image of librbd's, and who still uses it.

Owns the closing: librbd frees its memory then, so it must not happen under a call that runs on a thread, and it may
take for ever. It must not know requests.
"""

import errno
import logging
import threading
from collections.abc import Callable
from typing import Any, Final

import rbd

from fusecache.api.errors import VolumeClosed
from fusecache.backends.rbd.reads import Layout

log = logging.getLogger(__name__)

_closing: Final[set["OpenHandle"]] = set()
"""Whose closing has not ended. Nothing may free what librbd still uses."""


class OpenHandle:
    """An open ``rbd.Image``, owned from now on. Making one blocks: librbd may have to ask the cluster; where that
    fails, the image is closed.

    Args:
        keep: keeps the connection up; returns the function that lets it go, which may be called on any thread.
        snapshot: the name of the snapshot that is open.

    Attributes:
        image: for asynchronous calls. librbd itself waits for those before it closes.
        name: for messages.
        size: bytes.
        object_size: bytes of one object; a power of two.
        layout: where its data lies; None where only librbd can tell.
    """

    def __init__(self, image: Any, keep: Callable[[], Callable[[], None]], snapshot: str | None = None) -> None:
        try:
            found = image.stat()
            name = image.get_name()
        except BaseException:
            # Whoever collects it as garbage would close it, on any thread, and wait.
            image.close()
            raise
        self.image = image
        self.name = name if snapshot is None else f"{name}@{snapshot}"
        self.size: int = found["size"]
        self.object_size: int = found["obj_size"]
        self.layout = _layout(image, found)
        self._lock = threading.Lock()  # guards the two below; held for a few bytecodes
        self._users = 0
        self._ended: Callable[[], None] | None = None
        self._releases = [keep()]

    def when_closed(self, release: Callable[[], None]) -> None:
        """Call *release* once librbd has closed the image, on a thread of its own. Before :meth:`close` only."""
        self._releases.append(release)

    def use(self, work: Callable[..., Any], *args: Any) -> Any:
        """Return ``work(image, *args)``, which blocks; closing waits for it. Any thread but the loop's.

        Raises:
            VolumeClosed: the image is closed or about to be.
        """
        let_go = self.keep()
        try:
            return work(self.image, *args)
        finally:
            let_go()

    def keep(self) -> Callable[[], None]:
        """Put closing off until the returned function is called, which may happen twice; any thread.

        Raises:
            VolumeClosed: the image is closed or about to be.
        """
        with self._lock:
            if self._ended is not None:
                raise VolumeClosed(f"{self.name} has been closed")
            self._users += 1
        pending = [True]

        def let_go() -> None:
            with self._lock:
                if not pending:
                    return
                pending.clear()
                self._users -= 1
                last = self._ended is not None and not self._users
            if last:
                self._close()

        return let_go

    def close(self, ended: Callable[[], None]) -> None:
        """Close the image as soon as nobody uses it, then call *ended* on a thread of librbd's. Never blocks.

        Where the cluster does not answer that happens when it does, or never. Call once.
        """
        _closing.add(self)
        with self._lock:
            self._ended = ended
            last = not self._users
        if last:
            self._close()

    def _close(self) -> None:
        try:
            self.image.aio_close(self._closed)
        except rbd.Error as error:
            self._gone(error.errno)

    def _closed(self, completion: Any) -> None:
        self._gone(-completion.get_return_value())

    def _gone(self, error: int) -> None:
        if error:
            log.warning("%s: closing it ended with %s", self.name, errno.errorcode.get(error, error))
        for release in self._releases:
            release()
        _closing.discard(self)
        assert self._ended is not None
        self._ended()


def _layout(image: Any, found: dict[str, Any]) -> Layout | None:
    size: int = found["obj_size"]
    plain = (
        image.overlap() == 0
        and (image.stripe_unit(), image.stripe_count()) == (size, 1)
        and not image.features() & (rbd.RBD_FEATURE_DATA_POOL | rbd.RBD_FEATURE_JOURNALING | rbd.RBD_FEATURE_MIGRATING)
    )
    return Layout(found["block_name_prefix"], size) if plain else None
