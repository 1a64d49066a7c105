"""All images of a mount: from a name to an open image, and how long it stays open.

Owns the one hosting task of each open image, and when it starts and ends. It must not know files, handles or FUSE.

An image is open from the first user until ``release_after`` after the last one; its hosting task holds its stack, and
with it the backend's exclusive lock. A stack that fails takes down its image and nothing else: requests are answered
with errors, and the next opener gets a new stack.

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
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import trio

from fusecache.api.backend import Backend, ImageInfo
from fusecache.api.errors import FusecacheError, ImageBusy, ImageNotFound, NotPermitted, VolumeClosed
from fusecache.api.layer import Emit
from fusecache.config.schema import StackConfig
from fusecache.images.image import Image
from fusecache.stack.assemble import Stack

log = logging.getLogger(__name__)

CONTROL_NAME = ".control"
"""The control directory's name; an image of that name is not shown."""

_FAILED_PATIENCE: Final = 5.0
"""Seconds to wait for a stack that came down to be closed; longer than a backend waits for calls that hang."""


class _Host:
    """The life of one open image, shared by the task that hosts it and those that use it."""

    def __init__(self, info: ImageInfo) -> None:
        self.info = info
        self.users = 0
        self.image: Image | None = None
        self.error: Exception | None = None
        self.ready = trio.Event()
        self.failed = False
        self.closing = False
        self.closed = trio.Event()
        self.changed = trio.Event()
        self.opening = trio.CancelScope()

    def change(self) -> None:
        """Have the hosting task look again."""
        if self.image is not None and self.image.lost and not self.users:
            # Whoever comes now gets the lock anew.
            self.closing = True
        self.changed.set()
        self.changed = trio.Event()


class Registry:
    """Opens images on demand and closes them when they are no longer used.

    Args:
        open_stack: assembles the stack of an image, by name.
        stack_for: what the configuration says of an image's stack.
        nursery: where hosting tasks live.
        release_after: seconds an unused image stays open, and locked.
        on_open: called with each image that was opened, before anybody uses it.
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
        content_changed: Callable[[Image], None] = lambda image: None,
    ) -> None:
        self.backend = backend
        self._open_stack = open_stack
        self._stack_for = stack_for
        self._nursery = nursery
        self.release_after = release_after
        self._emit = emit
        self._on_open = on_open
        self._content_changed = content_changed
        self._hosts: dict[str, _Host] = {}
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
        """Return an image's description without opening it.

        Raises:
            ImageNotFound: there is none.
        """
        if name == CONTROL_NAME:
            raise ImageNotFound(f"image {name!r}: not shown, the name is the control directory's")
        info = await self.backend.lookup(name)
        host = self._hosts.get(info.key)
        if host is not None and host.image is not None:
            host.image.name = name
        return info

    def opened(self, name: str) -> Image | None:
        """Return the image if it is open, without opening it."""
        for host in self._hosts.values():
            if host.image is not None and host.image.name == name and not host.closing:
                return host.image
        return None

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
                host = self._hosts[info.key] = _Host(info)
                self._nursery.start_soon(self._run_host, host)
            elif host.closing:
                await _closed(host)
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
        for host in self._hosts.values():
            if host.image is image:
                self._leave(host)
                return

    def _leave(self, host: _Host) -> None:
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
            NotPermitted: it is a snapshot.
        """
        if CONTROL_NAME in (old, new):
            raise ImageBusy(f"image {CONTROL_NAME!r}: the name is the control directory's")
        info = await self._changeable(old)
        await self.backend.rename(old, new)
        host = self._hosts.get(info.key)
        if host is not None and host.image is not None:
            host.image.name = new

    async def remove(self, name: str) -> None:
        """Remove an image that nobody uses.

        Raises:
            ImageNotFound: there is none.
            ImageBusy: it is in use.
            NotPermitted: it is a snapshot.
        """
        info = await self._changeable(name)
        host = self._hosts.get(info.key)
        if host is not None:
            if host.users:
                raise ImageBusy(f"image {name!r} is open")
            host.closing = True
            host.change()
            await _closed(host)
        await self.backend.remove(name)

    async def _changeable(self, name: str) -> ImageInfo:
        info = await self.lookup(name)
        if info.snapshot:
            raise NotPermitted(f"{name!r} is a snapshot: it is renamed and removed in the backend only")
        return info

    async def close(self) -> None:
        """Close all images, used or not, and flush what was written; later requests fail."""
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

    async def _run_host(self, host: _Host) -> None:
        name = host.info.name
        try:
            with host.opening:
                async with self._open_stack(name) as stack:
                    if not host.opening.cancel_called:
                        host.image = Image(stack, host.info, self._content_changed)
                        await self._serve(host, host.image)
        except Exception as error:
            if host.image is None:
                host.error = _first(error)
                # Whoever opens a file sees no more than the errno.
                self._emit("open-failed", f"image {name!r}: {host.error}")
            else:
                log.exception("image %r: its stack came down", host.image.name)
                self._emit("image-failed", f"image {host.image.name!r}: its stack came down: {_first(error)}")
                host.image.fail(_first(error))
        finally:
            if host.image is not None:
                host.image.close()
            del self._hosts[host.info.key]
            host.ready.set()
            host.closed.set()

    async def _serve(self, host: _Host, image: Image) -> None:
        self._on_open(image)
        image.nursery.start_soon(_watch_lock, host, image)
        host.ready.set()
        try:
            await self._until_unused(host)
            await _flush(image)
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

    async def _until_unused(self, host: _Host) -> None:
        while not host.closing:
            changed = host.changed
            if host.users:
                await changed.wait()
                continue
            with trio.move_on_after(self.release_after):
                await changed.wait()
                continue
            host.closing = not host.users


async def _watch_lock(host: _Host, image: Image) -> None:
    await image.stack.image.until_lost()
    image.lose()
    host.change()


async def _flush(image: Image) -> None:
    try:
        if not image.top.read_only:
            await image.top.flush()
    except (FusecacheError, OSError) as error:
        # Without the lock there is nothing left to be made durable in the backend, and its loss has been told.
        if not image.lost:
            raise
        log.info("image %r: closed without its lock: %s", image.name, error)


async def _closed(host: _Host) -> None:
    # An orderly end takes its time: it flushes.
    with trio.move_on_after(_FAILED_PATIENCE if host.failed else math.inf):
        await host.closed.wait()
        return
    raise ImageBusy(f"image {host.info.name!r}: its last stack came down and is not closed: something in it hangs")


def _first(error: BaseException) -> Exception:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, Exception) else VolumeClosed(repr(error))
