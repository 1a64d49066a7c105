"""The rbd backend as the core sees it.

Owns what belongs together: which client asks, what is looked up first, and how an open image is put together. It must
not know the layout of headers, locks or requests for data.

**Looking** takes no thread and opens nothing: a name costs two round trips, a list two for each of many images side by
side. Where the cluster turns out to have blocklisted the client, it is asked again through a new one.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from fusecache.api import Backend, BackendImage, Claim, Completions, Emit, FusecacheError, ImageInfo, ImageRecord
from fusecache.api.errors import Fenced, ImageBusy, ImageGone, ImageNotFound, NotSupported
from fusecache.backends.rbd import names
from fusecache.backends.rbd.client import Client, Settings
from fusecache.backends.rbd.clients import Clients
from fusecache.backends.rbd.header import Header, Snapshot
from fusecache.backends.rbd.image import RbdImage
from fusecache.backends.rbd.lookup import (
    fetch_directory,
    fetch_header,
    fetch_header_of,
    fetch_headers,
    fetch_id,
    fetch_name,
)
from fusecache.backends.rbd.opening import open_handle
from fusecache.backends.rbd.ownership import open_owned, open_past_guard
from fusecache.backends.rbd.reads import ObjectReader
from fusecache.backends.rbd.records import RbdRecords, decoded_record
from fusecache.backends.rbd.rights import check_rights
from fusecache.backends.records import check_holder

T = TypeVar("T")


@asynccontextmanager
async def open_backend(config: Settings, completions: Completions, emit: Emit) -> AsyncIterator[Backend]:
    """Open the pool of *config* as a backend, until the context ends.

    All images must be closed by then. *completions* must be delivered (:meth:`Completions.run`) all the while.

    Raises:
        FusecacheError: EIO, there is no such pool, the cluster cannot be reached, or it does not let the user list
            images; the message says what was found.
    """
    clients = Clients(config, completions)
    try:
        async with clients.lent() as client:
            describer = names.Describer(client.fsid, client.pool_id, config.namespace)
            await check_rights(client, config, emit)
        reads = ObjectReader(config, completions)
        try:
            yield RbdBackend(config, clients, reads, describer, emit)
        finally:
            await reads.close()
    finally:
        await clients.close()


class RbdBackend(Backend):
    """See the module; made by :func:`open_backend`."""

    def __init__(
        self, settings: Settings, clients: Clients, reads: ObjectReader, describer: names.Describer, emit: Emit
    ) -> None:
        self.description = ":".join(["rbd", "/".join(filter(None, [settings.pool, settings.namespace]))])
        self._clients = clients
        self._reads = reads
        self._emit = emit
        self._describer = describer

    def __repr__(self) -> str:
        return f"<RbdBackend {self.description}>"

    async def list(self) -> Sequence[ImageInfo]:
        return await self._looked(self._list)

    async def lookup(self, name: str) -> ImageInfo:
        image, snapshot = names.split(name)
        header = await self._looked(fetch_header, image)
        if snapshot is None:
            return self._describer.image(header)
        return self._describer.snapshot(header, names.snapshot_of(header, snapshot))

    async def snapshots(self, name: str) -> Sequence[ImageInfo]:
        return self._describer.snapshots(await self._looked(fetch_header, names.checked_image(name)))

    async def read_record(self, name: str) -> ImageRecord | None:
        header = await self._looked(fetch_header, names.checked_image(name))
        return decoded_record(header, self._describer.identity(header))

    def open(
        self, name: str, claim: Claim, *, read_only: bool = False, dedicated: bool = False
    ) -> AbstractAsyncContextManager[BackendImage]:
        return self._opened(name, claim, read_only, dedicated)

    async def create(self, name: str, size: int) -> ImageInfo:
        """Create an image of format 2 with the features that the cluster's config has for new ones."""
        # A look first, as it notices where the client was blocklisted.
        with suppress(ImageNotFound):
            await self._looked(fetch_id, names.checked_image(name))
        await self._change(names.create, name, size)
        return await self.lookup(name)

    async def rename(self, old: str, new: str) -> None:
        """Rename an image; open ones stay open.

        Raises:
            ImageBusy: also where a host's layers hold dirty data of it.
        """
        names.checked_image(new)
        await self._refuse_dirty(old, "renamed")
        await self._change(names.rename, old, new)

    async def remove(self, name: str) -> None:
        """Remove an image; returns when its space is free. Where a cancellation does not wait for a large one, it goes
        on by itself.

        Raises:
            ImageBusy: also where a host's layers hold dirty data of it.
            OSError: ENOTEMPTY, it has snapshots.
        """
        await self._refuse_dirty(name, "removed")
        async with self._clients.lent() as client:
            await client.call_long(names.remove, client.ioctx, name)

    @asynccontextmanager
    async def _opened(self, name: str, claim: Claim, read_only: bool, dedicated: bool) -> AsyncIterator[BackendImage]:
        image_name, snapshot_name = names.split(name)
        header = await self._looked(fetch_header, image_name)
        snapshot = None if snapshot_name is None else names.snapshot_of(header, snapshot_name)
        if snapshot is not None or header.read_only_reason:
            opened, dedicated = self._open_unlocked(header, snapshot, claim), False
        else:
            record = decoded_record(header, self._describer.identity(header))
            # Dirty data of layers that the config has no more.
            dedicated = dedicated or (record is not None and record.holder is not None)
            opened = self._open_locked(header, claim, read_only)
        async with self._clients.lent(dedicated=dedicated) as client:
            image = await opened(client)
            try:
                yield image
            finally:
                await image.close()

    def _open_locked(self, header: Header, claim: Claim, read_only: bool) -> Callable[[Client], Awaitable[RbdImage]]:
        identity = self._describer.identity(header)

        async def opened(client: Client) -> RbdImage:
            handle = await open_owned(client, header, identity, claim)
            return RbdImage(
                handle,
                identity,
                client=client,
                emit=self._emit,
                describe=partial(self._describe, header.id, None),
                read_only=read_only,
                records=RbdRecords(client, header, identity),
                reads=None if handle.layout is None else self._reads.reads(handle.layout),
            )

        return opened

    def _open_unlocked(
        self, header: Header, snapshot: Snapshot | None, claim: Claim
    ) -> Callable[[Client], Awaitable[RbdImage]]:
        identity = self._describer.identity(header)

        async def opened(client: Client) -> RbdImage:
            async def checked() -> Header:
                found = await fetch_header_of(client, header.id, header.name)
                record = decoded_record(found, identity)
                check_holder(record, claim, found.name)
                # What was never written back is not in a snapshot either; only the guard is in the way.
                if snapshot is None and record is not None and record.holder is not None:
                    raise NotSupported(
                        f"image {found.name!r} has dirty data on host {record.holder_name or record.holder}, and can "
                        "only be opened without it: the feature exclusive-lock was disabled meanwhile; "
                        f"`rbd feature enable {found.name} exclusive-lock` brings it back"
                    )
                return found

            name = None if snapshot is None else snapshot.name
            open_it = partial(open_handle, client, header.id, header.name, snapshot=name, read_only=True)
            return RbdImage(
                await open_past_guard(client, identity, checked, open_it),
                self._describer.identity(header, snapshot),
                client=client,
                emit=self._emit,
                describe=partial(self._describe, header.id, snapshot),
                read_only=True,
                cacheable=snapshot is not None,
                note="" if snapshot is not None else header.read_only_reason,
            )

        return opened

    async def _describe(self, image_id: str, snapshot: Snapshot | None) -> ImageInfo:
        """Describe an open image or snapshot under its present name."""
        name = await self._looked(fetch_name, image_id)
        try:
            header = await self._looked(fetch_header_of, image_id, name)
        except ImageNotFound as error:
            raise ImageGone(f"image {name!r} was removed while it was open") from error
        if snapshot is None:
            return self._describer.image(header)
        for found in header.snapshots.values():
            if found.id == snapshot.id:
                return self._describer.snapshot(header, found)
        raise ImageGone(f"snapshot {snapshot.name!r} of image {name!r} was removed while it was open")

    async def _refuse_dirty(self, name: str, deed: str) -> None:
        header = await self._looked(fetch_header, names.checked_image(name))
        try:
            record = decoded_record(header, self._describer.identity(header))
        except Fenced:
            # A copy that brought its original's record with it is nobody's.
            return
        if record is not None and record.holder is not None:
            raise ImageBusy(
                f"image {name!r} is not {deed}: host {record.holder_name or record.holder} holds dirty data of it; "
                "write it back there with `fusecache flush CONFIG IMAGE`"
            )

    async def _list(self, client: Client) -> Sequence[ImageInfo]:
        directory = await fetch_directory(client)
        shown = {name: image_id for name, image_id in directory.items() if names.is_shown(name)}
        return [self._describer.image(header) for header in await fetch_headers(client, shown)]

    async def _looked(self, look: Callable[..., Awaitable[T]], *args: Any) -> T:
        async with self._clients.lent() as client:
            try:
                return await look(client, *args)
            except FusecacheError:
                if not client.lost:
                    raise
        async with self._clients.lent() as client:
            return await look(client, *args)

    async def _change(self, work: Callable[..., None], *args: Any) -> None:
        async with self._clients.lent() as client:
            await client.call(work, client.ioctx, *args)
