"""Commands under way: from the bytes of one ``write(2)`` to its result.

Owns which commands are running, what is remembered of failures, and how long a writer waits. It must not know files.

The end of each command is an event: ``command-done``, ``command-failed``, or ``command-refused`` where it would have
lost data.

A command runs in the mount's commands nursery, not in its writer: it goes on when the writer is interrupted or has
waited long enough, and shows in ``status`` until it ends. Two commands are never merged, however equal: the later one
must also reach what became dirty after the earlier one began.
"""

import errno
import logging
import time
from dataclasses import dataclass, field

import trio

from fusecache.api.backend import ImageInfo
from fusecache.api.errors import BadCommand, FusecacheError, LayerDirty
from fusecache.api.layer import Emit
from fusecache.api.volume import Done
from fusecache.control.commands import Command, CommandFile, Flush, Snapshot, parse
from fusecache.control.execute import Executor
from fusecache.control.failures import MOUNT, LastErrors
from fusecache.control.progress import IDLE, LOOK_EVERY, Pace, left_of, written_by
from fusecache.control.service import ImageService
from fusecache.metrics.text import printable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Target:
    """The control file that was written.

    Attributes:
        image: None for the mount's own ``flush``.
        layer: of ``writeback_rate`` only.
    """

    file: CommandFile
    image: ImageInfo | None = None
    layer: int | None = None

    def __str__(self) -> str:
        if self.image is None:
            return self.file.value
        layer = "" if self.layer is None else f"layers/{self.layer}/"
        return f"{printable(self.image.name)}/{layer}{self.file.value}"


@dataclass(eq=False, slots=True)
class Running:
    """A command under way.

    Attributes:
        since: when it began, seconds since the epoch.
        pace: of its write-back.
        error: how it ended, once *ended* is set.
    """

    target: Target
    command: Command
    since: float
    pace: Pace
    error: BaseException | None = None
    ended: trio.Event = field(default_factory=trio.Event)


class CommandRunner:
    """Carries out what is written to control files.

    Args:
        executor: carries them out.
        nursery: where commands run; it outlives every writer. Its cancellation ends the running commands, and each
            writer that still waits gets EINTR.
        control_wait: seconds after which a writer gets EINPROGRESS while its command goes on.

    Attributes:
        running: the commands under way, oldest first.
    """

    def __init__(
        self,
        service: ImageService,
        executor: Executor,
        nursery: trio.Nursery,
        *,
        emit: Emit,
        control_wait: float,
    ) -> None:
        self.running: list[Running] = []
        self._service = service
        self._executor = executor
        self._nursery = nursery
        self._emit = emit
        self._control_wait = control_wait
        self._last_errors = LastErrors()

    def submit(self, target: Target, content: bytes, done: Done) -> None:
        """Start the command in *content*; ``done`` is called once with its result, never from inside this call.

        Raises:
            BadCommand: it was not understood; nothing was changed, and ``done`` is not called.
        """
        try:
            command = parse(target.file, content, target.layer)
        except BadCommand as error:
            self._record_failure(target, str(error))
            raise
        pace = Pace(trio.current_time(), written_by(self._service.all_open()))
        running = Running(target, command, time.time(), pace)
        self._nursery.start_soon(self._run, running)
        if isinstance(command, Flush | Snapshot):
            self._nursery.start_soon(self._watch, running)
        self._nursery.start_soon(self._answer, running, done)
        self.running.append(running)

    def last_error(self, info: ImageInfo | None) -> str:
        """Return why the last failed command on an image, or with None on the mount, failed, or the last failed open;
        empty where none has, or each was followed by one of the same kind that did not fail."""
        return self._last_errors.latest(_key(info))

    def record_open_failure(self, info: ImageInfo, error: Exception) -> None:
        """Note why an image could not be opened: whoever opens its file sees no more than the errno."""
        self._last_errors.failed(info.key, None, f"open: {_reason_of(error)}")

    def record_opened(self, info: ImageInfo) -> None:
        """An image was opened: why it could not be before is over."""
        self._last_errors.succeeded(info.key, None)

    def progress(self, info: ImageInfo | None, kind: type[Flush | Snapshot] = Flush) -> str:
        """Return how far the oldest flush, or what else *kind* says, that concerns an image, or with None any image,
        has come in writing back; or ``idle``."""
        for running in self.running:
            image, command = running.target.image, running.command
            if isinstance(command, kind) and (info is None or image is None or image.key == info.key):
                key = info.key if info is not None else image.key if image is not None else None
                images = [opened for opened in self._service.all_open() if key in (None, opened.info.key)]
                self._look(running)
                return running.pace.text(left_of(images, command.layer if isinstance(command, Flush) else None))
        return IDLE

    def _look(self, running: Running) -> None:
        image = running.target.image
        images = [opened for opened in self._service.all_open() if image is None or opened.info.key == image.key]
        running.pace.look(trio.current_time(), written_by(images))

    async def _watch(self, running: Running) -> None:
        """Look now and then, so that whoever asks learns how long nothing has moved."""
        while not running.ended.is_set():
            with trio.move_on_after(LOOK_EVERY):
                await running.ended.wait()
            self._look(running)

    async def _run(self, running: Running) -> None:
        target, command = running.target, running.command
        try:
            if target.image is None:
                await self._executor.flush_all(self._record_image_failure)
            else:
                await self._executor.execute(target.image, command)
            self._record_success(target)
            self._emit("command-done", f"{target}: {command}")
        except BadCommand as error:
            running.error = error
            self._record_failure(target, str(error))
        except Exception as error:
            running.error = error
            _log_unexpected(error)
            kind = "command-refused" if isinstance(error, LayerDirty) else "command-failed"
            self._record_failure(target, f"{command}: {_reason_of(error)}", kind)
        except BaseException:
            running.error = _mount_ending()
            raise
        finally:
            self.running.remove(running)
            running.ended.set()

    async def _answer(self, running: Running, done: Done) -> None:
        error = _mount_ending()
        try:
            with trio.move_on_after(self._control_wait):
                await running.ended.wait()
            error = OSError(errno.EINPROGRESS, "the command goes on")
        finally:
            done(running.error if running.ended.is_set() else error)

    def _record_failure(self, target: Target, reason: str, kind: str = "command-failed") -> None:
        self._last_errors.failed(_key(target.image), target.file, reason)
        self._emit(kind, f"{target}: {reason}")

    def _record_success(self, target: Target) -> None:
        self._last_errors.succeeded(_key(target.image), target.file)
        if target.image is None:
            self._last_errors.all_flushed()

    def _record_image_failure(self, info: ImageInfo, error: Exception) -> None:
        _log_unexpected(error)
        self._last_errors.failed(info.key, CommandFile.FLUSH, f"flush all: {_reason_of(error)}")


def _key(image: ImageInfo | None) -> str:
    return MOUNT if image is None else image.key


def _mount_ending() -> OSError:
    return OSError(errno.EINTR, "the mount is ending")


def _log_unexpected(error: Exception) -> None:
    if not isinstance(error, FusecacheError | OSError):
        log.error("a command failed in an unexpected way", exc_info=error)


def _reason_of(error: Exception) -> str:
    return str(error) or repr(error)
