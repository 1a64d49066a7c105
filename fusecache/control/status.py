"""The status of a mount and of its images, as JSON-compatible objects.

Owns the stable keys of ``status.json``. It must not know how they are shown to people.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import trio

from fusecache.api.backend import ImageInfo
from fusecache.api.layer import LayerState
from fusecache.control.left import LeftDirty
from fusecache.control.listing import Listing
from fusecache.control.rates import WritebackRates
from fusecache.control.runner import Running
from fusecache.control.service import ImageService
from fusecache.control.turns import in_turns
from fusecache.control.view import LayerView, layers_of, worst_state
from fusecache.metrics.events import timestamp

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MountInfo:
    """What does not change while a mount serves.

    Attributes:
        pid: the serving daemon's.
        backend: its description.
    """

    version: str
    pid: int
    mountpoint: str
    backend: str


class StatusSource:
    """Tells the status. A frozen image, state directory or backend delays it by a second at most."""

    def __init__(
        self,
        service: ImageService,
        rates: WritebackRates,
        left: LeftDirty,
        listing: Listing,
        running: Sequence[Running],
        mount: MountInfo,
    ) -> None:
        self._service = service
        self._rates = rates
        self._left = left
        self._listing = listing
        self._running = running
        self._mount = mount

    async def mount(self) -> Json:
        """Return the whole mount's object.

        Its key ``complete`` is false while the backend does not list its images: then images that are not open may be
        missing from ``images``. Each image's figures are of one moment, but not all of the same.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._left.look)
            listed, complete = await self._listing.latest()
        infos = {info.key: info for info in listed}
        for image in self._service.all_open():
            if image.info.key not in infos:
                infos[image.info.key] = replace(image.info, name=image.name)
        ordered = sorted(infos.values(), key=lambda info: info.name)
        return {
            "version": self._mount.version,
            "pid": self._mount.pid,
            "mountpoint": self._mount.mountpoint,
            "backend": self._mount.backend,
            "complete": complete,
            "images": await in_turns(map(self._image, ordered)),
            "commands": [_command(running) for running in self._running],
        }

    async def image(self, info: ImageInfo) -> Json:
        """Return one image's object, the same that is in :meth:`mount`.

        Raises:
            ImageNotFound: there is no image of that name any more.
        """
        if self._service.opened(info.name) is None:
            info = await self._service.lookup(info.name)
            await self._left.look()
        return self._image(info)

    def _image(self, info: ImageInfo) -> Json:
        opened = self._service.opened(info.name)
        layers = layers_of(self._service, self._rates, self._left, info)
        return {
            "name": info.name,
            "size": info.size if opened is None else opened.size,
            "open": opened is not None,
            "state": (LayerState.FAILED if opened is not None and opened.lost else worst_state(layers)).value,
            "note": _note("" if opened is None else opened.note, layers),
            "layers": [_layer(layer) for layer in layers],
        }


def _note(note: str, layers: Sequence[LayerView]) -> str:
    notes = [note, *(f"layer {layer.index}: {layer.status.note}" for layer in layers if layer.status.note)]
    return "; ".join(filter(None, notes))


def _layer(view: LayerView) -> Json:
    status = view.status
    return {
        "index": view.index,
        "plugin": view.plugin,
        "state": status.state.value,
        "dirty_bytes": view.dirty_bytes,
        "used_bytes": status.used_bytes,
        "size_bytes": status.size_bytes,
        "oldest_dirty_seconds": status.oldest_dirty_seconds,
        "hits": status.hits,
        "misses": status.misses,
        "writes": status.writes,
        "writeback_bytes": status.writeback_bytes,
        "errors": view.errors,
        "replicas": [dict(replica) for replica in status.replicas],
    }


def _command(running: Running) -> Json:
    image = running.target.image
    return {
        "command": str(running.command),
        "image": None if image is None else image.name,
        "since": timestamp(running.since),
    }
