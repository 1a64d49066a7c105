"""A mark of dirty data in memory.

Owns what a layer under test is given in the place of the core's mark. It must not know any layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio


class RecordingMark:
    """A :class:`fusecache.api.DirtyMark` that remembers what is done to it, and is held back or fails on demand.

    Attributes:
        is_set: see there; a test may set it before it opens a layer.
        told: ``"set"`` and ``"clear"``, one for each time that the mark changed, in order.
        failure: raised by the next calls that would change the mark, as long as it is not None.
        on_clear: called when the mark is about to be cleared.
    """

    def __init__(self, *, is_set: bool = False) -> None:
        self.is_set = is_set
        self.told: list[str] = []
        self.failure: Exception | None = None
        self.on_clear: Callable[[], object] = lambda: None
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
            self.is_set = True
            self.told.append("set")

    async def clear(self) -> None:
        """See :meth:`fusecache.api.DirtyMark.clear`."""
        if not self.is_set:
            await trio.lowlevel.checkpoint()
            return
        self.on_clear()
        self.is_set = False
        async with self._turn:
            self._check()
            self.told.append("clear")

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure
