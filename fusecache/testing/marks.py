"""A mark of dirty data in memory.

Owns what a layer under test is given in the place of the core's mark. It must not know any layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio


class RecordingMark:
    """A :class:`fusecache.api.DirtyMark` that remembers what is done to it, and is held back or fails on demand.

    Attributes:
        is_set, is_torn: see there; a test may set them before it opens a layer.
        told: ``"set"``, ``"clear"``, ``"tear"`` and ``"mend"``, one for each time that the mark changed, in order.
        failure: raised by the next calls that would change the mark, as long as it is not None.
        on_clear: called when the mark is about to be cleared.
    """

    def __init__(self, *, is_set: bool = False) -> None:
        self.is_set = is_set
        self.is_torn = False
        self.told: list[str] = []
        self.failure: Exception | None = None
        self.on_clear: Callable[[], object] = lambda: None
        self._settled = True
        self._gate = trio.Event()
        self._gate.set()
        self._turn = trio.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every call that would set the mark waiting until the end of the block."""
        gate = self._gate = trio.Event()
        try:
            yield
        finally:
            gate.set()

    async def set(self) -> None:
        """See :meth:`fusecache.api.DirtyMark.set`."""
        async with self._turn:
            if self.is_set:
                return
            await self._gate.wait()
            self._check()
            self.is_set = self._settled = True
            self.told.append("set")

    async def clear(self) -> None:
        """See :meth:`fusecache.api.DirtyMark.clear`."""
        if self.is_set:
            self.on_clear()
            self.is_set = self.is_torn = self._settled = False
        async with self._turn:
            # Set again meanwhile, or cleared by another call.
            if not self._settled and not self.is_set:
                self._check()
                self._settled = True
                self.told.append("clear")

    async def tear(self) -> None:
        """See :meth:`fusecache.api.DirtyMark.tear`.

        Raises:
            AssertionError: the mark is not set.
        """
        async with self._turn:
            if not self.is_set:
                raise AssertionError("found a mark that is to be torn and not set, allowed: one that is set")
            if not self.is_torn:
                self._check()
                self.is_torn = True
                self.told.append("tear")

    async def mend(self) -> None:
        """See :meth:`fusecache.api.DirtyMark.mend`."""
        if not self.is_torn:
            await trio.lowlevel.checkpoint()
            return
        self.is_torn = False
        async with self._turn:
            self._check()
            self.told.append("mend")

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure
