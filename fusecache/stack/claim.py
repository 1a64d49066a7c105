"""The right of this host and process to one image, as a backend asks for it.

Owns when the image's state on this host is locked and released, and that nothing of this holds up the event loop. It
must not know what a backend does with the right.
"""

import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from fusecache.api.errors import ContractViolation, FusecacheError, VolumeClosed
from fusecache.api.identity import Identity
from fusecache.stack.leaving import Leaving
from fusecache.state.image_state import ImageState
from fusecache.state.store import StateStore

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_PATIENCE: Final = 3.0
"""How long giving the right up waits for a state directory that hangs, in seconds."""

# Of their own, so that a state directory that hangs takes no thread from anything else.
_threads: Final = trio.CapacityLimiter(8)

_leaving: Final = Leaving()
"""Claims of this process that were given up and still hold their images, by state directory and identity."""


class HostClaim:
    """A :class:`fusecache.api.Claim` over the state directory; made by :func:`claiming`.

    Attributes:
        host: this host's machine-id.
        take_over: see :class:`fusecache.api.Claim`.
        state: the image's state, locked; None as long as nobody has claimed it.
    """

    def __init__(self, store: StateStore, host: str, *, name: str, mountpoint: str | None, take_over: bool) -> None:
        self.host = host
        self.take_over = take_over
        self.state: ImageState | None = None
        self._store = store
        self._name = name
        self._mountpoint = mountpoint
        self._steps = threading.Lock()  # orders what may run on two threads after a cancellation
        self._over = False
        self._patience = 0.0
        self._keeping = threading.Lock()  # guards the two below; held for a few bytecodes
        self._kept = 0
        self._given_up = False

    async def __call__(self, identity: Identity, client: str, patience: float = 0.0) -> Sequence[str]:
        """See :class:`fusecache.api.Claim`. A cancelled call does not wait; what it took is released in the end."""
        if self.state is not None:
            raise ContractViolation(f"image {self._name!r} was claimed twice by one open")
        self._patience = patience
        await self._until_freed(identity)
        state = await _abandonable(lambda: self._take(identity, client))
        return state.former

    async def use(self, work: Callable[..., Result], *args: Any) -> Result:
        """Run ``work(state, *args)`` on a thread. A cancelled call does not wait, but the lock outlives the work."""
        return await _abandonable(partial(self._use, work, *args))

    def keep(self) -> Callable[[], None]:
        """See :class:`fusecache.api.Claim`."""
        with self._keeping:
            self._kept += 1
        pending = [True]

        def release() -> None:
            with self._keeping:
                if not pending:
                    return
                pending.clear()
                self._kept -= 1
                if self._kept:
                    return
                given_up = self._given_up
                if not given_up and self.state is not None:
                    _leaving.freed(self._key(self.state.identity))
            if given_up:
                # The caller's thread may be one that must not wait for a state directory.
                threading.Thread(target=self._release, name="claim-release", daemon=True).start()

        return release

    async def until_closed(self) -> None:
        """Wait, after the backend's context has ended, until nothing is kept any more; the claim stays.

        As long as an open would wait. A failure or a cancellation changes nothing.

        Raises:
            FusecacheError: EIO, the backend takes longer.
        """
        with self._keeping:
            if self.state is None or not self._kept:
                return
            identity = self.state.identity
            _leaving.add(self._key(identity))
        await self._until_freed(identity)

    async def _until_freed(self, identity: Identity) -> None:
        with trio.move_on_after(self._patience) as waiting:
            await _leaving.until_freed(self._key(identity))
        if waiting.cancelled_caught:
            raise FusecacheError(
                f"image {self._name!r} was open in this process before, and after {self._patience:g} s it is still "
                "being closed: the backend, or the state directory, does not answer"
            )

    async def release(self) -> None:
        """Give the right up, after the backend has closed the image; shielded.

        Where the backend has still to close it, that happens then, and the image stays locked until it does.
        A state directory that hangs is waited for three seconds; then a thread of its own goes on with it, and the
        image stays locked until that ends. Whoever claims the image meanwhile in this process waits for either.
        """
        with self._keeping:
            self._given_up = True
            kept = self._kept
            if self.state is not None:
                _leaving.add(self._key(self.state.identity))
        if kept:
            log.error("image %r stays locked on this host until the backend has closed it", self._name)
            return
        with trio.move_on_after(_PATIENCE, shield=True) as patience:
            # Never behind others that hang: what is given up here is then free when the state directory is back.
            await trio.to_thread.run_sync(self._release, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
        if patience.cancelled_caught:
            log.error("image %r stays locked: the state directory does not answer", self._name)

    def _take(self, identity: Identity, client: str) -> ImageState:
        with self._steps:
            if self._over:
                raise VolumeClosed(f"image {self._name!r} is not being opened any more")
            self.state = self._store.lock_image(identity, name=self._name, mountpoint=self._mountpoint, client=client)
            return self.state

    def _use(self, work: Callable[..., Result], *args: Any) -> Result:
        with self._steps:
            if self.state is None or self._over:
                raise VolumeClosed(f"image {self._name!r} is not claimed")
            return work(self.state, *args)

    def _release(self) -> None:
        with self._steps:
            self._over = True
            if self.state is not None:
                try:
                    self.state.release()
                finally:
                    _leaving.freed(self._key(self.state.identity))

    def _key(self, identity: Identity) -> tuple[Path, Identity]:
        return self._store.directory, identity


@asynccontextmanager
async def claiming(
    store: StateStore, *, name: str, mountpoint: str | None, take_over: bool
) -> AsyncIterator[HostClaim]:
    """Make a claim for one open of the image *name*; leaving the context releases what was claimed.

    Args:
        mountpoint: where the image is mounted; None for an offline command.
        take_over: see :class:`fusecache.api.Claim`.

    Raises:
        CorruptState: the state directory names no host.
    """
    host = await _abandonable(store.host)
    claim = HostClaim(store, host, name=name, mountpoint=mountpoint, take_over=take_over)
    try:
        yield claim
    finally:
        await claim.release()


async def _abandonable(work: Callable[[], Result]) -> Result:
    return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=_threads)
