"""A volume that watches its caller.

Owns the record of requests and of what its caller did against the contract. It must not know any layer.
"""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fusecache.api.errors import ContractViolation, FusecacheError
from fusecache.api.volume import DECLINED, PENDING, Volume
from fusecache.testing.interposed import Finish, InterposedVolume
from fusecache.testing.requests import CHANGES, Request, check_request, conflict

T = TypeVar("T")


class WatchedVolume(InterposedVolume):
    """Records requests and refuses those that the caller should not have made.

    Attributes:
        ended: the requests that have ended well, in that order.
        in_flight: those under way.
        violations: a line for every request that broke the caller's side of the contract: outside the range,
            unaligned, or in conflict with one in flight. Such a request raises as well.
    """

    def __init__(self, below: Volume) -> None:
        super().__init__(below)
        self.ended: list[Request] = []
        self.in_flight: list[Request] = []
        self.violations: list[str] = []
        self._changes = 0
        self._flushed = 0

    @property
    def unflushed(self) -> bool:
        """A change has ended that no later flush covers."""
        return self._flushed < self._changes

    async def _through(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        begun_after = self._changes
        with self._watch(request):
            result = await call()
        self._note(request, begun_after)
        return result

    def _attempt(
        self,
        request: Request,
        attempt: Callable[[Finish], Any],
        call: Callable[[], Awaitable[Any]],
        finish: Finish,
    ) -> Any:
        begun_after = self._changes

        def ended(error: BaseException | None, result: Any) -> None:
            self.in_flight.remove(request)
            if error is None:
                self._note(request, begun_after)
            finish(error, result)

        with self._watch(request):
            outcome = attempt(ended)
        if outcome is PENDING:
            self.in_flight.append(request)
        elif outcome is not DECLINED:
            self._note(request, begun_after)
        return outcome

    def _note(self, request: Request, begun_after: int) -> None:
        self.ended.append(request)
        if request.operation in CHANGES:
            self._changes += 1
        elif request.operation == "flush":
            # It promises only what was acknowledged before it was called.
            self._flushed = max(self._flushed, begun_after)

    @contextmanager
    def _watch(self, request: Request) -> Iterator[None]:
        self._check(request)
        self.in_flight.append(request)
        try:
            yield
        finally:
            self.in_flight.remove(request)

    def _check(self, request: Request) -> None:
        try:
            check_request(self.below, request)
            for other in self.in_flight:
                if conflict(request, other):
                    raise ContractViolation(f"found {request} while {other} is in flight")
        except FusecacheError as error:
            self.violations.append(str(error))
            raise
