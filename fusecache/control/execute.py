"""What each command does to images and layers.

Owns the meaning of the commands and their errors. It must not know who gave a command, nor how long anybody waits for
it.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from fusecache.api.backend import ImageInfo
from fusecache.api.errors import (
    BadCommand,
    FusecacheError,
    ImageGone,
    ImageNotFound,
    NotSupported,
    PluginMissing,
    errno_of,
)
from fusecache.control.commands import Command, Discard, Flush, SetRate, Snapshot
from fusecache.control.rates import WritebackRates
from fusecache.control.service import ImageService, OpenImage
from fusecache.control.view import indexes_of, layers_of


async def flush_all(service: ImageService, failed: Callable[[ImageInfo, Exception], None]) -> None:
    """Write everything of all open images back into the backend, all at once.

    An image that this mount had open closes only when it is written back, so none but the open ones are asked.

    Args:
        failed: called for each image whose write-back fails, while the others go on.

    Raises:
        FusecacheError: with the errno of the first image that failed, naming all that did.
    """
    failures: list[tuple[str, Exception]] = []

    async def flush_one(image: OpenImage) -> None:
        try:
            await _write_back(service, image)
        except Exception as error:
            failures.append((image.name, error))
            failed(image.info, error)

    async with trio.open_nursery() as nursery:
        for image in service.all_open():
            nursery.start_soon(flush_one, image)
    if failures:
        first = failures[0][1]
        combined = FusecacheError("; ".join(f"image {name!r}: {error}" for name, error in failures))
        combined.errno = errno_of(first)
        raise combined from first


async def _write_back(service: ImageService, image: OpenImage) -> None:
    try:
        async with service.using(image.name) as held:
            if held.info.key == image.info.key:
                await held.writeback(None)
                return
    except ImageNotFound:
        pass
    # Removed or replaced behind us: no name leads to it any more, and its own stack knows what that means.
    if image in service.all_open():
        await image.writeback(None)


async def execute(service: ImageService, rates: WritebackRates, info: ImageInfo, command: Command) -> None:
    """Carry out a command on one image, opening the image if need be.

    Raises:
        ImageGone: the image's name is another one's by now.
        LayerDirty: a discard would lose dirty data.
        PluginMissing: the image was opened without the layer.
        NotSupported: a snapshot, of a backend that has none.
        FusecacheError: what opening the image, the layer or the backend raises.
    """
    match command:
        case Flush(layer):
            async with _using(service, info) as image:
                await image.writeback(layer)
        case Discard(layer, dirty):
            # No layer of today groups its write-back, so there is nothing that `torn` would have to allow.
            async with _using(service, info) as image:
                await image.invalidate(layer, dirty=dirty)
        case Snapshot():
            raise NotSupported(f"image {info.name!r}: its backend takes no snapshots")
        case SetRate(layer, rate):
            check_layer(service, info, command)
            _set_rate(service, rates, info, layer, rate)


@asynccontextmanager
async def _using(service: ImageService, info: ImageInfo) -> AsyncIterator[OpenImage]:
    # The name may be another image's by now, while the control file that was opened is still this one's.
    async with service.using(info.name) as image:
        if image.info.key != info.key:
            raise ImageGone(f"image {info.name!r} was replaced by another of that name")
        yield image


def _set_rate(service: ImageService, rates: WritebackRates, info: ImageInfo, layer: int, rate: int | None) -> None:
    view = {view.index: view for view in layers_of(service, rates, info)}[layer]
    if view.absent:
        raise PluginMissing(f"image {info.name!r}: layer {layer} ({view.plugin}) is not open: {view.absent}")
    rates.set(info, layer, rate, view.layer)


def check_layer(service: ImageService, info: ImageInfo, command: Command) -> None:
    """Raise BadCommand if *command* names a layer that the image does not have. Never waits."""
    if isinstance(command, Snapshot) or command.layer is None:
        return
    known = indexes_of(service, info)
    if command.layer not in known:
        allowed = ", ".join(map(str, known)) or "none, there are no layers"
        raise BadCommand(f"image {info.name!r}: found layer {command.layer}, allowed: {allowed}")
