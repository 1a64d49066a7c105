"""The level below and the mark of dirty data, as devices of a timeline.

Owns how an image in memory, and the durable mark that a layer's data are dirty, outlive a process. It must not know
layers.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import trio

from fusecache.testing import AttemptMode, MemoryImage, MemoryVolume, Request
from fusecache.testing.interposed import Finish, InterposedVolume
from fusecache.testing.requests import CHANGES
from fusecache.testing.sparse import SparseBytes
from layers.rwl.tests.support.timeline import SECTOR, Device, Timeline

T = TypeVar("T")

_PAGE: Final = 4096
_TORN: Final = 2
_BEYOND: Final = 3


class RecordedImage(InterposedVolume):
    """A memory volume whose changes and flushes are events of a timeline.

    Each process makes a new one of what the device holds, so what a dead one did afterwards is gone.

    Args:
        device: the image's bytes.
        life: the process.
        attempts: as of :class:`~fusecache.testing.MemoryVolume`.
    """

    def __init__(self, device: Device, life: int, attempts: AttemptMode) -> None:
        content = SparseBytes(len(device.content))
        content.write(0, bytes(device.content))
        self._memory = MemoryVolume(image=MemoryImage("image", content), attempts=attempts)
        super().__init__(self._memory)
        self._device = device
        self._life = life

    async def _through(self, request: Request, call: Callable[[], Awaitable[T]]) -> T:
        covered = list(self._device.unordered)
        result = await call()
        self._note(request, covered)
        return result

    def _attempt(
        self, request: Request, attempt: Callable[[Finish], Any], call: Callable[[], Awaitable[Any]], finish: Finish
    ) -> Any:
        covered = list(self._device.unordered)

        def ended(error: BaseException | None, result: Any) -> None:
            if error is None:
                self._note(request, covered)
            finish(error, result)

        outcome = attempt(ended)
        if self._memory.attempts == "done":
            self._note(request, covered)
        return outcome

    def _note(self, request: Request, covered: list[int]) -> None:
        """Make the events of a request that has just taken effect."""
        if request.operation == "flush":
            self._device.order(self._life, covered)
        elif request.operation == "resize":
            self._device.resize(self._life, self._memory.size)
        elif request.operation in CHANGES:
            for at in range(request.offset, request.end, _PAGE):
                length = min(_PAGE, request.end - at)
                self._device.store(self._life, at, self._memory.content.read(at, length))


class RecordedMark:
    """The durable mark that a layer holds dirty data (:class:`fusecache.api.DirtyMark`). Opening makes durable what it
    says."""

    def __init__(self, device: Device, life: int) -> None:
        self._device = device
        self._life = life
        self.is_set = is_marked(device.content)
        self.is_torn = is_torn(device.content)
        self.is_torn_beyond = device.content[0] == _BEYOND
        self.files_id = device.content[1:].rstrip(b"\0").decode()
        if device.unordered:
            device.order(life, device.unordered)

    async def set(self, files_id: str = "") -> None:
        """Set it, durably."""
        await self._store(b"\1" + files_id.encode())
        self.is_set, self.files_id = True, files_id

    async def clear(self) -> None:
        """Take it off, durably."""
        self.is_set = self.is_torn = self.is_torn_beyond = False
        await self._store(b"\0")

    async def tear(self, *, beyond: bool = False) -> None:
        """Have it say torn, durably."""
        if not self.is_torn or (beyond and not self.is_torn_beyond):
            await self._store(bytes([_BEYOND if beyond else _TORN]))
            self.is_set = self.is_torn = True
            self.is_torn_beyond = beyond

    async def mend(self) -> None:
        """Have it say torn no more, durably."""
        if self.is_torn:
            self.is_torn = self.is_torn_beyond = False
            await self._store(b"\1")

    async def _store(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        number = self._device.store(self._life, 0, data)
        await trio.lowlevel.checkpoint()
        if number is not None:
            self._device.order(self._life, [number])


def mark_device(timeline: Timeline, name: str) -> Device:
    """Return a mark that is not set."""
    return Device(timeline, name, bytes(SECTOR), SECTOR)


def is_marked(content: bytes | bytearray) -> bool:
    """Say whether the mark is set."""
    return content[0] != 0


def is_torn(content: bytes | bytearray) -> bool:
    """Say whether the mark says torn."""
    return content[0] in (_TORN, _BEYOND)
