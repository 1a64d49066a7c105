"""Waiting for what a medium will tell.

Owns how long is waited, and for whom no longer. It must not know what is waited for.
"""

import logging
from collections.abc import Callable
from typing import TypeAlias

import trio

from fusecache.api import Done
from fusecache.api.errors import VolumeClosed

log = logging.getLogger(__name__)

Start: TypeAlias = Callable[[Done], bool]
"""Begins something: True where it is done already; otherwise what it was given is called once, later."""


class Waits:
    """All who wait for one medium. A cancellation waits, as what is under way cannot be taken back; :meth:`give_up`
    ends all waiting, at a close over a medium that hangs.

    Attributes:
        failed: the medium has; whoever still waits may wait for the level below, and is not kept from being cancelled.
    """

    def __init__(self) -> None:
        self.failed = False
        self._scopes: dict[trio.CancelScope, bool] = {}
        self._given_up = False

    def fail(self) -> None:
        """Set :attr:`failed`."""
        self.failed = True
        for scope, firm in self._scopes.items():
            scope.shield = firm

    async def told(self, start: Start, *, firm: bool = False) -> None:
        """Call *start* and return when it is done.

        Args:
            firm: a cancellation waits also after a failure.

        Raises:
            VolumeClosed: :meth:`give_up` was called meanwhile; it may still be done, later.
            BaseException: what the end was told with.
        """
        ended = trio.Event()
        failure: list[BaseException] = []

        def done(error: BaseException | None) -> None:
            if error is not None:
                failure.append(error)
            ended.set()

        if start(done):
            return
        if self._given_up:
            raise VolumeClosed("the medium does not answer, and the layer is being closed")
        scope = trio.CancelScope(shield=firm or not self.failed)
        self._scopes[scope] = firm
        try:
            with scope:
                await ended.wait()
        finally:
            del self._scopes[scope]
        if not ended.is_set():
            raise VolumeClosed("the medium does not answer, and the layer is being closed")
        if failure:
            raise failure[0]

    def give_up(self) -> None:
        """Have all who wait, now or later, receive VolumeClosed."""
        self._given_up = True
        for scope in list(self._scopes):
            scope.cancel()


class Stranded:
    """Those who wait for a sync that a failed log will never do."""

    def __init__(self) -> None:
        self._waiting: list[Done] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, done: Done) -> None:
        """Have ``done`` told by :meth:`tell`."""
        self._waiting.append(done)

    def tell(self, error: BaseException | None) -> None:
        """Tell all: None when everything that was acknowledged is durable below."""
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            try:
                done(error)
            except Exception:
                log.exception("a completion callback failed")
