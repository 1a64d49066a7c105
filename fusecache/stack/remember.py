"""What a stack leaves to be told of it once it is closed: how much is dirty, layer by layer.

Owns when that is written down. It must not know where, nor who asks.

It is a word for people: nothing depends on it, so it need not be durable. It is forgotten before a layer is opened, so
that a process that is killed leaves none rather than an old one.
"""

import logging
from collections.abc import Mapping
from typing import Final

import trio

from fusecache.api.errors import FusecacheError
from fusecache.api.layer import Layer
from fusecache.stack.claim import HostClaim
from fusecache.state.image_state import ImageState

log = logging.getLogger(__name__)

_PATIENCE: Final = 1.0
"""Seconds that a close waits for the state directory."""


async def remember_dirty(claim: HostClaim, layers: Mapping[int, Layer]) -> None:
    """Write down how much each layer holds that is not below, where any does; called before they are closed.

    Takes a second at the most, and does not fail.
    """
    with trio.move_on_after(_PATIENCE, shield=True):
        try:
            dirty = {index: found for index, layer in layers.items() if (found := layer.status().dirty_bytes)}
            if dirty:
                await claim.use(ImageState.write_dirty_bytes, dirty)
        except (FusecacheError, OSError) as error:
            log.info("how much is dirty will not be known: %s", error)
        except Exception:
            log.exception("a layer cannot tell its status")
