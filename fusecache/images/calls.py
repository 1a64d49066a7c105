"""Calls into an open image's stack by tasks that are not the stack's.

Owns who waits for such a call, and when the wait ends before the call does. It must not know what is called.

Each call runs in a task of the stack, so that it ends with the stack: whoever made it may be a task that lives on, such
as that of a control command. And a call that does not end, because a system call hangs, keeps the stack open, and with
it the backend's lock, but not its caller.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import trio

from fusecache.api.errors import VolumeClosed
from fusecache.images.requests import ImageFailed

T = TypeVar("T")


class _Wait:
    def __init__(self) -> None:
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self.result: Any = None
        self.error: BaseException | None = None

    def end(self, error: BaseException | None) -> None:
        """Let the caller go on; what comes later is dropped."""
        if not self.ended.is_set():
            self.error = error
            self.ended.set()


class Calls:
    """The calls under way.

    Args:
        nursery: the stack's.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._waits: set[_Wait] = set()

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """Await *call* in a task of the stack, and return its result or raise its error.

        A cancellation cancels that task and does not wait for its end.

        Raises:
            ImageFailed: the stack was closed or came down under the call; what of it was done is not known.
        """
        wait = _Wait()
        self._nursery.start_soon(_carry_out, call, wait)
        self._waits.add(wait)
        try:
            await wait.ended.wait()
        finally:
            wait.scope.cancel()
            self._waits.remove(wait)
        if wait.error is not None:
            raise wait.error
        return cast(T, wait.result)

    def give_up(self, error: BaseException) -> None:
        """End all waits with *error*; the calls are cancelled."""
        for wait in self._waits:
            wait.end(error)


async def _carry_out(call: Callable[[], Awaitable[Any]], wait: _Wait) -> None:
    try:
        with wait.scope:
            wait.result = await call()
    except VolumeClosed as error:
        # A volume's EBADF would blame the caller's descriptor, which is as good as ever.
        wait.end(ImageFailed(str(error)))
    except Exception as error:
        wait.end(error)
    except BaseException:
        wait.end(ImageFailed("the image was closed under the call"))
        raise
    else:
        wait.end(None)
