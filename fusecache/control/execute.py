"""What each command does to images and layers.

Owns the meaning of the commands and their errors. It must not know who gave a command, nor how long anybody waits for
it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import trio

from fusecache.api.backend import ImageInfo
from fusecache.api.errors import (
    BadCommand,
    FusecacheError,
    ImageBusy,
    ImageGone,
    ImageNotFound,
    PluginMissing,
    errno_of,
)
from fusecache.control.commands import Command, Discard, Flush, SetRate, Snapshot
from fusecache.control.left import LeftDirty
from fusecache.control.rates import WritebackRates
from fusecache.control.service import ImageService, OpenImage
from fusecache.control.view import indexes_of, layers_of

Failed: TypeAlias = Callable[[ImageInfo, Exception], None]

_OPENED_AT_ONCE = 8


class Executor:
    """Carries out commands.

    Args:
        rates: what the mount's control files set.
        left: knows the images that are dirty and not open.
    """

    def __init__(self, service: ImageService, rates: WritebackRates, left: LeftDirty) -> None:
        self._service = service
        self._rates = rates
        self._left = left

    async def flush_all(self, failed: Failed) -> None:
        """Write everything that is dirty back into the backend: of the open images, all at once, and of those that
        an earlier mount left dirty, which are opened for it.

        Args:
            failed: called for each image whose write-back fails, while the others go on.

        Raises:
            FusecacheError: with the errno of the first image that failed, naming all that did; or because the
                backend did not say which images are dirty, the open ones being written back all the same.
        """
        failures: list[tuple[str, Exception]] = []
        limiter = trio.CapacityLimiter(_OPENED_AT_ONCE)

        async def attempt(info: ImageInfo, write_back: Callable[[], Awaitable[None]]) -> None:
            try:
                await write_back()
            except Exception as error:
                failures.append((f"image {info.name!r}", error))
                failed(info, error)

        async def open_and_write_back(info: ImageInfo) -> None:
            try:
                async with limiter, self._using(info) as image:
                    await image.writeback(None)
            except ImageBusy:
                # What another mount of this host has open is for that one to write back.
                if not await self._left.in_other_hands(info):
                    raise

        async with trio.open_nursery() as nursery:
            opened = {image.info.key: image for image in self._service.all_open()}
            for image in opened.values():
                nursery.start_soon(attempt, image.info, lambda image=image: self._write_back(image))
            try:
                held = await self._left.held(self._service.list)
            except (FusecacheError, OSError) as error:
                held = ()
                failures.append(("which images are dirty and not open is not known", error))
            for info in held:
                if info.key not in opened:
                    nursery.start_soon(attempt, info, lambda info=info: open_and_write_back(info))
        if failures:
            first = failures[0][1]
            combined = FusecacheError("; ".join(f"{what}: {error}" for what, error in failures))
            combined.errno = errno_of(first)
            raise combined from first

    async def _write_back(self, image: OpenImage) -> None:
        try:
            async with self._service.using(image.name) as held:
                if held.info.key == image.info.key:
                    await held.writeback(None)
                    return
        except ImageNotFound:
            pass
        # Removed or replaced behind us: no name leads to it any more, and its own stack knows what that means.
        if image in self._service.all_open():
            await image.writeback(None)

    async def execute(self, info: ImageInfo, command: Command) -> None:
        """Carry out a command on one image, opening the image if need be.

        Raises:
            BadCommand: it names a layer that the image does not have.
            ImageGone: the image's name is another one's by now.
            ImageBusy: dirty data would be dropped under somebody who has the file open for writing.
            LayerDirty: a discard would lose dirty data, or leave the level below torn.
            PluginMissing: the image was opened without the layer.
            NotSupported: a snapshot, of a backend that has none.
            ImageExists: the image has a snapshot of that name.
            FusecacheError: what opening the image, the layer or the backend raises.
        """
        await self._check_layer(info, command)
        match command:
            case Flush(layer):
                async with self._using(info) as image:
                    await image.writeback(layer)
            case Discard(layer, dirty, torn):
                # An image that is not open is not opened for it: what keeps it closed may be just this layer.
                await self._service.drop_layer(info, layer, dirty=dirty, torn=torn)
            case Snapshot(name):
                async with self._using(info) as image:
                    await image.snapshot(name)
            case SetRate(layer, rate):
                self._set_rate(info, layer, rate)

    async def _check_layer(self, info: ImageInfo, command: Command) -> None:
        if isinstance(command, Snapshot) or command.layer is None:
            return
        if self._service.opened(info.name) is None:
            if isinstance(command, Discard):
                # It may be a layer of another host's stack, which only the image's record names.
                return
            # The stack that an image is opened with is not always the configured one.
            await self._left.look()
        known = indexes_of(self._service, self._left, info)
        if command.layer not in known:
            allowed = ", ".join(map(str, known)) or "none, there are no layers"
            raise BadCommand(f"image {info.name!r}: found layer {command.layer}, allowed: {allowed}")

    @asynccontextmanager
    async def _using(self, info: ImageInfo) -> AsyncIterator[OpenImage]:
        async with self._service.using(info.name) as image:
            # The name may be another image's by now, while the control file that was opened is still this one's.
            if image.info.key != info.key:
                raise ImageGone(f"image {info.name!r} was replaced by another of that name")
            yield image

    def _set_rate(self, info: ImageInfo, layer: int, rate: int | None) -> None:
        views = layers_of(self._service, self._rates, self._left, info)
        view = {view.index: view for view in views}[layer]
        if view.absent:
            raise PluginMissing(f"image {info.name!r}: layer {layer} ({view.plugin}) is not open: {view.absent}")
        self._rates.set(info, layer, rate, view.layer)
