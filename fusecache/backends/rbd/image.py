"""An open image of a pool, as a volume.

Owns how requests are handed to librbd and how their ends come back. It must not know names, locks or how an image is
opened.

Requests are handed over at once, by librbd's asynchronous calls. Each end comes on a thread of librbd's, which does no
more than :meth:`Completions.post`: the loop looks at the result. Data is copied on its way in, as the binding takes
``bytes`` only; librbd copies it again before its call returns, so nothing here has to keep it
(``rbd_disable_zero_copy_writes`` must stay true).

While the cluster is away requests wait, as a kernel client's do; there is no timeout.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, NoReturn

import rbd
import trio

from fusecache.api import (
    DECLINED,
    DONE,
    PENDING,
    Attempt,
    BackendImage,
    Buffers,
    Done,
    Emit,
    Extent,
    ExtentKind,
    Identity,
    ImageInfo,
    ImageRecord,
    ReadDone,
    ReadOutcome,
)
from fusecache.api.errors import FusecacheError, VolumeClosed, VolumeReadOnly
from fusecache.backends.attempts import completed
from fusecache.backends.rbd import blocking
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.errors import BLOCKLISTED, translated
from fusecache.backends.rbd.extents import survey
from fusecache.backends.rbd.failures import Failures
from fusecache.backends.rbd.handle import OpenHandle
from fusecache.backends.rbd.reads import Reads
from fusecache.backends.rbd.records import RbdRecords
from fusecache.backends.rbd.snapshots import Snapshots

log = logging.getLogger(__name__)

_PATIENCE: Final = 3.0
"""How long closing an image waits for the cluster, in seconds."""

_MOST_OBJECTS: Final = 1024
"""Objects that one call of librbd may zero: it starts as many requests to the cluster at once."""


class RbdImage(BackendImage):
    """An image or a snapshot of a pool.

    **Losing the lock** shows in the answer to a request, or is told by the client; from then on reads raise
    :class:`~fusecache.backends.rbd.failures.LockLost` and changes :class:`VolumeReadOnly`. What was acknowledged before
    stays in the cluster.

    **Shrunk by somebody else**, which librbd lets any client ask of the owner of the lock: reads past the end are
    errors, and so are changes past it; a change that crosses the end is cut there by librbd, without a word.

    Args:
        handle: under its exclusive lock unless *read_only*; owned from now on.
        describe: returns the description under the image's present name.
        records: None where there is no record.
        reads: straight from the objects; None where only librbd knows how, or there is no lock.
    """

    def __init__(
        self,
        handle: OpenHandle,
        identity: Identity,
        *,
        client: Client,
        emit: Emit,
        describe: Callable[[], Awaitable[ImageInfo]],
        read_only: bool = False,
        cacheable: bool = True,
        note: str = "",
        records: RbdRecords | None = None,
        reads: Reads | None = None,
    ) -> None:
        self.size = handle.size
        self.read_only = read_only
        self.identity = identity
        self.cacheable = cacheable
        self.note = note
        self._most = _MOST_OBJECTS * handle.object_size
        self._handle = handle
        self._client = client
        self._completions = client.completions
        self._describe = describe
        self._records = records
        self._snapshots = Snapshots(client, handle)
        self._under_way = 0
        self._idle: trio.Event | None = None
        self._lost = trio.Event()
        self._failures = Failures(handle.name, emit, locked=not read_only, lost=self._became_lost)
        self._closed = False
        # Looked up once: these are on the hot path. Losing the lock and closing replace librbd's calls.
        self._post = self._completions.post
        self._aio_read = handle.image.aio_read
        self._aio_write = handle.image.aio_write
        self._aio_zero = handle.image.aio_write_zeroes
        self._withdraw = client.on_lost(self._failures.lose)
        self._reads = reads

    def __repr__(self) -> str:
        return f"<RbdImage {self._handle.name} size={self.size}{' read-only' if self.read_only else ''}>"

    async def close(self) -> None:
        """Wait for what is under way, close the handle and give up the lock; shielded from cancellation.

        What takes the cluster more than three seconds is left behind: librbd goes on by itself, and the image stays
        locked until it is through or the process ends. Requests still under way end when they end.
        """
        if self._closed:
            return
        self._closed = True
        self._aio_read = self._aio_write = self._aio_zero = self._refuse_closed
        self._reads = None
        self._withdraw()
        closed = trio.Event()
        self._completions.expect()
        with trio.move_on_after(_PATIENCE, shield=True) as patience:
            await self._drained()
        self._handle.close(partial(self._post, closed.set))
        with trio.CancelScope(deadline=patience.deadline, shield=True):
            await closed.wait()
            return
        log.error("%s is left behind, still locked: the cluster does not answer", self._handle.name)

    async def _drained(self) -> None:
        if self._under_way:
            self._idle = trio.Event()
            await self._idle.wait()

    async def until_lost(self) -> None:
        await self._lost.wait()

    async def info(self) -> ImageInfo:
        info = await self._describe()
        if info.size != self.size:
            # Somebody else resized it, and librbd was told.
            self._reads = None
        return info

    async def clones(self) -> Sequence[str]:
        found: Sequence[str] = await self._client.call(self._handle.use, blocking.clones)
        return found

    async def record(self) -> ImageRecord | None:
        return None if self._records is None else await self._records.read()

    async def set_record(self, record: ImageRecord, *, guard: bool) -> None:
        if self._records is None or self.read_only:
            raise self._failures.refusal()
        await self._changing(self._records.write(record, guard=guard))

    async def check_snapshot(self, name: str) -> None:
        self._changeable()
        await self._snapshots.check(name)

    async def make_snapshot(self, name: str) -> None:
        self._changeable()
        await self._changing(self._snapshots.make(name))

    def _changeable(self) -> Callable[..., Any]:
        if self.read_only:
            raise self._failures.refusal()
        return self._handle.use

    # ---- attempts ----

    def try_read(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        reads = self._reads
        if reads is None or not reads.start(offset, length, partial(self._reader_ended, done, offset, length)):
            return self._read_locked(offset, length, done)
        self._under_way += 1
        return PENDING

    def _read_locked(self, offset: int, length: int, done: ReadDone) -> ReadOutcome:
        """Read through librbd."""
        try:
            self._aio_read(offset, length, partial(self._post, self._read_ended, done, offset, length))
        except rbd.Error as error:
            raise translated(error) from error
        self._completions.expect()
        self._under_way += 1
        return PENDING

    def try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        if self.read_only:
            raise self._failures.refusal()
        try:
            self._aio_write(bytes(data), offset, _reporting(self._post, self._change_ended, done, offset))
        except rbd.Error as error:
            raise translated(error) from error
        self._completions.expect()
        self._under_way += 1
        return PENDING

    def try_write_zeroes(self, offset: int, length: int, done: Done) -> Attempt:
        """Attempt :meth:`write_zeroes`. Declines what is more than librbd should do at one go."""
        if self.read_only:
            raise self._failures.refusal()
        if length > self._most:
            return DECLINED
        report = _reporting(self._post, self._change_ended, done, offset)
        return self._start(self._aio_zero, offset, length, report)

    def try_discard(self, offset: int, length: int, done: Done) -> Attempt:
        # librbd's own discard leaves what is smaller than its granularity as it was; zeroing frees space as well.
        return self.try_write_zeroes(offset, length, done)

    def try_flush(self, done: Done) -> Attempt:
        """Attempt :meth:`flush`, which is always done."""
        if self._closed:
            self._refuse_closed()
        return DONE

    def _start(self, submit: Callable[..., object], *args: Any) -> Attempt:
        try:
            submit(*args)
        except rbd.Error as error:
            raise translated(error) from error
        self._completions.expect()
        self._under_way += 1
        return PENDING

    # ---- asynchronous methods ----

    async def read(self, offset: int, length: int) -> Buffers:
        """Return exactly *length* bytes. A cancellation does not wait for the cluster.

        Raises:
            ImageShrank: somebody shrank the image behind us.
            LockLost, ImageGone, FusecacheError: all with EIO but ImageGone.
        """
        buffers: Buffers = await self._answer(lambda done: self.try_read(offset, length, done))
        return buffers

    async def write(self, offset: int, data: memoryview) -> None:
        await completed(self._completions, lambda done: self.try_write(offset, data, done))

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Make the range read as zeroes. The cluster keeps no space in reserve, so this is a discard.

        In slices; a cancellation waits for the end of one.
        """
        end = offset + length
        while offset < end:
            piece = min(self._most - offset % self._handle.object_size, end - offset)
            await completed(self._completions, partial(self.try_write_zeroes, offset, piece))
            offset += piece

    async def discard(self, offset: int, length: int) -> None:
        """Make the whole range read as zeroes and free its space; as :meth:`write_zeroes`."""
        await self.write_zeroes(offset, length)

    async def flush(self) -> None:
        """Return when everything acknowledged before survives loss of power: it does already.

        A change is acknowledged when all OSDs that keep it have made it durable, as nothing of librbd's that would
        acknowledge it sooner is tolerated (:func:`fusecache.backends.rbd.ownership.open_owned`).
        """
        if self._closed:
            self._refuse_closed()
        await trio.lowlevel.checkpoint()

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Describe the range, as far as the object map tells it; see :func:`survey`. Works on snapshots.

        What the cluster does not tell in time is DATA.
        """
        ask, handle = self._client.ask, self._handle
        try:
            found: Sequence[Extent] = await ask(handle.use, survey, handle.object_size, offset, length)
        except VolumeClosed:
            raise
        except (FusecacheError, OSError) as error:
            log.info("%s: its extents are not known: %s", self._handle.name, error)
            return [Extent(offset, length, ExtentKind.DATA)]
        return found

    async def resize(self, size: int) -> None:
        """Set the length, durably. A cancellation waits for the end."""
        call, use = self._client.call, self._changeable()
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            try:
                await self._changing(call(use, blocking.resize, size))
                self.size = size
            except Exception:
                # It may have happened all the same.
                with suppress(Exception):
                    self.size = await call(use, blocking.size)
                raise

    async def _answer(self, attempt: Callable[..., Any]) -> Any:
        """Run an attempt that has no effect; a cancellation leaves it to end by itself."""
        await trio.lowlevel.checkpoint_if_cancelled()
        ended = trio.Event()
        outcome: list[Any] = []

        def done(error: BaseException | None, buffers: Buffers = ()) -> None:
            outcome.extend((error, buffers))
            ended.set()

        if attempt(done) is DONE:
            return ()
        await ended.wait()
        error, buffers = outcome
        if error is not None:
            raise error
        return buffers

    async def _changing(self, change: Awaitable[Any]) -> None:
        """Await a change that is made on a thread.

        Raises:
            VolumeReadOnly: the lock is lost.
        """
        try:
            await change
        except FusecacheError as error:
            if not isinstance(error, VolumeReadOnly) and getattr(error.__cause__, "errno", 0) != BLOCKLISTED:
                raise
            self._failures.lose()
            raise self._failures.refusal() from error

    # ---- ends of requests, on the loop's thread ----

    def _reader_ended(self, done: ReadDone, offset: int, length: int, result: int, buffer: bytearray) -> None:
        self._leave()
        # What a failure means is for librbd to say, and so is what was read about when the lock was lost.
        if result == length and not self._failures.reason:
            done(None, (buffer,))
            return
        try:
            self._read_locked(offset, length, done)
        except Exception as error:
            done(error, ())

    def _read_ended(self, done: ReadDone, offset: int, length: int, completion: Any, data: bytes | None) -> None:
        self._leave()
        if data is not None and len(data) == length:
            done(None, (data,))
        else:
            result = completion.get_return_value() if data is None else len(data)
            done(self._failures.of_read(result, offset, length), ())

    def _change_ended(self, done: Done, offset: int, result: int) -> None:
        self._leave()
        done(None if result >= 0 else self._failures.of_change(result, offset))

    def _leave(self) -> None:
        self._under_way -= 1
        if self._idle is not None and not self._under_way:
            self._idle.set()

    def _refuse_read(self, *_: object) -> NoReturn:
        raise self._failures.unreadable()

    def _refuse_closed(self, *_: object) -> NoReturn:
        raise VolumeClosed(f"{self._handle.name} has been closed")

    def _became_lost(self) -> None:
        self.read_only = True
        self.note = f"{self._failures.reason}; reads fail and changes are refused until the image is opened again"
        if not self._closed:
            self._aio_read = self._refuse_read
            self._reads = None
        self._lost.set()
        # The client's other images may be lost with this one.
        self._client.check()


def _reporting(post: Callable[..., None], ended: Callable[..., None], done: Done, offset: int) -> Callable[..., None]:
    """Return the callback for a change: it asks for the result on librbd's thread, as that lets go of the interpreter
    and would make the loop wait to get it back."""

    def report(completion: Any) -> None:
        post(ended, done, offset, completion.get_return_value())

    return report
