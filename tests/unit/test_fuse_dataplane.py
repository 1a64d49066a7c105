"""Requests that move bytes, from the kernel's bytes to the reply's, through a channel with the test as the kernel."""

import errno
import logging
from collections.abc import AsyncIterator, Callable

import pytest
import trio
from trio.testing import MockClock

from fusecache.api import PENDING, Attempt, Buffers, Done, ReadDone
from fusecache.api.errors import ImageGone, OutOfRange
from fusecache.fuse.slots import Slot, SlotState
from tests.support.fake_kernel import FakeKernel, Served, serving, u
from tests.support.nodes import ScriptedFile

KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE = 1, 2, 8, 16
SEEK_END, SEEK_DATA, SEEK_HOLE = 2, 3, 4


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    async with serving(monkeypatch) as served:
        yield served


Ask = Callable[[FakeKernel, int], int]
ASKED: dict[str, tuple[Ask, bytes, str]] = {
    "READ": (lambda kernel, handle: kernel.read(handle, 7, 5), b"\7" * 5, "read 7 5"),
    "WRITE": (lambda kernel, handle: kernel.write(handle, 3, b"data"), u(4, 4, 0), "write 3 4"),
    "FSYNC": (lambda kernel, handle: kernel.fsync(handle), b"", "flush"),
    "punch": (lambda kernel, handle: kernel.fallocate(handle, 10, 20, PUNCH_HOLE | KEEP_SIZE), b"", "discard 10 20"),
    "zero": (lambda kernel, handle: kernel.fallocate(handle, 10, 20, ZERO_RANGE), b"", "zero 10 20"),
    "zero, keep size": (
        lambda kernel, handle: kernel.fallocate(handle, 10, 2000, ZERO_RANGE | KEEP_SIZE),
        b"",
        "zero 10 2000",
    ),
    "allocate": (lambda kernel, handle: kernel.fallocate(handle, 10, 20, 0), b"", "allocate 10 20 False"),
    "keep size": (lambda kernel, handle: kernel.fallocate(handle, 10, 20, KEEP_SIZE), b"", "allocate 10 20 True"),
    "SEEK_HOLE": (lambda kernel, handle: kernel.lseek(handle, 10, SEEK_HOLE), u(8, 11), "seek 10 True"),
    "SEEK_DATA": (lambda kernel, handle: kernel.lseek(handle, 10, SEEK_DATA), u(8, 11), "seek 10 False"),
}
CHANGES = [name for name in ASKED if name != "READ" and not name.startswith("SEEK")]
ALL = pytest.mark.parametrize(("ask", "body", "asked"), ASKED.values(), ids=ASKED)
EVERY_CHANGE = pytest.mark.parametrize(("ask", "body", "asked"), [ASKED[name] for name in CHANGES], ids=CHANGES)


@ALL
async def test_a_request_is_answered_with_exactly_these_bytes(
    ask: Ask, body: bytes, asked: str, served: Served
) -> None:
    file = ScriptedFile()
    unique = ask(served.kernel, served.open(file))
    assert await served.kernel.receive() == u(4, 16 + len(body), 0) + u(8, unique) + body
    assert file.asked == [asked]
    assert await served.kernel.nothing()
    assert await served.names.nothing()
    assert served.in_use == 0
    assert not served.holds(unique)


@ALL
async def test_a_request_that_waits_keeps_its_slot_until_it_is_answered(
    ask: Ask, body: bytes, asked: str, served: Served
) -> None:
    file = ScriptedFile(waits=True)
    unique = ask(served.kernel, served.open(file))
    assert await served.kernel.nothing()
    assert served.in_use == 1
    assert served.slot(unique).head[8:16] == u(8, unique)
    finish(file)
    assert await served.kernel.receive() == u(4, 16 + len(body), 0) + u(8, unique) + body
    assert served.in_use == 0
    assert not served.holds(unique)


def finish(file: ScriptedFile, error: Exception | None = None) -> None:
    """End what waits."""
    for read_done in file.reads:
        read_done(error, () if error else (b"\7\7", b"\7", memoryview(b"\7\7")))
    for done in file.changes:
        done(error)
    file.sought.set()


@ALL
@pytest.mark.parametrize(
    ("failure", "number"),
    [(ImageGone("gone"), errno.ESTALE), (OSError(errno.ENXIO, "none"), errno.ENXIO), (ZeroDivisionError(), errno.EIO)],
)
async def test_whatever_a_request_raises_is_answered_and_the_next_is_served(
    ask: Ask, body: bytes, asked: str, failure: Exception, number: int, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    file = ScriptedFile()
    handle = served.open(file)
    file.failure = failure
    unique = ask(served.kernel, handle)
    assert await served.kernel.receive() == u(4, 16, -number) + u(8, unique)
    assert ("ZeroDivisionError" in caplog.text) == (number == errno.EIO)
    assert served.in_use == 0
    file.failure = None
    ask(served.kernel, handle)
    assert (await served.kernel.reply()).error == 0


@pytest.mark.parametrize("ask", [ASKED[name][0] for name in ("READ", *CHANGES)], ids=["READ", *CHANGES])
async def test_an_error_that_comes_later_is_answered(
    ask: Ask, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    file = ScriptedFile(waits=True)
    unique = ask(served.kernel, served.open(file))
    assert await served.kernel.nothing()
    finish(file, ImageGone("gone"))
    assert await served.kernel.receive() == u(4, 16, -errno.ESTALE) + u(8, unique)
    assert served.in_use == 0
    assert not caplog.records


@ALL
async def test_a_handle_that_is_not_open_is_a_bad_descriptor(
    ask: Ask, body: bytes, asked: str, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    unique = ask(served.kernel, 12345)
    assert await served.kernel.receive() == u(4, 16, -errno.EBADF) + u(8, unique)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("offset", "length", "body", "asked"),
    [(1000, 100, bytes([1000 & 255]) * 24, ["read 1000 24"]), (1024, 1, b"", []), (1 << 62, 4096, b"", [])],
)
async def test_a_read_ends_where_the_file_ends(
    offset: int, length: int, body: bytes, asked: list[str], served: Served
) -> None:
    file = ScriptedFile()
    unique = served.kernel.read(served.open(file), offset, length)
    assert await served.kernel.reply() == (unique, 0, body)
    assert file.asked == asked


class Clipped(ScriptedFile):
    """Accepts writes up to its end."""

    def clip(self, offset: int, length: int) -> int:
        if offset >= self.end:
            raise OutOfRange("nothing can be written there")
        return self.end - offset


async def test_a_write_past_the_end_is_cut_or_refused(served: Served) -> None:
    file = Clipped()
    handle = served.open(file)
    unique = served.kernel.write(handle, 1000, b"a" * 100)
    assert await served.kernel.reply() == (unique, 0, u(4, 24, 0))
    assert file.asked == ["write 1000 24"]
    served.kernel.write(handle, 1024, b"a")
    assert (await served.kernel.reply()).error == errno.ENOSPC
    file.waits = True
    unique = served.kernel.write(handle, 1000, b"a" * 100)
    assert await served.kernel.nothing()
    finish(file)
    assert await served.kernel.reply() == (unique, 0, u(4, 24, 0))


async def test_the_data_of_a_write_that_waits_stays_as_it_came(served: Served) -> None:
    file = ScriptedFile(waits=True, end=1 << 20)
    handle = served.open(file)
    payloads = [bytes([at]) * 20_000 for at in range(4)]
    for payload in payloads:
        served.kernel.write(handle, 0, payload)
    assert await served.kernel.nothing()
    assert file.written == payloads
    finish(file)
    assert [(await served.kernel.reply()).body for _ in payloads] == [u(4, 20_000, 0)] * 4


@pytest.mark.parametrize(
    ("mode", "length"),
    [(PUNCH_HOLE, 10), (COLLAPSE, 10), (ZERO_RANGE | PUNCH_HOLE, 10), (ZERO_RANGE, 2000), (64, 10)],
)
async def test_ways_to_allocate_that_an_image_does_not_have_are_not_supported(
    mode: int, length: int, served: Served
) -> None:
    file = ScriptedFile()
    served.kernel.fallocate(served.open(file), 0, length, mode)
    assert (await served.kernel.reply()).error == errno.EOPNOTSUPP
    assert not file.asked


async def test_only_data_and_holes_are_sought(served: Served) -> None:
    served.kernel.lseek(served.open(ScriptedFile()), 0, SEEK_END)
    assert (await served.kernel.reply()).error == errno.EINVAL


async def test_closing_a_descriptor_flushes_nothing_and_the_last_one_closes_the_file(served: Served) -> None:
    file = ScriptedFile()
    handle = served.open(file)
    flushed = served.kernel.flush(handle)
    assert await served.kernel.receive() == u(4, 16, 0) + u(8, flushed)
    assert not file.asked
    released = served.kernel.release(handle)
    assert await served.kernel.receive() == u(4, 16, 0) + u(8, released)
    assert (file.closed, served.channel.handles.files) == (1, {})


async def test_a_file_that_fails_to_close_is_released_and_logged(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    file = ScriptedFile()
    handle = served.open(file)
    file.failure = ZeroDivisionError()
    served.kernel.release(handle)
    assert (await served.kernel.reply()).error == 0
    assert "closing a file failed" in caplog.text


async def test_an_interrupted_read_is_given_up_soon_and_its_late_result_dropped(
    served: Served, autojump_clock: MockClock
) -> None:
    file = ScriptedFile(waits=True)
    handle = served.open(file)
    started = trio.current_time()
    unique = served.kernel.read(handle, 0, 5)
    for _ in range(3):
        served.kernel.interrupt(unique)
    assert await served.kernel.receive() == u(4, 16, -errno.EINTR) + u(8, unique)
    assert 0 <= trio.current_time() - started <= 1.5
    await trio.sleep(10)
    assert await served.kernel.nothing()
    # The stack still works on it: nobody else may use the slot.
    assert served.in_use == 1
    finish(file)
    assert await served.kernel.nothing()
    assert served.in_use == 0


async def test_a_read_that_ends_soon_after_an_interrupt_is_answered_with_its_data(
    served: Served, autojump_clock: MockClock
) -> None:
    file = ScriptedFile(waits=True)
    unique = served.kernel.read(served.open(file), 0, 5)
    served.kernel.interrupt(unique)
    assert await served.kernel.nothing()
    finish(file)
    assert await served.kernel.reply() == (unique, 0, b"\7" * 5)
    file.reads.clear()
    again = served.kernel.read(next(iter(served.channel.handles.files)), 0, 5)
    await trio.sleep(10)
    # The interrupt was another request's, in the same slot.
    assert await served.kernel.nothing()
    finish(file)
    assert await served.kernel.reply() == (again, 0, b"\7" * 5)


async def test_an_interrupted_seek_is_given_up(served: Served, autojump_clock: MockClock) -> None:
    file = ScriptedFile(waits=True)
    unique = served.kernel.lseek(served.open(file), 0, SEEK_HOLE)
    served.kernel.interrupt(unique)
    assert await served.kernel.reply() == (unique, errno.EINTR, b"")
    finish(file)
    assert await served.kernel.nothing()
    assert served.in_use == 0


@EVERY_CHANGE
async def test_an_interrupted_change_is_done_and_answered(
    ask: Ask, body: bytes, asked: str, served: Served, autojump_clock: MockClock
) -> None:
    file = ScriptedFile(waits=True)
    unique = ask(served.kernel, served.open(file))
    served.kernel.interrupt(unique)
    await trio.sleep(100)
    assert await served.kernel.nothing()
    finish(file)
    assert await served.kernel.reply() == (unique, 0, body)


@pytest.mark.parametrize(("failure", "result"), [(None, 0), (ImageGone("gone"), errno.ESTALE)])
async def test_an_interrupted_command_is_answered_at_once_and_its_end_is_recorded(
    failure: Exception | None, result: int, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked: list[tuple[SlotState, int]] = []
    mark = Slot.mark

    def note(slot: Slot, state: SlotState, result: int = 0) -> None:
        marked.append((state, result))
        mark(slot, state, result)

    monkeypatch.setattr(Slot, "mark", note)
    file = ScriptedFile(waits=True, interruptible=True)
    unique = served.kernel.write(served.open(file), 0, b"all\n")
    assert await served.kernel.nothing()
    assert marked == [(SlotState.STARTED, 0)]
    served.kernel.interrupt(unique)
    assert await served.kernel.reply() == (unique, errno.EINTR, b"")
    finish(file, failure)
    assert marked[1:] == [(SlotState.DONE, result), (SlotState.READ, 0)]
    assert await served.kernel.nothing()
    assert served.in_use == 0


async def test_an_interrupt_of_what_has_ended_is_ignored(served: Served) -> None:
    handle = served.open(ScriptedFile())
    unique = served.kernel.read(handle, 0, 5)
    assert (await served.kernel.reply()).unique == unique
    served.kernel.interrupt(unique)
    served.kernel.interrupt(1 << 60)
    assert await served.kernel.nothing()
    assert served.in_use == 0


async def test_data_that_the_kernel_refuses_becomes_an_error(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    handle = served.open(ScriptedFile())
    served.kernel.refusals.append(OSError(errno.EINVAL, "bad data"))
    unique = served.kernel.read(handle, 0, 5)
    assert await served.kernel.reply() == (unique, errno.EIO, b"")
    assert "the kernel refused data: [Errno 22] bad data" in caplog.text


@ALL
async def test_a_reply_nobody_waits_for_ends_its_request_quietly(
    ask: Ask, body: bytes, asked: str, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    file = ScriptedFile(waits=True)
    unique = ask(served.kernel, served.open(file))
    assert await served.kernel.nothing()
    served.kernel.gone.add(unique)
    finish(file)
    assert await served.kernel.nothing()
    assert served.in_use == 0
    assert not caplog.records


class Scattered(ScriptedFile):
    """Returns every byte in a buffer of its own."""

    def read(self, offset: int, length: int, done: ReadDone) -> Buffers | Attempt:
        buffers = [bytes([at & 255]) for at in range(length)]
        if not self.waits:
            return buffers
        self.reads.append(lambda error, _: done(error, buffers))
        return PENDING


@pytest.mark.parametrize("waits", [False, True])
async def test_data_in_more_pieces_than_one_system_call_takes_is_read(waits: bool, served: Served) -> None:
    file = Scattered(waits=waits, end=4096)
    unique = served.kernel.read(served.open(file), 0, 3000)
    assert await served.kernel.nothing() == waits
    finish(file)
    assert await served.kernel.reply() == (unique, 0, bytes(at & 255 for at in range(3000)))


class Kicking(ScriptedFile):
    """Ends every flush from another thread's result, as backends do."""

    def __init__(self, served: Served) -> None:
        super().__init__()
        self._completions = served.completions

    def flush(self, done: Done) -> Attempt:
        self._completions.expect()
        trio.lowlevel.start_thread_soon(lambda: self._completions.post(done, None), lambda _: None)
        return PENDING


@pytest.mark.parametrize("spin", [0.0, 0.002])
async def test_results_of_threads_are_answered_whether_the_channel_spins_or_sleeps(
    spin: float, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    async with serving(monkeypatch, spin=spin) as served:
        nursery.start_soon(served.completions.run)
        handle = served.open(Kicking(served))
        for _ in range(20):
            unique = served.kernel.fsync(handle)
            assert await served.kernel.reply() == (unique, 0, b"")
        nursery.cancel_scope.cancel()
