"""The composition root: the one place where all parts of a mount meet.

Owns how a mount starts and ends. Nothing imports it but the command line.
"""

import logging
import os
import resource
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final, Self

import trio

from fusecache.api.backend import Backend
from fusecache.api.completions import Completions
from fusecache.api.layer import Emit
from fusecache.backends import open_backend
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
from fusecache.metrics.export import prometheus_text
from fusecache.metrics.registry import Sources, make_registry
from fusecache.stack.assemble import Stack
from fusecache.stack.assemble import open_stack as assemble_stack
from fusecache.stack.drop import drop_layer
from fusecache.stack.link import Op
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
        failure: BaseException = group
        while isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
            failure = failure.exceptions[0]
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
        _completions() as completions,
        open_backend(config.backend, completions, events.emit) as backend,
        trio.open_nursery() as nursery,
    ):
        record = MountRecord(str(path), os.getpid(), str(config.path), time.time(), backend.description)
        report = _FullReport(store, record, events.emit, nursery)
        parts = _Parts(config, path, backend, store, completions, events, nursery)
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
        events: EventLog,
        nursery: trio.Nursery,
    ) -> None:
        self._session: Session | None = None
        self._policy = _policy(config.mount)
        self.registry = Registry(
            backend,
            open_stack=lambda name: assemble_stack(
                backend=backend,
                name=name,
                configured=config.stack_for(name),
                store=store,
                completions=completions,
                emit=events.emit,
                mountpoint=str(path),
                guard=config.mount.guard,
            ),
            drop_layer=partial(_drop_layer, config, str(path), backend, store, events.emit),
            stack_for=config.stack_for,
            nursery=nursery,
            release_after=config.mount.release_after,
            emit=events.emit,
            on_open=self._apply_rates,
            content_changed=self._invalidate,
        )
        sources = Sources(
            version=version("fusecache"),
            backend=config.backend.type,
            operations=tuple(Op),
            hops=lambda: hops_of(self.registry.all_open(), config.backend.type),
            open_images=lambda: len(self.registry.all_open()),
            running_commands=lambda: len(self._control.runner.running),
            slots_in_use=lambda: self._session.channel.memory.in_use if self._session is not None else 0,
        )
        metrics = make_registry(sources)
        self._control = ControlTree(
            self.registry,
            nursery,
            left=LeftDirty(backend, store),
            mount=MountInfo(sources.version, os.getpid(), str(path), backend.description),
            owner=Ownership(self._policy.uid, self._policy.gid, config.mount.control_group, time.time_ns()),
            events=events,
            metrics=lambda: prometheus_text(metrics),
            control_wait=config.mount.control_wait,
        )

    def root(self, session: Session) -> RootDirectory:
        """Return the root directory that *session* serves."""
        self._session = session
        return RootDirectory(self.registry, self._control.root, self._policy)

    def _apply_rates(self, image: Image) -> None:
        self._control.rates.apply(image)

    def _invalidate(self, image: Image) -> None:
        if self._session is not None:
            self._session.notifier.invalidate(image_inode(image.info.key))


async def _drop_layer(
    config: Config, mountpoint: str, backend: Backend, store: StateStore, emit: Emit, name: str, index: int, dirty: bool
) -> None:
    await drop_layer(
        backend=backend,
        name=name,
        configured=config.stack_for(name),
        store=store,
        index=index,
        emit=emit,
        dirty=dirty,
        take_over=dirty,
        guard=config.mount.guard,
        mountpoint=mountpoint,
    )


@asynccontextmanager
async def open_stack(config: Config, image: str) -> AsyncIterator[Stack]:
    """Open an image's stack without mounting, under the same locks as a mount.

    Raises:
        FusecacheError: see :func:`fusecache.stack.assemble.open_stack`.
    """
    store = StateStore(config.mount.state_dir)
    async with (
        _completions() as completions,
        open_backend(config.backend, completions, log_event) as backend,
        assemble_stack(
            backend=backend,
            name=image,
            configured=config.stack_for(image),
            store=store,
            completions=completions,
            emit=log_event,
            guard=config.mount.guard,
        ) as stack,
    ):
        yield stack


def log_event(kind: str, text: str) -> None:
    """An :data:`fusecache.api.Emit` for when nobody keeps events."""
    log.info("%s: %s", kind, text)


@asynccontextmanager
async def _completions() -> AsyncIterator[Completions]:
    completions = Completions()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(completions.run)
        yield completions
        nursery.cancel_scope.cancel()
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


class _FullReport:
    """Says in the mount's record whether all request slots are taken; written by a thread, the latest state only."""

    def __init__(self, store: StateStore, record: MountRecord, emit: Emit, nursery: trio.Nursery) -> None:
        self._store = store
        self._record = record
        self._emit = emit
        self._nursery = nursery
        self._full = False
        self._writing = False
        self._removed = False

    def __call__(self, full: bool) -> None:
        self._full = full
        if full:
            self._emit("slots-full", "all request slots are taken; reading no further requests until one is answered")
        if not self._writing and not self._removed:
            self._writing = True
            self._nursery.start_soon(self._write)

    def remove(self) -> None:
        """Remove the record; once a thread that is writing it has ended, where there is one."""
        self._removed = True
        if not self._writing:
            self._store.remove_mount_record(self._record.mountpoint)

    async def _write(self) -> None:
        written: bool | None = None
        write = self._store.write_mount_record
        try:
            while written is not self._full and not self._removed:
                written = self._full
                try:
                    await trio.to_thread.run_sync(write, replace(self._record, slots_full=written))
                except OSError as error:
                    # A full disk under the state directory is no reason to stop serving.
                    log.warning("the mount's record is not up to date: %s", error)
        finally:
            self._writing = False
            if self._removed:
                self.remove()


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
