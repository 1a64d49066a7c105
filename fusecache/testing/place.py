"""What checks of backends do with one.

Owns the small errands that the checks are made of. It must not know which promises there are.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from fusecache.api.backend import Backend, Claim
from fusecache.testing.claims import FreeClaim
from fusecache.testing.harness import Broken, content, expect, pattern, put

Copy: TypeAlias = Callable[[Backend, str, str], None]
Fingerprint: TypeAlias = Callable[[Backend], object]

SIZE: Final = 65536 + 517


@dataclass(frozen=True)
class Place:
    """A backend under test, and what can be done to it behind its back, where the caller of the check knows how."""

    backend: Backend
    copy: Copy | None = None
    fingerprint: Fingerprint | None = None


async def expect_raises(
    kinds: type[Exception] | tuple[type[Exception], ...], call: Awaitable[object], what: str
) -> None:
    """See that *call* raises one of *kinds*, with a message."""
    expected = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    try:
        found = await call
    except kinds as error:
        expect(bool(str(error)), f"{what} raised {error!r}, without a message")
    except Exception as error:
        raise Broken(f"{what} raised {error!r}, expected {expected}") from error
    else:
        raise Broken(f"{what} returned {found!r}, expected {expected}")


async def open_and_close(backend: Backend, name: str, claim: Claim | None = None, *, read_only: bool = False) -> str:
    """Open an image and close it; return its identity."""
    async with backend.open(name, claim or FreeClaim(), read_only=read_only) as image:
        return image.identity.text


async def store(backend: Backend, name: str, seed: int) -> bytes:
    """Create an image with content, or fill the one there is."""
    data = pattern(SIZE, seed)
    if name not in await names(backend):
        await backend.create(name, SIZE)
    async with backend.open(name, FreeClaim()) as image:
        await put(image, 0, data)
    return data


async def load(backend: Backend, name: str, claim: Claim | None = None) -> bytes:
    """Open an image and return its bytes."""
    async with backend.open(name, claim or FreeClaim()) as image:
        return await content(image)


async def names(backend: Backend) -> set[str]:
    """Return the names that the backend lists."""
    return {info.name for info in await backend.list()}
