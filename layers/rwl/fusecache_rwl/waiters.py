"""Those who wait for write-back to get on.

Owns how they are counted, woken and sent away. It must not know what is written back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio


class Waiters:
    """Who waits, now.

    Args:
        hurry: called by everybody who begins to wait.

    Attributes:
        count: how many there are.
    """

    def __init__(self, hurry: Callable[[], None]) -> None:
        self.count = 0
        self._hurry = hurry
        self._advanced = trio.Event()
        self._over: Exception | None = None

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Count the caller as long as the block lasts."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    async def wait(self) -> None:
        """Wait until :meth:`tell` is called.

        Raises:
            Exception: what :meth:`end` was called with.
        """
        self.check()
        self._hurry()
        await self._advanced.wait()

    async def advance(self) -> None:
        """Wait until :meth:`tell` is called, and hurry nobody.

        Raises:
            Exception: what :meth:`end` was called with.
        """
        self.check()
        await self._advanced.wait()

    def tell(self) -> None:
        """Have all who wait look for themselves."""
        self._advanced.set()
        self._advanced = trio.Event()

    def end(self, reason: Exception) -> None:
        """Have whoever waits, now or later, receive *reason*."""
        self._over = reason
        self.tell()

    def check(self) -> None:
        """Raise what :meth:`end` was called with, if it was."""
        if self._over is not None:
            raise self._over
