"""A mark of dirty data in memory.

Owns what a layer under test is given in the place of the core's mark. It must not know any layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio


class RecordingMark:
    """A :class:`fusecache.api.DirtyMark` that remembers what is done to it, and is held back or fails on demand.

    Attributes:
        is_set, is_torn, is_torn_beyond, files_id: see there; a test may set them before it opens a layer.
        told: ``"set"``, ``"clear"``, ``"tear"``, ``"tear beyond"`` and ``"mend"``, one for each time that the mark
            changed, in order.
        failure: raised by the next calls that would change the mark, as long as it is not None.
        on_clear: called when the mark is about to be cleared.
    """

    def __init__(self, *, is_set: bool = False) -> None:
        self.is_set = is_set
        self.is_torn = self.is_torn_beyond = False
        self.files_id = ""
        self.told: list[str] = []
        self.failure: Exception | None = None
        self.on_clear: Callable[[], object] = lambda: None
        self._settled = True
        self._gate = trio.Event()
        self._gate.set()
        self._turn = trio.Lock()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep every call that would set the mark, or have it say more, waiting until the end of the block."""
        gate = self._gate = trio.Event()
        try:
            yield
        finally:
            gate.set()

    async def set(self, files_id: str = "") -> None:
        """See :meth:`fusecache.api.DirtyMark.set`."""
        async with self._turn:
            if self.is_set and self.files_id == files_id:
                return
            await self._gate.wait()
            self._check()
            self.files_id = files_id
            self.is_set = self._settled = True
            self.told.append("set")

    async def clear(self) -> None:
        """See :meth:`fusecache.api.DirtyMark.clear`."""
        if self.is_set:
            self.on_clear()
            self.is_set = self.is_torn = self.is_torn_beyond = self._settled = False
        async with self._turn:
            # Set again meanwhile, or cleared by another call.
            if not self._settled and not self.is_set:
                self._check()
                self._settled = True
                self.told.append("clear")

    async def tear(self, *, beyond: bool = False) -> None:
        """See :meth:`fusecache.api.DirtyMark.tear`."""
        async with self._turn:
            if self.is_torn and (self.is_torn_beyond or not beyond):
                return
            await self._gate.wait()
            self._check()
            self.is_set = self.is_torn = self._settled = True
            self.is_torn_beyond = beyond
            self.told.append("tear beyond" if beyond else "tear")

    async def mend(self) -> None:
        """See :meth:`fusecache.api.DirtyMark.mend`."""
        if not self.is_torn:
            await trio.lowlevel.checkpoint()
            return
        self.is_torn = self.is_torn_beyond = False
        async with self._turn:
            self._check()
            self.told.append("mend")

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure
