"""The composition root: the one place where all parts of a mount meet.

Owns how a mount starts and ends. Nothing imports it but the command line.
"""

import gc
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final, Self

import trio

from fusecache.api.backend import Backend, ImageInfo
from fusecache.api.completions import Completions
from fusecache.api.errors import unwrapped
from fusecache.api.file_sync import FileSync
from fusecache.backends import open_backend
from fusecache.backends.file_sync import open_file_sync
from fusecache.config.schema import Config, MountConfig
from fusecache.control.files import Ownership
from fusecache.control.hops import hops_of
from fusecache.control.left import LeftDirty
from fusecache.control.status import MountInfo
from fusecache.control.tree import ControlTree
from fusecache.fuse import mounting
from fusecache.fuse.resident import make_resident
from fusecache.fuse.session import Session, mounted
from fusecache.images.files import FilePolicy, RootDirectory, image_inode
from fusecache.images.image import Image
from fusecache.images.registry import Registry
from fusecache.metrics.events import EventLog
from fusecache.metrics.registry import Sources, scrape
from fusecache.stack.assemble import Stack
from fusecache.stack.assemble import open_stack as assemble_stack
from fusecache.stack.drop import drop_layer
from fusecache.stack.link import Op
from fusecache.stack.remove import remove_image
from fusecache.state.full_report import FullReport
from fusecache.state.store import MountRecord, StateStore

log = logging.getLogger(__name__)

_TELLING_SECONDS: Final = 2.0
"""How long a backend that gives up may take to say so, before the mount gives up on the backend."""
_DETACH_SECONDS: Final = 2.0
_DRAIN_SECONDS: Final = 4.0
"""How long an ending mount waits for requests under way."""
_END_SECONDS: Final = 9.0
"""How long ending may take before the process leaves behind what hangs."""
_ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run(config: Config, mountpoint: Path, *, ready: Callable[[], None]) -> None:
    """Mount and serve in the foreground, until unmounted, SIGTERM or SIGINT.

    Ending keeps dirty data in the persistent layers: requests under way are answered, every layer is flushed, nothing
    is written back. It takes ten seconds at the most; then what hangs is left behind, and the process exits with 0.

    Args:
        ready: called once, when the mount serves.

    Raises:
        OSError, FusecacheError: the mount cannot be made; the message says why, and nothing is mounted.
    """
    _allow_descriptors()
    try:
        trio.run(partial(serve, config, mountpoint, ready=ready))
    except BaseExceptionGroup as group:
        failure = unwrapped(group)
    else:
        return
    finally:
        # What remains is to exit, with a status that another signal must not change.
        for number in _ENDING_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    raise failure


def _allow_descriptors() -> None:
    # An open image takes two or three, and the usual soft limit of 1024 is there for programs that use select(2).
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


async def serve(config: Config, mountpoint: Path, *, ready: Callable[[], None]) -> None:
    """As :func:`run`, inside a trio program. One mount per process: pyfuse3 has one session."""
    with trio.open_signal_receiver(*_ENDING_SIGNALS) as signals, _Ending() as ending:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_take_signals, signals, ending)
            with ending.starting:
                await _serve(config, mountpoint, ending, ready)
            nursery.cancel_scope.cancel()


class _Ending:
    """That the mount is to end, and the thread that sees to it that it does.

    Attributes:
        wanted: set once a signal asked for the end.
        starting: cancelled by a signal that comes before the mount is made.
        mounted: the mount is made.
        abandon: gives the mount up in the eyes of the kernel; called where ending takes too long.
    """

    def __init__(self) -> None:
        self.wanted = trio.Event()
        self.starting = trio.CancelScope()
        self.mounted = False
        self._begun = False
        self.abandon: Callable[[], None] = lambda: None
        self._watchdog = threading.Timer(_END_SECONDS, self._leave_behind)
        self._watchdog.daemon = True

    def begin(self) -> None:
        """Leave behind, after a while, what has not ended by then. Calling again changes nothing."""
        if not self._begun:
            self._begun = True
            self._watchdog.start()

    def _leave_behind(self) -> None:
        log.warning("ending took longer than %g s; leaving behind what hangs", _END_SECONDS)
        self.abandon()
        logging.shutdown()
        os._exit(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()


async def _take_signals(signals: AsyncIterator[int], ending: _Ending) -> None:
    # To the very end: trio would give a signal that nobody took its usual effect.
    async for number in signals:
        log.info("%s: ending", signal.Signals(number).name)
        ending.begin()
        ending.wanted.set()
        if not ending.mounted:
            # The backend may be away.
            ending.starting.cancel()


async def _serve(config: Config, mountpoint: Path, ending: _Ending, ready: Callable[[], None]) -> None:
    path = mounting.prepare(mountpoint)
    # Before any thread is started: one of the two is a thread's own, and is inherited.
    make_resident()
    events = EventLog()
    store = StateStore(config.mount.state_dir)
    async with (
        running_completions() as completions,
        open_file_sync(completions) as file_sync,
        open_backend(config.backend, completions, events.emit) as backend,
        trio.open_nursery() as nursery,
    ):
        record = MountRecord(str(path), os.getpid(), str(config.path), time.time(), backend.description)
        report = FullReport(store, record, events.emit, nursery)
        parts = _Parts(config, path, backend, store, completions, file_sync, events, nursery)
        async with mounted(
            path,
            parts.root,
            completions=completions,
            spin=config.mount.spin,
            allow_other=config.mount.allow_other,
            name_timeout=config.backend.timeout + _TELLING_SECONDS,
            on_full=report,
        ) as session:
            ending.mounted = True
            ending.abandon = session.abandon
            store.write_mount_record(record)
            # What is there by now lasts as long as the mount: requests should not wait for it to be looked through.
            gc.collect()
            gc.freeze()
            try:
                events.emit("mounted", f"{backend.description} at {path}")
                await _until_ended(session, path, ending, ready)
                ending.begin()
                await _end(session, parts.registry)
            finally:
                report.remove()
        nursery.cancel_scope.cancel()


class _Parts:
    """What a mount shows: the images and the control directory over them, wired to each other."""

    def __init__(
        self,
        config: Config,
        path: Path,
        backend: Backend,
        store: StateStore,
        completions: Completions,
        file_sync: FileSync,
        events: EventLog,
        nursery: trio.Nursery,
    ) -> None:
        self._session: Session | None = None
        self._policy = _policy(config.mount)
        self._stack_for = config.stack_for
        self._drop = partial(
            drop_layer, backend=backend, store=store, emit=events.emit, guard=config.mount.guard, mountpoint=str(path)
        )
        self.registry = Registry(
            backend,
            open_stack=lambda name: assemble_stack(
                backend=backend,
                name=name,
                configured=config.stack_for(name),
                store=store,
                completions=completions,
                file_sync=file_sync,
                emit=events.emit,
                mountpoint=str(path),
                guard=config.mount.guard,
            ),
            drop_layer=self._drop_layer,
            remove_image=lambda name: remove_image(backend=backend, name=name, store=store, mountpoint=str(path)),
            stack_for=config.stack_for,
            nursery=nursery,
            release_after=config.mount.release_after,
            emit=events.emit,
            on_open=self._apply_rates,
            on_open_failed=self._note_failure,
            content_changed=self._invalidate,
        )
        sources = Sources(
            version=version("fusecache"),
            backend=config.backend.type,
            operations=tuple(Op),
            hops=lambda: hops_of(self.registry, config.backend.type),
            open_images=lambda: len(self.registry.all_open()),
            running_commands=lambda: len(self._control.runner.running),
            slots_in_use=lambda: self._session.channel.memory.in_use if self._session is not None else 0,
        )
        self._control = ControlTree(
            self.registry,
            nursery,
            left=LeftDirty(backend, store),
            mount=MountInfo(sources.version, os.getpid(), str(path), backend.description),
            owner=Ownership(self._policy.uid, self._policy.gid, config.mount.control_group, time.time_ns()),
            events=events,
            metrics=partial(scrape, sources),
            control_wait=config.mount.control_wait,
        )

    def root(self, session: Session) -> RootDirectory:
        """Return the root directory that *session* serves."""
        self._session = session
        return RootDirectory(self.registry, self._control.root, self._policy)

    def _apply_rates(self, image: Image) -> None:
        self._control.rates.apply(image)
        self._control.runner.record_opened(image.info)

    def _note_failure(self, info: ImageInfo, error: Exception) -> None:
        self._control.runner.record_open_failure(info, error)

    async def _drop_layer(self, name: str, index: int, dirty: bool, torn: bool) -> None:
        configured = self._stack_for(name)
        await self._drop(name=name, configured=configured, index=index, dirty=dirty, torn=torn, take_over=dirty)

    def _invalidate(self, image: Image) -> None:
        if self._session is not None:
            self._session.notifier.invalidate(image_inode(image.info.key))


@asynccontextmanager
async def open_stack(config: Config, image: str) -> AsyncIterator[Stack]:
    """Open an image's stack without mounting, under the same locks as a mount.

    Raises:
        FusecacheError: see :func:`fusecache.stack.assemble.open_stack`.
    """
    store = StateStore(config.mount.state_dir)
    async with (
        running_completions() as completions,
        open_file_sync(completions) as file_sync,
        open_backend(config.backend, completions, log_event) as backend,
        assemble_stack(
            backend=backend,
            name=image,
            configured=config.stack_for(image),
            store=store,
            completions=completions,
            file_sync=file_sync,
            emit=log_event,
            guard=config.mount.guard,
        ) as stack,
    ):
        yield stack


def log_event(kind: str, text: str) -> None:
    """An :data:`fusecache.api.Emit` for when nobody keeps events."""
    log.info("%s: %s", kind, text)


@asynccontextmanager
async def running_completions() -> AsyncIterator[Completions]:
    """Deliver results of threads and of the kernel until the context ends."""
    completions = Completions()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(completions.run)
            yield completions
            nursery.cancel_scope.cancel()
    finally:
        completions.close()


def _policy(mount: MountConfig) -> FilePolicy:
    return FilePolicy(
        uid=os.geteuid() if mount.owner is None else mount.owner,
        gid=os.getegid() if mount.group is None else mount.group,
        mode=mount.mode,
        create=mount.create,
        rename=mount.rename,
        remove=mount.remove,
        resize=mount.resize,
    )


async def _until_ended(session: Session, path: Path, ending: _Ending, ready: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_detach_when_wanted, path, ending, nursery.cancel_scope)
        ready()
        await session.unmounted.wait()
        nursery.cancel_scope.cancel()


async def _detach_when_wanted(path: Path, ending: _Ending, ended: trio.CancelScope) -> None:
    await ending.wanted.wait()
    # In a thread and bounded: the kernel may want something of us before it lets go.
    with trio.move_on_after(_DETACH_SECONDS):
        await trio.to_thread.run_sync(_detach, path, abandon_on_cancel=True)
    ended.cancel()


def _detach(path: Path) -> None:
    try:
        mounting.unmount(path)
    except OSError:
        # Used, or already gone.
        try:
            mounting.unmount(path, lazy=True)
        except OSError as error:
            log.info("%s", error)


async def _end(session: Session, registry: Registry) -> None:
    with trio.move_on_after(_DRAIN_SECONDS):
        await session.stop()
    session.channel.handles.close_all()
    await registry.close()
