"""Images of a configuration without a mount: listed, their stacks opened, their layers dropped.

Owns the event loop of commands that work unmounted. It must not know verbs.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import trio

from fusecache.api.backend import Backend, ImageInfo
from fusecache.api.errors import unwrapped
from fusecache.backends import open_backend
from fusecache.cli.output import Progress, progress
from fusecache.config.schema import Config
from fusecache.control.progress import Pace
from fusecache.metrics.text import printable
from fusecache.mount import log_event, open_stack, running_completions
from fusecache.stack.assemble import Stack
from fusecache.stack.drop import drop_layer
from fusecache.stack.held import held_here
from fusecache.state.store import StateStore

Result = TypeVar("Result")

_POLL_EVERY: Final = 0.5


def list_images(config: Config) -> Sequence[ImageInfo]:
    """Return the images of the configuration's backend, sorted by name. Writes nothing."""

    async def listed() -> Sequence[ImageInfo]:
        async with _backend(config) as backend:
            return await backend.list()

    return sorted(_run(listed), key=lambda info: info.name)


def dirty_images(config: Config) -> Sequence[ImageInfo]:
    """Return the images of which this host holds dirty data, in a mount or left by one, sorted by name."""
    host = StateStore(config.mount.state_dir).host()

    async def held() -> Sequence[ImageInfo]:
        async with _backend(config) as backend:
            return await held_here(backend, host, await backend.list())

    return _run(held)


def writeback(config: Config, image: str, layer: int | None) -> None:
    """Write an image's dirty data back, or one layer's to the level below. Shows progress.

    Raises:
        ImageBusy: another process has the image open.
        FusecacheError: what opening the stack or the write-back raises.
    """

    async def written_back() -> None:
        with progress(f"writing back {printable(image)}") as line:
            async with open_stack(config, image) as stack, trio.open_nursery() as nursery:
                nursery.start_soon(_show_progress, stack, layer, line)
                await stack.writeback(layer)
                nursery.cancel_scope.cancel()

    _run(written_back)


def drop(config: Config, image: str, layer: int, *, dirty: bool, torn: bool) -> None:
    """Drop a layer's content, with its dirty data if *dirty*, whether or not the layer could be opened; even if the
    level below is torn if *torn*.

    Raises:
        ImageBusy: another process has the image open.
        LayerDirty: data would be lost.
        BadCommand: the image has no such layer.
    """
    store = StateStore(config.mount.state_dir)

    async def dropped() -> None:
        async with _backend(config) as backend:
            await drop_layer(
                backend=backend,
                name=image,
                configured=config.stack_for(image),
                store=store,
                index=layer,
                emit=log_event,
                dirty=dirty,
                torn=torn,
                take_over=dirty,
                guard=config.mount.guard,
            )

    _run(dropped)


def _run(work: Callable[[], Awaitable[Result]]) -> Result:
    try:
        return trio.run(work)
    except Exception as error:
        raise unwrapped(error) from None


@asynccontextmanager
async def _backend(config: Config) -> AsyncIterator[Backend]:
    async with (
        running_completions() as completions,
        open_backend(config.backend, completions, log_event) as backend,
    ):
        yield backend


async def _show_progress(stack: Stack, index: int | None, line: Progress) -> None:
    layers = [hop.layer for hop in stack.layers if index in (None, hop.index)]
    pace = Pace(trio.current_time(), {("", at): layer.status().writeback_bytes for at, layer in enumerate(layers)})
    while True:
        figures = [layer.status() for layer in layers]
        pace.look(trio.current_time(), {("", at): status.writeback_bytes for at, status in enumerate(figures)})
        line.show(pace.text({("", at): status.dirty_bytes for at, status in enumerate(figures)}))
        await trio.sleep(_POLL_EVERY)
