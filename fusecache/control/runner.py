"""Commands under way: from the bytes of one ``write(2)`` to its result.

Owns which commands are running, what the last failure of each image was, and how long a writer waits. It must not know
files.

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
from fusecache.control.progress import IDLE, Written, progress_line, written_by
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
        since: when it began, seconds since the epoch; *clock* the same on trio's clock.
        written: what was written back before it began.
        error: how it ended, once *ended* is set.
    """

    target: Target
    command: Command
    since: float
    clock: float
    written: Written
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
        self._last_errors: dict[str, str] = {}

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
        running = Running(target, command, time.time(), trio.current_time(), written_by(self._service.all_open()))
        self._nursery.start_soon(self._run, running)
        self._nursery.start_soon(self._answer, running, done)
        self.running.append(running)

    def last_error(self, info: ImageInfo) -> str:
        """Return why the last failed command on an image failed; empty where none has."""
        return self._last_errors.get(info.key, "")

    def progress(self, info: ImageInfo | None, kind: type[Flush | Snapshot] = Flush) -> str:
        """Return how far the oldest flush, or what else *kind* says, that concerns an image, or with None any image,
        has come in writing back; or ``idle``."""
        for running in self.running:
            image, command = running.target.image, running.command
            if isinstance(command, kind) and (info is None or image is None or image.key == info.key):
                key = info.key if info is not None else image.key if image is not None else None
                images = [opened for opened in self._service.all_open() if key in (None, opened.info.key)]
                elapsed = trio.current_time() - running.clock
                layer = command.layer if isinstance(command, Flush) else None
                return progress_line(images, layer, running.written, elapsed)
        return IDLE

    async def _run(self, running: Running) -> None:
        target, command = running.target, running.command
        try:
            if target.image is None:
                await self._executor.flush_all(self._record_image_failure)
            else:
                await self._executor.execute(target.image, command)
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
        if target.image is not None:
            self._last_errors[target.image.key] = printable(reason)
        self._emit(kind, f"{target}: {reason}")

    def _record_image_failure(self, info: ImageInfo, error: Exception) -> None:
        _log_unexpected(error)
        self._last_errors[info.key] = printable(f"flush all: {_reason_of(error)}")


def _mount_ending() -> OSError:
    return OSError(errno.EINTR, "the mount is ending")


def _log_unexpected(error: Exception) -> None:
    if not isinstance(error, FusecacheError | OSError):
        log.error("a command failed in an unexpected way", exc_info=error)


def _reason_of(error: Exception) -> str:
    return str(error) or repr(error)
