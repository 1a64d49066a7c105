"""Which images hold dirty data on this host, by their own records.

Owns the question to the backend, image by image. It must not know which images are open.
"""

import logging
from collections.abc import Sequence
from typing import Final

import trio

from fusecache.api.backend import Backend, ImageInfo
from fusecache.api.errors import CorruptState, Fenced, FusecacheError, ImageNotFound

log = logging.getLogger(__name__)

_AT_ONCE: Final = 16


async def held_here(backend: Backend, host: str, infos: Sequence[ImageInfo]) -> Sequence[ImageInfo]:
    """Return those of *infos* whose record names *host* as the holder of dirty data, sorted by name.

    An image that is gone by now, or whose record means nothing, is none of them.

    Raises:
        FusecacheError, OSError: what the backend raises where it does not answer.
    """
    held: list[ImageInfo] = []
    failures: list[Exception] = []
    limiter = trio.CapacityLimiter(_AT_ONCE)

    async def ask(info: ImageInfo) -> None:
        async with limiter:
            try:
                record = await backend.read_record(info.name)
            except ImageNotFound:
                return
            except (CorruptState, Fenced) as error:
                # Nobody can open it either, and the rest must not depend on it.
                log.warning("image %r is passed over: %s", info.name, error)
                return
            except (FusecacheError, OSError) as error:
                failures.append(error)
                nursery.cancel_scope.cancel()
                return
        if record is not None and record.holder == host:
            held.append(info)

    async with trio.open_nursery() as nursery:
        for info in infos:
            nursery.start_soon(ask, info)
    if failures:
        raise failures[0]
    return sorted(held, key=lambda info: info.name)
