"""Images of a configuration without a mount: listed, and their stacks opened.

Owns the event loop of commands that work unmounted. It must not know verbs.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from fusecache.api.backend import ImageInfo
from fusecache.api.completions import Completions
from fusecache.api.units import format_size
from fusecache.backends import open_backend
from fusecache.cli.failure import unwrapped
from fusecache.cli.output import Progress, progress
from fusecache.config.schema import Config
from fusecache.mount import log_event, open_stack
from fusecache.stack.assemble import Stack

Result = TypeVar("Result")

_POLL_EVERY = 0.5


def list_images(config: Config) -> Sequence[ImageInfo]:
    """Return the images of the configuration's backend, sorted by name. Writes nothing."""

    async def listed() -> Sequence[ImageInfo]:
        async with _completions() as completions, open_backend(config.backend, completions, log_event) as backend:
            return await backend.list()

    return sorted(_run(listed), key=lambda info: info.name)


def writeback(config: Config, image: str, layer: int | None) -> None:
    """Write an image's dirty data back, or one layer's to the level below. Shows progress.

    Raises:
        ImageBusy: another process has the image open.
        FusecacheError: what opening the stack or the write-back raises.
    """

    async def written_back() -> None:
        async with open_stack(config, image) as stack:
            with progress(f"writing back {image}") as line:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_show_dirty, stack, line)
                    await stack.writeback(layer)
                    nursery.cancel_scope.cancel()

    _run(written_back)


def invalidate(config: Config, image: str, layer: int, *, dirty: bool) -> None:
    """Drop a layer's content, with its dirty data if *dirty*.

    Raises:
        ImageBusy: another process has the image open.
        LayerDirty: data would be lost.
    """

    async def invalidated() -> None:
        async with open_stack(config, image) as stack:
            await stack.invalidate(layer, dirty=dirty)

    _run(invalidated)


def _run(work: Callable[[], Awaitable[Result]]) -> Result:
    try:
        return trio.run(work)
    except Exception as error:
        raise unwrapped(error) from None


@asynccontextmanager
async def _completions() -> AsyncIterator[Completions]:
    completions = Completions()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(completions.run)
            yield completions
            nursery.cancel_scope.cancel()
    finally:
        completions.close()


async def _show_dirty(stack: Stack, line: Progress) -> None:
    while True:
        dirty = sum(hop.layer.status().dirty_bytes for hop in stack.layers)
        line.show(f"{format_size(dirty)} left")
        await trio.sleep(_POLL_EVERY)
