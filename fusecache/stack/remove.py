"""Removing an image, and first the files of its layers on this host: nothing would find them again.

Owns the order of the two, and which files those are: all that the manifest in force names, whatever the config has by
now. It must not know plugins, nor the config. What a dirty layer means is that of :mod:`fusecache.stack.drop`.

A crash after each step leaves:

====  ==============================================  =================================================================
step                                                  then
====  ==============================================  =================================================================
1     the image is open under its locks, and clean    the image and its files
2     some of the files are removed, then all;        the image, whole, and a manifest that names clean files which are
      durable                                         gone: an open makes those that it needs anew
3     the backend has closed the image                the same
4     the backend has removed the image               neither image nor files
====  ==============================================  =================================================================

In the middle of 4 it leaves what :meth:`fusecache.api.Backend.remove` leaves. So no file is ever there without its
image, and the removal can be repeated after any of them. This host's own lock is held all the while: no other process
of the host makes such files again.
"""

from collections.abc import Iterable

from fusecache.api.backend import Backend, ImageRecord
from fusecache.api.errors import Fenced
from fusecache.api.identity import Identity
from fusecache.stack.claim import HostClaim, claiming
from fusecache.stack.drop import plan_drop
from fusecache.stack.prepare import in_force
from fusecache.state.files import remove_files
from fusecache.state.image_state import ImageState
from fusecache.state.manifest import Manifest
from fusecache.state.store import StateStore


async def remove_image(*, backend: Backend, name: str, store: StateStore, mountpoint: str | None = None) -> None:
    """Remove an image that nobody has open. See the module for what a crash or a cancellation leaves.

    Where the backend is still closing the image, which this process had open, that is waited for as an open does.

    Args:
        mountpoint: where the image is mounted; None for an offline command.

    Raises:
        ImageNotFound: there is no such image.
        ImageBusy: somebody has it open, or another host holds dirty data of it.
        LayerDirty: one of its layers is dirty, configured or not. Nothing was removed.
        CorruptState: the manifest or the record does not parse.
        FusecacheError: EIO, this process had it open before, and it is still being closed.
        OSError: a file cannot be removed; or as :meth:`fusecache.api.Backend.remove`.
    """
    async with claiming(store, name=name, mountpoint=mountpoint, take_over=False) as claim:
        await _remove_files(backend, name, claim)
        await claim.until_closed()
        await backend.remove(name)


async def _remove_files(backend: Backend, name: str, claim: HostClaim) -> None:
    try:
        async with backend.open(name, claim) as image:
            if claim.state is None:
                # It takes no lock, and so has no layers; but it may have had some.
                await claim(image.identity, "")
                record = await backend.read_record(name)
            else:
                await claim.use(ImageState.settle)
                record = await image.record()
            local = await claim.use(in_force, claim.host, record)
            await claim.use(_remove, files_of(local, record, image.identity, claim.host))
    except Fenced:
        # A copy of a dirty image, that nobody ever opened.
        return


def files_of(local: Manifest | None, record: ImageRecord | None, identity: Identity, host: str) -> list[str]:
    """Return the files of all layers in the manifest in force. Pure.

    Raises:
        LayerDirty: one of them is dirty.
    """
    layers = local.layers if local is not None else ()
    drops = [plan_drop(local, record, identity, host, layer.index, dirty=False) for layer in layers]
    return [path for drop in drops for path in drop.files]


def _remove(_: ImageState, files: Iterable[str]) -> None:
    remove_files(files)
