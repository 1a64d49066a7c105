"""The control directory: which files there are, and what stands behind each.

Owns the names and the places of control files. A new control file is added here and nowhere else. It must not know
how files behave, what commands do, or who serves the directory.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import trio

from fusecache.api.backend import ImageInfo
from fusecache.api.errors import ImageNotFound
from fusecache.api.units import format_rate
from fusecache.control.commands import CommandFile, Snapshot
from fusecache.control.execute import Executor
from fusecache.control.files import CommandNode, ControlDirectory, FixedDirectory, Ownership, Report, ReportNode
from fusecache.control.inodes import ROOT, report_inode
from fusecache.control.left import LeftDirty
from fusecache.control.listing import Listing
from fusecache.control.rates import WritebackRates
from fusecache.control.runner import CommandRunner, Target
from fusecache.control.service import ImageService
from fusecache.control.status import Json, MountInfo, StatusSource
from fusecache.control.text import image_text, mount_text
from fusecache.control.view import LayerView, indexes_of, layers_of
from fusecache.images.node import DirectoryNode, Node
from fusecache.metrics.events import EventLog

_IMAGES = "images"
_LAYERS = "layers"


class ControlTree:
    """The control directory of one mount.

    Args:
        nursery: where commands run; it outlives every file of the directory.
        left: knows the images that are dirty and not open.
        metrics: returns the metrics' text, in pieces.
        control_wait: seconds after which the writer of a command gets EINPROGRESS.

    Attributes:
        root: the directory itself.
        runner: the commands under way.
        rates: to be applied to each image when it is opened.
    """

    def __init__(
        self,
        service: ImageService,
        nursery: trio.Nursery,
        *,
        left: LeftDirty,
        mount: MountInfo,
        owner: Ownership,
        events: EventLog,
        metrics: Callable[[], Iterable[str]],
        control_wait: float,
    ) -> None:
        self.rates = WritebackRates()
        executor = Executor(service, self.rates, left)
        self.runner = CommandRunner(service, executor, nursery, emit=events.emit, control_wait=control_wait)
        self._service = service
        self._left = left
        self._owner = owner
        listing = Listing(service, nursery)
        # The directories of layers show what the last look found.
        nursery.start_soon(left.look)
        self._status = StatusSource(service, self.rates, left, listing, self.runner.running, mount)
        entries: dict[str, Node] = {
            "flush": self._command(("flush",), Target(CommandFile.FLUSH_ALL), lambda: self.runner.progress(None)),
            "status": self._report(("status",), self._mount_status(mount_text)),
            "status.json": self._report(("status.json",), self._mount_status(_json_pieces)),
            "metrics": self._report(("metrics",), _in_steps(metrics)),
            "last_error": self._report(("last_error",), _at_once(lambda: _lines([self.runner.last_error(None)]))),
            "events": self._report(("events",), _at_once(lambda: _lines(events.lines()))),
            _IMAGES: _ImagesDirectory(service, owner, self._image_directory),
        }
        self.root: DirectoryNode = FixedDirectory(ROOT, owner, lambda: entries)

    def _report(self, path: tuple[str, ...], report: Report) -> Node:
        return ReportNode(path, self._owner, report)

    def _command(self, path: tuple[str, ...], target: Target, line: Callable[[], str]) -> Node:
        return CommandNode(path, self._owner, _at_once(lambda: _lines([line()])), self.runner, target)

    def _mount_status(self, render: Callable[[Json], Iterable[str]]) -> Report:
        async def report() -> Iterable[str]:
            return render(await self._status.mount())

        return report

    def _image_status(self, info: ImageInfo, render: Callable[[Json], Iterable[str]]) -> Report:
        async def report() -> Iterable[str]:
            return render(await self._status.image(info))

        return report

    def _image_directory(self, info: ImageInfo) -> Node:
        path = (_IMAGES, info.key)
        runner, owner = self.runner, self._owner
        entries: dict[str, Node] = {
            "flush": self._command((*path, "flush"), Target(CommandFile.FLUSH, info), lambda: runner.progress(info)),
            "discard": CommandNode((*path, "discard"), owner, _at_once(str), runner, Target(CommandFile.DISCARD, info)),
            "snapshot": self._command(
                (*path, "snapshot"), Target(CommandFile.SNAPSHOT, info), lambda: runner.progress(info, Snapshot)
            ),
            "status": self._report((*path, "status"), self._image_status(info, image_text)),
            "status.json": self._report((*path, "status.json"), self._image_status(info, _json_pieces)),
            "last_error": self._report((*path, "last_error"), _at_once(lambda: _lines([runner.last_error(info)]))),
            _LAYERS: FixedDirectory(report_inode(*path, _LAYERS), owner, partial(self._layers, info), lasting=False),
        }
        return FixedDirectory(report_inode(*path), owner, lambda: entries, lasting=False)

    def _layers(self, info: ImageInfo) -> Mapping[str, Node]:
        return {str(index): self._layer_directory(info, index) for index in indexes_of(self._service, self._left, info)}

    def _layer_directory(self, info: ImageInfo, index: int) -> Node:
        path = (_IMAGES, info.key, _LAYERS, str(index))

        def shown(show: Callable[[LayerView], str]) -> Callable[[], str]:
            return lambda: show(self._layer(info, index))

        def shown_anew(show: Callable[[LayerView], str]) -> Report:
            async def report() -> Iterable[str]:
                if self._service.opened(info.name) is None:
                    await self._left.look()
                return (shown(show)(),)

            return report

        entries: dict[str, Node] = {
            name: self._report((*path, name), shown_anew(show)) for name, show in _LAYER_REPORTS.items()
        }
        target = Target(CommandFile.WRITEBACK_RATE, info, index)
        name = target.file.value
        entries[name] = self._command((*path, name), target, shown(lambda view: format_rate(view.rate)))
        return FixedDirectory(report_inode(*path), self._owner, lambda: entries, lasting=False)

    def _layer(self, info: ImageInfo, index: int) -> LayerView:
        for view in layers_of(self._service, self.rates, self._left, info):
            if view.index == index:
                return view
        raise ImageNotFound(f"image {info.name!r} has no layer {index}")


class _ImagesDirectory(ControlDirectory):
    """One directory for each image that is shown, whether it is open or not."""

    def __init__(self, service: ImageService, owner: Ownership, make: Callable[[ImageInfo], Node]) -> None:
        super().__init__(report_inode(_IMAGES), owner)
        self._service = service
        self._make = make

    async def lookup(self, name: str) -> Node:
        info = await self._service.lookup(name)
        if info.snapshot:
            raise ImageNotFound(f"{name!r} is a snapshot: only images have control files")
        return self._make(info)

    async def entries(self) -> Sequence[tuple[str, Node]]:
        infos = {info.name: info for info in await self._service.list()}
        return [(name, self._make(infos[name])) for name in sorted(infos)]


def _config_text(view: LayerView) -> str:
    # TOML's strings, numbers, booleans and arrays are written as JSON writes them.
    table = {"index": view.index, "plugin": view.plugin, **view.options}
    return _lines([f"{key} = {json.dumps(value, default=str)}" for key, value in table.items()])


_LAYER_REPORTS: Mapping[str, Callable[[LayerView], str]] = {
    "plugin": lambda view: _lines([view.plugin]),
    "state": lambda view: _lines([view.status.state.value]),
    "dirty_bytes": lambda view: _lines(["unknown" if view.dirty_bytes is None else str(view.dirty_bytes)]),
    "size_bytes": lambda view: _lines([str(view.status.size_bytes)]),
    "config": _config_text,
}


def _at_once(make: Callable[[], str]) -> Report:
    return _in_steps(lambda: (make(),))


def _in_steps(make: Callable[[], Iterable[str]]) -> Report:
    async def report() -> Iterable[str]:
        return make()

    return report


def _lines(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines if line)


def _json_pieces(content: Json) -> Iterator[str]:
    yield from json.JSONEncoder(indent=2).iterencode(content)
    yield "\n"
