"""A claim for tests of backends.

Owns what a backend under test is given to ask for an image. It must not know any backend.
"""

from collections.abc import Callable, Sequence

import trio

from fusecache.api.backend import Claim
from fusecache.api.identity import Identity


class FreeClaim(Claim):
    """Grants every image, or refuses all, and remembers who asked for what.

    Args:
        host: this host's machine-id.
        take_over: see :class:`fusecache.api.Claim`.
        gone: the clients said to be gone.
        refusal: raised in place of granting.

    Attributes:
        asked: the identity and client of each call, in their order.
    """

    def __init__(
        self,
        host: str = "0" * 32,
        *,
        take_over: bool = False,
        gone: Sequence[str] = (),
        refusal: Exception | None = None,
    ) -> None:
        self.asked: list[tuple[Identity, str]] = []
        self._host = host
        self._take_over = take_over
        self._gone = gone
        self._refusal = refusal

    @property
    def host(self) -> str:
        """See :class:`fusecache.api.Claim`."""
        return self._host

    @property
    def take_over(self) -> bool:
        """See :class:`fusecache.api.Claim`."""
        return self._take_over

    async def __call__(self, identity: Identity, client: str, patience: float = 0.0) -> Sequence[str]:
        self.asked.append((identity, client))
        await trio.lowlevel.checkpoint()
        if self._refusal is not None:
            raise self._refusal
        return self._gone

    def keep(self) -> Callable[[], None]:
        """See :class:`fusecache.api.Claim`; nothing is held here."""
        return lambda: None
