"""A volume whose requests stop at a gate until the test opens it.

Owns the order in which requests go on. It must not know what they do.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import trio

from fusecache.api.volume import DECLINED, PENDING, Volume
from fusecache.testing.interposed import Finish, InterposedVolume
from fusecache.testing.requests import CHANGES, Operation, Request

T = TypeVar("T")


@dataclass(eq=False)
class Held:
    """A request that stands at the gate; :meth:`let_go` lets this one pass."""

    request: Request
    _passed: trio.Event = field(default_factory=trio.Event)

    def let_go(self) -> None:
        """Let this request pass."""
        self._passed.set()

    async def wait(self) -> None:
        """Wait until the request may pass."""
        await self._passed.wait()


class GatedVolume(InterposedVolume):
    """Holds chosen operations, before they have any effect, until :meth:`open`.

    A held asynchronous request may be cancelled; it then leaves the gate without effect.

    Args:
        below: where requests go on.
        operations: those that stop while the gate is closed, which it is at first.
        attempts: what a closed gate answers to an attempt. ``"pending"`` attempts stand at the gate and go on as
            asynchronous requests; ``"declined"`` ones come again as those.

    Attributes:
        held: the requests at the gate, in the order of their arrival.
    """

    def __init__(
        self,
        below: Volume,
        operations: Collection[Operation] = CHANGES,
        *,
        attempts: Literal["pending", "declined"] = "pending",
    ) -> None:
        super().__init__(below)
        self.operations = frozenset(operations)
        self.attempts = attempts
        self.held: list[Held] = []
        self._closed = True
        self._changed = trio.Event()

    def open(self) -> None:
        """Let pass what is held, in any order, and everything later."""
        self._closed = False
        for held in self.held:
            held.let_go()

    def close(self) -> None:
        """Stop the chosen operations from now on."""
        self._closed = True

    async def wait_held(self, count: int) -> None:
        """Wait until at least *count* requests are held."""
        while len(self.held) < count:
            await self._changed.wait()

    async def _through(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        if self._stops(request):
            await self._wait(self._hold(request))
        return await call()

    def _attempt(
        self,
        request: Request,
        attempt: Callable[[Finish], Any],
        call: Callable[[], Awaitable[Any]],
        finish: Finish,
    ) -> Any:
        if not self._stops(request):
            return attempt(finish)
        if self.attempts == "declined":
            return DECLINED
        held = self._hold(request)

        async def go_on() -> Any:
            await self._wait(held)
            return await call()

        self._run_later(go_on, finish)
        return PENDING

    def _stops(self, request: Request) -> bool:
        return self._closed and request.operation in self.operations

    def _hold(self, request: Request) -> Held:
        held = Held(request)
        self.held.append(held)
        self._changed.set()
        self._changed = trio.Event()
        return held

    async def _wait(self, held: Held) -> None:
        try:
            await held.wait()
        finally:
            self.held.remove(held)
