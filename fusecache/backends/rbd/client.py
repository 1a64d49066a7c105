"""One RADOS client: a connection to the cluster under an address of its own.

Owns the connection, its configuration, the threads that make its blocking calls, and its death by blocklist. It must
not know images.

**When the cluster is away** requests wait in librados until it is back, as the kernel client's do: no timeouts are set
there, for data must not be given up. What only looks, opens or looks up is given up here, after
:attr:`Client.timeout`. It either takes no thread (:meth:`Client.operate`), or one of the few that such calls have.

**Nothing in memory.** librbd's cache is off: what it acknowledges would be lost with the process.
"""

import errno
import json
import logging
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import rados
import rbd
import trio

from fusecache.api import Completions, FusecacheError
from fusecache.api.errors import VolumeClosed
from fusecache.backends.rbd.calls import PATIENCE, Keep, Undo, on_thread
from fusecache.backends.rbd.errors import BLOCKLISTED, CEPH_ERRORS, translated
from fusecache.backends.workers import Lane, WorkerPool

log = logging.getLogger(__name__)

_BEAT: Final = 3.0
"""Seconds between two requests that only ask whether the cluster still lets us in."""

_BRIEF: Final = 0.2
"""Seconds that the end waits for what somebody has waited for in vain already."""

_THREADS: Final = 8
_LOOKS_AT_ONCE: Final = 2
_CALLS_AT_ONCE: Final = 4
_LONG_CALLS_AT_ONCE: Final = 2

OVERRIDES: Final = {
    "rbd_cache": "false",
    "rbd_blocklist_on_break_lock": "true",
    # With any other value librbd asks the monitors in a way that they do not understand, and breaks no lock.
    "rbd_blocklist_expire_seconds": "0",
    # Data requests wait for the cluster.
    "rados_osd_op_timeout": "0",
    "rados_mon_op_timeout": "0",
    # Otherwise librbd reads what is written from memory that the binding does not keep.
    "rbd_disable_zero_copy_writes": "true",
    # librbd works on threads of its own, not on the event loop's.
    "rbd_non_blocking_aio": "true",
    # Full throttles would block the event loop, which submits requests; how many there are is bounded elsewhere.
    "objecter_inflight_ops": "0",
    "objecter_inflight_op_bytes": "0",
    # Standard error belongs to the program.
    "log_to_stderr": "false",
    "err_to_stderr": "false",
    "log_file": "",
    "admin_socket": "",
}


class Settings(Protocol):
    """Where the images are: the table ``[backend]``, see :class:`fusecache.config.schema.RbdConfig`."""

    @property
    def pool(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    @property
    def conf(self) -> Path | None: ...
    @property
    def user(self) -> str: ...
    @property
    def timeout(self) -> float: ...


class Client:
    """A client, connected by :meth:`connect` until :meth:`close`. Loop's thread only, but for what says otherwise.

    Attributes:
        address: how the cluster names this client, among the owners of locks and in blocklists;
            for example ``127.0.0.1:0/86712093``.
        fsid: the cluster's.
        pool_id: the pool's number.
        namespace: empty for the default one.
        ioctx: the pool and namespace.
        completions: brings results to the loop.
        timeout: seconds for what only looks, opens or looks up.
        lost: the cluster refuses this client (blocklisted), for ever.
    """

    address: str
    fsid: str
    pool_id: int
    ioctx: "rados.Ioctx"

    def __init__(self, settings: Settings, completions: Completions) -> None:
        self.namespace = settings.namespace
        self.completions = completions
        self.timeout = settings.timeout
        self.lost = False
        self._settings = settings
        self._pool = WorkerPool(completions, threads=_THREADS, name="rbd")
        self._calls = self._pool.lane(turns=_CALLS_AT_ONCE)
        self._looks = self._pool.lane(turns=_LOOKS_AT_ONCE)
        self._long_calls = self._pool.lane(turns=_LONG_CALLS_AT_ONCE)
        self._beating = trio.CancelScope()
        self._doubt = trio.Event()
        self._reactions: dict[object, Callable[[], None]] = {}
        self._closed = False
        self._cluster: rados.Rados | None = None
        self._kept = 0
        self._unused = threading.Condition()  # guards _kept

    def __repr__(self) -> str:
        state = "closed" if self._closed else "lost" if self.lost else "open" if self._cluster else "new"
        return f"<Client {getattr(self, 'address', self._settings.pool)} {state}>"

    async def connect(self) -> None:
        """Connect to the cluster and find the pool. After an error or a cancellation there is nothing to close.

        Raises:
            FusecacheError: EIO; the message says which of config, monitors, user, pool and namespace it was.
        """
        try:
            # librados gives up by itself after the same time, and says more.
            self._cluster, self.ioctx, self.address, self.fsid, self.pool_id = await on_thread(
                self._looks, _connect, self._settings, keep=self.keep, within=self.timeout + 1, undo=_disconnect
            )
        except BaseException:
            await self._pool.close(_BRIEF)
            raise
        trio.lowlevel.spawn_system_task(self._beat, name=f"heartbeat of {self.address}")

    async def call(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run ``work(*args)``, blocking calls of the bindings, on a thread to their end; errors come translated.

        A cancellation waits for that end, but of a cluster that does not answer only for a few seconds; then it may
        happen later, or never.
        """
        return await self._on_thread(self._calls, work, *args, patience=PATIENCE)

    async def call_long(self, work: Callable[..., Any], *args: Any) -> Any:
        """As :meth:`call`, for what may take minutes and must not keep other calls from their threads."""
        return await self._on_thread(self._long_calls, work, *args, patience=PATIENCE)

    async def ask(self, look: Callable[..., Any], *args: Any) -> Any:
        """As :meth:`call`, for what changes nothing: bounded by :attr:`timeout`, and given up when cancelled.

        Raises:
            FusecacheError: EIO, the cluster did not answer in time.
        """
        return await self._on_thread(self._looks, look, *args, within=self.timeout)

    async def acquire(self, make: Callable[..., Any], *args: Any, undo: Undo, keep: Keep | None = None) -> Any:
        """As :meth:`ask`, for what leaves something open: where it comes too late, ``undo(result)`` is called on the
        thread. So it has returned, or it is undone as soon as the cluster answers.

        Args:
            keep: keeps what the call needs, and with it this connection; None is no more than the connection.
        """
        return await self._on_thread(self._calls, make, *args, within=self.timeout, undo=undo, keep=keep)

    async def _on_thread(
        self, lane: Lane, work: Callable[..., Any], *args: Any, keep: Keep | None = None, **bounds: Any
    ) -> Any:
        try:
            return await on_thread(lane, work, *args, keep=keep or self.keep, **bounds)
        except CEPH_ERRORS as error:
            if error.errno == BLOCKLISTED:
                self.check()
            raise translated(error) from error

    async def operate(self, submit: Callable[[Callable[..., None]], object]) -> tuple[Any, ...]:
        """Run one asynchronous operation of librados, without a thread; given up after :attr:`timeout` and when
        cancelled, which does not take it back.

        Args:
            submit: receives the function that the operation's callback must call, on any thread, with the return
                value (negative: an errno) and the results.

        Returns:
            What that function was called with.

        Raises:
            FusecacheError: EIO, the cluster did not answer in time; or it has blocklisted this client.
        """
        with trio.move_on_after(self.timeout):
            results = await self._operate(submit)
            if results[0] == -BLOCKLISTED:
                self._lose()
                raise FusecacheError(f"the cluster has blocklisted this client, {self.address}")
            return results
        raise FusecacheError(f"the cluster did not answer within {self.timeout:g} s")

    async def _operate(self, submit: Callable[[Callable[..., None]], object]) -> tuple[Any, ...]:
        if self._closed:
            raise VolumeClosed("the connection to the cluster has been closed")
        ended = trio.Event()
        outcome: tuple[Any, ...] = ()

        def deliver(results: tuple[Any, ...]) -> None:
            nonlocal outcome
            outcome = results
            ended.set()

        def finish(*results: Any) -> None:
            # Not counted as expected: what was given up may never come.
            if not self._closed:
                self.completions.post(deliver, results, count=0)

        try:
            submit(finish)
        except CEPH_ERRORS as error:
            raise translated(error) from error
        await ended.wait()
        return outcome

    def on_lost(self, react: Callable[[], None]) -> Callable[[], None]:
        """Call *react* on the loop's thread once, if and when the client is found to be blocklisted: at once where it
        is already. Return a function that withdraws this."""
        key = object()
        if self.lost:
            react()
        else:
            self._reactions[key] = react

        def withdraw() -> None:
            self._reactions.pop(key, None)

        return withdraw

    def check(self) -> None:
        """Find out now, not only at the next beat, whether the client is lost. For whoever saw :data:`BLOCKLISTED`."""
        self._doubt.set()

    def blocklist(self, address: str, seconds: float) -> None:
        """Have the cluster refuse the client *address* for so long from now on. Blocking; any thread.

        One that is refused already stays so for as long as was said then.

        Raises:
            rados.Error
        """
        assert self._cluster is not None
        command = {"prefix": "osd blocklist", "blocklistop": "add", "addr": address, "expire": seconds}
        result, _, reason = self._cluster.mon_command(json.dumps(command), b"")
        if result < 0:
            raise rados.OSError(reason, errno=-result)

    def keep(self) -> Callable[[], None]:
        """Keep the connection alive, also beyond :meth:`close`, until the returned function is called. Any thread.

        For whatever librbd still works on: taking the connection away from under it would crash the process.
        """
        with self._unused:
            self._kept += 1
        pending = [True]

        def release() -> None:
            with self._unused:
                if pending:
                    pending.clear()
                    self._kept -= 1
                    self._unused.notify_all()

        return release

    async def close(self) -> None:
        """End the connection; takes a few seconds at most, also where the cluster is away.

        What hangs is logged and left behind; the connection ends when it ends. A cancellation waits.
        """
        if self._closed or self._cluster is None:
            return
        self._closed = True
        self._beating.cancel()
        self._reactions.clear()
        over = threading.Event()
        deadline = trio.current_time() + (_BRIEF if self._kept else PATIENCE)
        # Its frame also keeps the binding from shutting the connection down when the interpreter ends.
        threading.Thread(target=self._shut_down, args=(over,), name="rbd-shutdown", daemon=True).start()
        with trio.CancelScope(shield=True):
            if not await trio.to_thread.run_sync(over.wait, deadline - trio.current_time()):
                log.warning("left behind, waiting for the cluster: the connection %s", self.address)
            await self._pool.close(max(_BRIEF, deadline - trio.current_time()))

    def _shut_down(self, over: threading.Event) -> None:
        with self._unused:
            self._unused.wait_for(lambda: not self._kept)
        assert self._cluster is not None
        self.ioctx.close()
        self._cluster.shutdown()
        over.set()

    async def _beat(self) -> None:
        """Find out that the cluster has blocklisted this client, also where nobody asks anything of it."""
        with self._beating:
            while not self.lost:
                with trio.move_on_after(_BEAT):
                    await self._doubt.wait()
                self._doubt = trio.Event()
                try:
                    answer = await self._operate(self._ask_for_nothing)
                except Exception:
                    log.exception("the heartbeat of %s failed", self.address)
                else:
                    if answer[0] == -BLOCKLISTED:
                        self._lose()

    def _ask_for_nothing(self, finish: Callable[..., None]) -> None:
        self.ioctx.aio_stat("rbd_directory", lambda completion, *_: finish(completion.get_return_value()))

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        self._doubt.set()
        log.warning("the cluster has blocklisted this client, %s", self.address)
        reactions, self._reactions = self._reactions, {}
        for react in reactions.values():
            try:
                react()
            except Exception:
                log.exception("a reaction to being blocklisted failed")


def _connect(settings: Settings) -> tuple["rados.Rados", "rados.Ioctx", str, str, int]:
    """Return a connection, its pool, its address, the cluster's fsid and the pool's number. Blocking."""
    cluster = _configured(settings)
    try:
        _reach(cluster, settings)
        try:
            ioctx = cluster.open_ioctx(settings.pool)
        except rados.ObjectNotFound:
            pools = ", ".join(map(repr, sorted(cluster.list_pools()))) or "none"
            raise FusecacheError(f"found no pool {settings.pool!r} in the cluster; it has: {pools}") from None
        _enter(ioctx, settings)
        return cluster, ioctx, cluster.get_addrs(), cluster.get_fsid(), ioctx.get_pool_id()
    except BaseException as error:
        cluster.shutdown()
        if isinstance(error, CEPH_ERRORS):
            raise FusecacheError(f"cannot use pool {settings.pool!r} as client.{settings.user}: {error}") from error
        raise


def _disconnect(connected: tuple["rados.Rados", Any, Any, Any, Any]) -> None:
    connected[0].shutdown()


def _configured(settings: Settings) -> "rados.Rados":
    conf = str(settings.conf) if settings.conf is not None else ""
    overrides = {**OVERRIDES, "client_mount_timeout": str(math.ceil(settings.timeout))}
    try:
        return rados.Rados(rados_id=settings.user, conffile=conf, conf=overrides)
    except CEPH_ERRORS as error:
        if conf:
            tried = f"the Ceph config {conf!r}"
        elif name := os.environ.get("CEPH_CONF"):
            tried = f"the Ceph config {name!r} (from CEPH_CONF)"
        else:
            tried = "a Ceph config in the usual places such as /etc/ceph/ceph.conf"
        raise FusecacheError(f"cannot read {tried}: {error}") from error


def _reach(cluster: "rados.Rados", settings: Settings) -> None:
    try:
        cluster.connect()
    except CEPH_ERRORS as error:
        monitors = cluster.conf_get("mon_host") or "none"
        reasons = {
            errno.ETIMEDOUT: f"the monitors ({monitors}) did not answer within {settings.timeout:g} s",
            errno.ENOENT: f"found no monitors or no keyring (monitors in the config: {monitors})",
            errno.EACCES: f"the cluster refuses the user client.{settings.user}; its keyring has another key or none, "
            "or it lacks the capability `mon 'profile rbd'`",
        }
        reason = reasons.get(error.errno, f"monitors in the config: {monitors}")
        raise FusecacheError(f"cannot connect to the cluster as client.{settings.user}: {reason}: {error}") from error


def _enter(ioctx: "rados.Ioctx", settings: Settings) -> None:
    if not settings.namespace:
        return
    try:
        found = rbd.RBD().namespace_exists(ioctx, settings.namespace)
    except (rados.PermissionError, rbd.PermissionError):
        # A user of one namespace may not look at the list of all; what it asks later tells.
        found = True
    if not found:
        names = ", ".join(map(repr, sorted(rbd.RBD().namespace_list(ioctx)))) or "none"
        raise FusecacheError(f"found no namespace {settings.namespace!r} in pool {settings.pool!r}; it has: {names}")
    ioctx.set_namespace(settings.namespace)
