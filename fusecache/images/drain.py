"""Writing an image back before it is given up.

Owns how long the attempts go on, what ends them, and what people are told. It must not know when an image is given up.
"""

import logging
from collections.abc import Callable
from typing import Final

import trio

from fusecache.api.layer import Emit
from fusecache.stack.assemble import Stack

log = logging.getLogger(__name__)

_FIRST_DELAY: Final = 1.0
_LONGEST_DELAY: Final = 60.0
"""Seconds between attempts: twice as many after each that failed."""

_PAUSED_DELAY: Final = 1.0
"""Seconds until a stack of which layers are paused is looked at again."""


async def drained(stack: Stack, name: str, unwanted: Callable[[], trio.Event | None], emit: Emit) -> bool:
    """Write everything back and return True; return False as soon as that is unwanted.

    Returns True at once where all is clean, or nothing may be written.

    A write-back that fails is tried again, for ever; an event tells of it, and again where the reason is another one.
    Layers that are paused keep what they have, and all waits for them. A cancellation, or an end because it is
    unwanted, leaves what is not yet written back dirty.

    Args:
        name: the image's.
        unwanted: returns None where it is unwanted, else an event after which to ask again.
    """
    delay, told = _FIRST_DELAY, ""
    while stack.dirty and not stack.top.read_only:
        asked_again = unwanted()
        if asked_again is None:
            return False
        failure = await _attempt(stack, unwanted)
        if failure is None:
            delay, wait = _FIRST_DELAY, _PAUSED_DELAY
        else:
            wait, delay = delay, min(2 * delay, _LONGEST_DELAY)
            if told != (told := str(failure)):
                emit("writeback-failed", f"image {name!r} stays open: its dirty data cannot be written back: {failure}")
        if stack.dirty and unwanted() is asked_again:
            with trio.move_on_after(wait):
                await asked_again.wait()
    return True


async def _attempt(stack: Stack, unwanted: Callable[[], trio.Event | None]) -> Exception | None:
    """Write back once, or until that is unwanted; return what it failed with."""
    failure: Exception | None = None

    async def watch() -> None:
        while (event := unwanted()) is not None:
            await event.wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        try:
            await stack.drain()
        except Exception as error:
            log.warning("a write-back failed", exc_info=error)
            failure = error
        nursery.cancel_scope.cancel()
    return failure
