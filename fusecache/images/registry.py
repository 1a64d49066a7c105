"""All images of a mount: from a name to an open image, and how long it stays open.

Owns the one hosting task of each open image, and when it starts and ends. It must not know files, handles or FUSE.

An image is open from the first user until ``release_after`` after the last one, when it is written back, and as long as
it is dirty. Its hosting task holds its stack, and with it the backend's exclusive lock. A stack that fails takes down
its image and nothing else: requests are answered with errors, and the next opener gets a new stack.

**Requests that hang in a stack that came down** are answered, and yet something may still be using the memory of a
write. A new stack beside them is safe, as none of them can reach what the new one uses:

- A task that hangs keeps its stack's nursery from ending: the host is not closed, and after a few seconds an open fails
  with ImageBusy.
- A pending attempt that hangs in the backend keeps the file open and locked (see
  :mod:`fusecache.backends.directory_image`): an open fails with ImageBusy.
- A pending attempt that hangs in a layer finds every link below it closed. What the layer itself still does to its pool
  file it has to end before it closes.
- The data plane keeps a write's slot until the attempt ends, if ever: what a hanging system call writes late are the
  bytes it was given, never another request's.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import trio

from fusecache.api.backend import Backend, ImageInfo
from fusecache.api.errors import (
    Fenced,
    FusecacheError,
    ImageBusy,
    ImageGone,
    ImageNotFound,
    NotPermitted,
    VolumeClosed,
)
from fusecache.api.layer import Emit
from fusecache.config.schema import StackConfig
from fusecache.images.describe import described
from fusecache.images.drain import drained
from fusecache.images.host import Host, Hosts, closed, first, flush, unless_needed, watch_lock
from fusecache.images.image import Image
from fusecache.stack.assemble import Stack

log = logging.getLogger(__name__)

CONTROL_NAME = ".control"
"""The control directory's name; an image of that name is not shown."""


class Registry:
    """Opens images on demand and closes them when they are no longer used.

    Args:
        open_stack: assembles the stack of an image, by name.
        stack_for: what the configuration says of an image's stack.
        nursery: where hosting tasks live.
        release_after: seconds an unused image stays open, and locked, before it is written back and closed.
        drop_layer: drops a layer of an image that is not open, by image name, layer index, whether dirty, whether torn.
        remove_image: removes an image that is not open, with all files of its layers, by its name.
        on_open: called with each image that was opened, before anybody uses it.
        on_open_failed: called with each image that could not be opened, and why.
        content_changed: called when an image's content changed otherwise than by requests.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        open_stack: Callable[[str], AbstractAsyncContextManager[Stack]],
        stack_for: Callable[[str], StackConfig | None],
        nursery: trio.Nursery,
        release_after: float,
        emit: Emit,
        on_open: Callable[[Image], None] = lambda image: None,
        on_open_failed: Callable[[ImageInfo, Exception], None] = lambda info, error: None,
        content_changed: Callable[[Image], None] = lambda image: None,
        drop_layer: Callable[[str, int, bool, bool], Awaitable[None]] | None = None,
        remove_image: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self.backend = backend
        self._drop_layer = drop_layer
        self._remove_image = remove_image or backend.remove
        self._open_stack = open_stack
        self._stack_for = stack_for
        self._nursery = nursery
        self.release_after = release_after
        self._emit = emit
        self._on_open = on_open
        self._on_open_failed = on_open_failed
        self._content_changed = content_changed
        self._hosts = Hosts()
        self._stopping = False
        self._control_reported = False

    async def list(self) -> Sequence[ImageInfo]:
        """Return all images that are shown."""
        shown = []
        for info in await self.backend.list():
            if info.name == CONTROL_NAME:
                self._report_control()
            else:
                shown.append(info)
        return shown

    async def snapshots(self) -> Sequence[ImageInfo]:
        """Return the snapshots of the images that are open."""
        found: list[ImageInfo] = []

        async def ask(name: str) -> None:
            try:
                found.extend(await self.backend.snapshots(name))
            except (FusecacheError, OSError) as error:
                # No reason to hide the images.
                log.warning("the snapshots of image %r are not listed: %s", name, error)

        async with trio.open_nursery() as nursery:
            for host in self._hosts.values():
                if host.image is not None and not host.closing and not host.info.snapshot:
                    nursery.start_soon(ask, host.image.name)
        return found

    def _report_control(self) -> None:
        if not self._control_reported:
            self._control_reported = True
            self._emit(
                "image-hidden", f"the image named {CONTROL_NAME} is not shown: the name is the control directory's"
            )

    async def lookup(self, name: str) -> ImageInfo:
        """Return an image's description without opening it, or raise ImageNotFound; of one that is open also while
        the backend does not answer."""
        return await self._looked_up(name, self.opened(name))

    async def _looked_up(self, name: str, known: Image | None = None) -> ImageInfo:
        if name == CONTROL_NAME:
            raise ImageNotFound(f"image {name!r}: not shown, the name is the control directory's")
        info = await described(known, partial(self.backend.lookup, name))
        host = self._hosts.get(info.key)
        if host is not None and host.image is not None:
            # Not by the name that was asked for: it may have got another one since, where it is described by itself.
            self._hosts.rename(host.image, info.name)
        return info

    def opened(self, name: str) -> Image | None:
        """Return the image if it is open, without opening it."""
        host = self._hosts.named(name)
        return host.image if host is not None and not host.closing else None

    def opened_as(self, key: str) -> Image | None:
        """Return the image of that backend key if it is open, whatever its name is now."""
        host = self._hosts.get(key)
        return host.image if host is not None and not host.closing else None

    def all_open(self) -> Sequence[Image]:
        """Return the open images."""
        return [host.image for host in self._hosts.values() if host.image is not None]

    def configured(self, name: str) -> StackConfig | None:
        """Return what the configuration says of the image's stack."""
        return self._stack_for(name)

    async def acquire(self, name: str) -> Image:
        """Become a user of an image, opening it if need be; to be followed by one :meth:`release`.

        A cancellation leaves nothing behind: the image closes as if it had been released.

        Raises:
            ImageNotFound, ImageBusy, PluginMissing, PoolMissing, Fenced: see the rules for opening a stack.
            ImageBusy: also where the image's last stack came down and something hangs in it.
            VolumeClosed: the mount is ending.
        """
        while True:
            info = await self.lookup(name)
            if self._stopping:
                raise VolumeClosed(f"image {name!r}: the mount is ending")
            host = self._hosts.get(info.key)
            if host is None:
                host = self._hosts[info.key] = Host(info)
                self._nursery.start_soon(self._run_host, host)
            elif host.closing:
                await closed(host)
                continue
            host.users += 1
            try:
                await host.ready.wait()
            except BaseException:
                self._leave(host)
                raise
            if host.image is not None:
                return host.image
            raise host.error or VolumeClosed(f"image {name!r}: the mount is ending")

    def release(self, image: Image) -> None:
        """Stop being a user of *image*. Never waits."""
        if (host := self._hosts.of(image)) is not None:
            self._leave(host)

    def _leave(self, host: Host) -> None:
        host.users -= 1
        host.change()

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[Image]:
        """Use an image for the length of a block."""
        image = await self.acquire(name)
        try:
            yield image
        finally:
            self.release(image)

    async def drop_layer(self, info: ImageInfo, index: int, *, dirty: bool, torn: bool = False) -> None:
        """Drop a layer's content, whether the image is open or not; whoever wants to open it meanwhile waits.

        Raises:
            ImageGone: the name is another image's by now.
            ImageBusy: dirty data is to be dropped, and a file is open for writing; or as for an open.
            LayerDirty, BadCommand: see :meth:`Image.invalidate` and :func:`fusecache.stack.drop.drop_layer`.
        """
        while True:
            if (await self.lookup(info.name)).key != info.key:
                raise ImageGone(f"image {info.name!r} was replaced by another of that name")
            host = self._hosts.get(info.key)
            if host is None or self._drop_layer is None:
                break
            if not host.closing and host.image is not None:
                break
            if host.closing:
                await closed(host)
            else:
                await host.ready.wait()
        if host is None and self._drop_layer is not None:
            await self._while_closed(info, partial(self._drop_layer, info.name, index, dirty, torn))
            return
        async with self.using(info.name) as image:
            await image.invalidate(index, dirty=dirty, torn=torn)

    async def _while_closed(self, info: ImageInfo, work: Callable[[], Awaitable[None]]) -> None:
        """Do something with an image that is not open; whoever wants to open it meanwhile waits."""
        if self._stopping:
            raise VolumeClosed(f"image {info.name!r}: the mount is ending")
        host = self._hosts[info.key] = Host(info)
        host.closing = True
        try:
            with host.opening:
                await work()
                return
            raise VolumeClosed(f"image {info.name!r}: the mount is ending")
        finally:
            del self._hosts[info.key]
            host.ready.set()
            host.closed.set()

    async def create(self, name: str) -> Image:
        """Create an empty image and become its user.

        Raises:
            ImageExists: the name is taken.
        """
        if name == CONTROL_NAME:
            raise ImageBusy(f"image {name!r}: the name is the control directory's")
        await self.backend.create(name, 0)
        return await self.acquire(name)

    async def rename(self, old: str, new: str) -> None:
        """Rename an image, open or not.

        Raises:
            ImageNotFound, ImageExists
            ImageBusy: it is dirty.
            NotPermitted: it is a snapshot.
        """
        if CONTROL_NAME in (old, new):
            raise ImageBusy(f"image {CONTROL_NAME!r}: the name is the control directory's")
        info = await self._changeable(old)
        await self._require_clean(info)
        await self.backend.rename(old, new)
        host = self._hosts.get(info.key)
        if host is not None and host.image is not None:
            self._hosts.rename(host.image, new)

    async def remove(self, name: str) -> None:
        """Remove an image that nobody uses, with all files of its layers; whoever wants to open it meanwhile waits.

        Raises:
            ImageNotFound: there is none.
            ImageBusy: it is in use, or dirty; or as for an open.
            NotPermitted: it is a snapshot.
            VolumeClosed: the mount is ending.
        """
        info = await self._changeable(name)
        await self._require_clean(info)
        if (host := self._hosts.get(info.key)) is not None:
            if host.users:
                raise ImageBusy(f"image {name!r} is open")
            host.closing = True
            host.change()
            await closed(host)
            if info.key in self._hosts:
                raise ImageBusy(f"image {name!r} is open")
        await self._while_closed(info, partial(self._remove_image, name))

    async def _changeable(self, name: str) -> ImageInfo:
        info = await self._looked_up(name)
        if info.snapshot:
            raise NotPermitted(f"{name!r} is a snapshot: it is renamed and removed in the backend only")
        return info

    async def _require_clean(self, info: ImageInfo) -> None:
        image = self.opened_as(info.key)
        if image is None:
            try:
                record = await self.backend.read_record(info.name)
            except Fenced:
                # A copy of a dirty image: the record is its original's.
                record = None
        if image.dirty if image is not None else record is not None and record.holder is not None:
            raise ImageBusy(
                f"image {info.name!r} has dirty data: write it back first, by `fusecache flush CONFIG IMAGE`"
            )

    async def close(self) -> None:
        """Close all images, used or not, and flush what was written; later requests fail.

        Dirty data stays where it is.
        """
        self._stopping = True
        hosts = tuple(self._hosts.values())
        for host in hosts:
            host.closing = True
            host.change()
            if host.image is None:
                # It may be waiting for a backend that is away.
                host.opening.cancel()
        for host in hosts:
            await host.closed.wait()

    async def _run_host(self, host: Host) -> None:
        name = host.info.name
        try:
            with host.opening:
                async with self._open_stack(name) as stack:
                    if not host.opening.cancel_called:
                        host.image = Image(stack, host.info, self._content_changed)
                        self._hosts.rename(host.image, name)
                        await self._serve(host, host.image)
        except Exception as error:
            if host.image is None:
                host.error = first(error)
                # Whoever opens a file sees no more than the errno.
                self._emit("open-failed", f"image {name!r}: {host.error}")
                self._on_open_failed(host.info, host.error)
            else:
                log.exception("image %r: its stack came down", host.image.name)
                self._emit("image-failed", f"image {host.image.name!r}: its stack came down: {first(error)}")
                host.image.fail(first(error))
        finally:
            if host.image is not None:
                host.image.close()
            self._hosts.remove(host)
            host.ready.set()
            host.closed.set()

    async def _serve(self, host: Host, image: Image) -> None:
        self._on_open(image)
        image.nursery.start_soon(watch_lock, host, image)
        host.ready.set()
        try:
            await self._until_unused(host, image)
            await flush(image)
        except BaseException as error:
            # At once: what came down may take long to close, and may never end what it was doing.
            log.error("image %r: its stack comes down; every request under way fails", image.name)
            host.failed = True
            image.fail(error if isinstance(error, Exception) else VolumeClosed("its stack is coming down"))
            raise
        finally:
            # Closing takes time; who comes meanwhile, also after a crash, is not let in any more.
            host.closing = True
            image.close()
            if image.openers:
                # What the kernel keeps of it must not outlive the lock.
                self._content_changed(image)

    async def _until_unused(self, host: Host, image: Image) -> None:
        while not host.closing:
            changed = host.changed
            if host.users:
                await changed.wait()
                continue
            with trio.move_on_after(self.release_after):
                await changed.wait()
                continue
            if await drained(image.stack, image.name, lambda: unless_needed(host), self._emit):
                host.closing = not host.users
