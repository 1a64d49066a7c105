"""Slots of writes that were given up while their payload may still be in use."""

import errno
import os
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.fuse import dataplane, slots
from fusecache.fuse.slots import MAX_WRITE
from fusecache.images.node import GivenUp
from tests.support.fake_kernel import Served, serving, u
from tests.support.nodes import ScriptedFile

SLOTS = 2
LENGTH = 5000


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    monkeypatch.setattr(slots, "GROWTH", 1)
    async with serving(monkeypatch, slots=SLOTS) as served:
        yield served


@pytest.fixture
async def file(served: Served) -> ScriptedFile:
    """A file with one write that was given up."""
    file = ScriptedFile(waits=True, end=MAX_WRITE)
    unique = served.kernel.write(served.open(file), 0, b"a" * LENGTH)
    assert await served.kernel.nothing()
    file.changes[0](GivenUp("its stack came down"))
    assert await served.kernel.receive() == u(4, 16, -errno.EIO) + u(8, unique)
    file.waits = False
    return file


async def test_a_write_that_is_given_up_is_answered_and_its_payload_stays(served: Served, file: ScriptedFile) -> None:
    handle = served.open(file)
    for number in range(20):
        served.kernel.write(handle, 0, bytes([number]) * LENGTH)
        assert (await served.kernel.reply()).error == 0
    assert served.in_use == 1
    served.channel.memory.trim()
    assert bytes(file.written[0]) == b"a" * LENGTH


async def test_a_late_end_is_not_answered_and_frees_the_slot(served: Served, file: ScriptedFile) -> None:
    file.changes[0](None)
    assert await served.kernel.nothing()
    assert served.in_use == 0
    # Both serve again, each with a reply of its own.
    file.waits = True
    handle = served.open(file)
    sent = [served.kernel.write(handle, at, b"b" * LENGTH) for at in range(SLOTS)]
    assert await served.kernel.nothing()
    for at in range(SLOTS):
        file.changes[1 + at](None)
        assert await served.kernel.reply() == (sent[at], 0, u(4, LENGTH, 0))
    assert served.in_use == 0


async def test_a_late_error_is_not_told(served: Served, file: ScriptedFile, caplog: pytest.LogCaptureFixture) -> None:
    file.changes[0](ZeroDivisionError())
    assert await served.kernel.nothing()
    assert served.in_use == 0
    assert not caplog.records


async def test_a_write_that_was_given_up_is_not_repeated_by_a_successor(served: Served, file: ScriptedFile) -> None:
    found = served.channel.memory.slots
    assert [bytes(slot.head[8:16]) for slot in found] == [bytes(8)] * (SLOTS + 1)


async def test_nobody_waits_for_a_slot_that_is_kept(served: Served, file: ScriptedFile, nursery: trio.Nursery) -> None:
    with trio.fail_after(5):
        await served.channel.stop()
    assert served.in_use == 1


async def test_who_waits_for_the_end_of_what_is_under_way_goes_on_when_it_is_given_up(
    served: Served, nursery: trio.Nursery
) -> None:
    file = ScriptedFile(waits=True, end=MAX_WRITE)
    served.kernel.write(served.open(file), 0, b"a" * LENGTH)
    assert await served.kernel.nothing()
    stopped = trio.Event()

    async def stop() -> None:
        await served.channel.stop()
        stopped.set()

    nursery.start_soon(stop)
    await wait_all_tasks_blocked()
    assert not stopped.is_set()
    file.changes[0](GivenUp("its stack came down"))
    with trio.fail_after(5):
        await stopped.wait()
    # The mount's end does not change what becomes of a late one.
    served.channel.close()
    file.changes[0](None)
    assert served.in_use == 0


async def test_an_interrupt_of_a_write_that_was_given_up_is_ignored(served: Served, file: ScriptedFile) -> None:
    (slot,) = [slot for slot in served.channel.memory.slots if slot.kept]
    served.kernel.interrupt(slot.unique)
    assert await served.kernel.nothing()
    assert slot.kept


async def give_up(served: Served, file: ScriptedFile, content: bytes) -> None:
    """Have one more write given up."""
    file.waits = True
    served.kernel.write(served.open(file), 0, content)
    assert await served.kernel.nothing()
    file.changes[-1](GivenUp("its stack came down"))
    assert (await served.kernel.reply()).error == errno.EIO
    file.waits = False


async def test_slots_that_are_kept_leave_as_many_for_others(served: Served, file: ScriptedFile) -> None:
    for number in range(1, 3 * SLOTS):
        await give_up(served, file, bytes([number]) * LENGTH)
    memory = served.channel.memory
    assert (served.in_use, len(memory.free), served.full) == (3 * SLOTS, SLOTS, [])
    other = ScriptedFile(waits=True, end=MAX_WRITE)
    sent = [served.kernel.write(served.open(other), 0, b"x" * LENGTH) for _ in range(SLOTS)]
    assert await served.kernel.nothing()
    for done in other.changes:
        done(None)
    assert [(await served.kernel.reply()).unique for _ in range(SLOTS)] == sent
    memory.trim()
    assert [bytes(data) for data in file.written] == [b"a" * LENGTH] + [
        bytes([number]) * LENGTH for number in range(1, 3 * SLOTS)
    ]
    # A successor finds as many slots as there are, and none that holds a request.
    assert os.pread(memory.fd, 4, 12) == u(4, 4 * SLOTS)
    assert os.fstat(memory.fd).st_size == memory_size(4 * SLOTS)
    assert [bytes(slot.head[8:16]) for slot in memory.slots] == [bytes(8)] * 4 * SLOTS


def memory_size(count: int) -> int:
    return 4096 + (2 << 20) + count * (4096 + MAX_WRITE)


async def test_slots_whose_writes_end_late_are_kept_for_the_next_in_need(served: Served, file: ScriptedFile) -> None:
    memory = served.channel.memory
    for _ in range(3):
        await give_up(served, file, b"b" * LENGTH)
        assert (served.in_use, len(memory.free), len(memory.slots)) == (2, SLOTS, SLOTS + 2)
        file.changes[-1](None)
        assert (served.in_use, len(memory.free)) == (1, SLOTS)
    assert bytes(file.written[0]) == b"a" * LENGTH


async def test_where_very_many_slots_are_kept_writes_are_copied_and_keep_none(
    served: Served, file: ScriptedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataplane, "MOST_KEPT", 3)
    for _ in range(20):
        await give_up(served, file, b"b" * LENGTH)
    assert (served.in_use, len(served.channel.memory.slots)) == (3, SLOTS + 3)
    file.waits = True
    waiting = [served.kernel.write(served.open(file), 0, b"c" * LENGTH) for _ in range(SLOTS)]
    assert await served.kernel.nothing()
    # The late ends of copied writes end nothing of those that have their slots now.
    for done in file.changes[3:-SLOTS]:
        done(None)
    assert await served.kernel.nothing()
    assert bytes(file.written[10]) == b"b" * LENGTH
    for done in file.changes[-SLOTS:]:
        done(None)
    assert [await served.kernel.reply() for _ in waiting] == [(one, 0, u(4, LENGTH, 0)) for one in waiting]
    # The late end of one that is kept has writes made from their slots again.
    file.changes[0](None)
    await give_up(served, file, b"d" * LENGTH)
    assert (served.in_use, len(served.channel.memory.slots)) == (3, SLOTS + 3)


async def test_without_memory_for_another_slot_the_others_serve(
    served: Served, file: ScriptedFile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "ftruncate", refuse)
    await give_up(served, file, b"b" * LENGTH)
    assert "no memory for another one" in caplog.text
    other = ScriptedFile(end=MAX_WRITE)
    served.kernel.write(served.open(other), 0, b"c" * LENGTH)
    assert (await served.kernel.reply()).error == 0
    assert bytes(file.written[1]) == b"b" * LENGTH


async def test_slots_for_which_there_was_no_other_serve_again_when_their_writes_end(
    served: Served, file: ScriptedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "ftruncate", refuse)
    for _ in range(SLOTS):
        await give_up(served, file, b"b" * LENGTH)
    memory = served.channel.memory
    assert not memory.free
    other = ScriptedFile(end=MAX_WRITE)
    served.kernel.write(served.open(other), 0, b"c" * LENGTH)
    assert await served.kernel.nothing()
    for done in file.changes[1:]:
        done(None)
    assert (await served.kernel.reply()).error == 0
    assert (served.in_use, len(memory.free)) == (1, SLOTS)
    # As ever: the next one is put away.
    file.changes[0](None)
    assert (served.in_use, len(memory.free)) == (0, SLOTS)


async def test_slots_for_which_there_was_no_other_are_made_up_for_when_there_is_memory_again(
    served: Served, file: ScriptedFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(slots, "GROWTH", 3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", refuse)
        await give_up(served, file, b"b" * LENGTH)
    memory = served.channel.memory
    assert len(memory.free) == SLOTS - 1
    await give_up(served, file, b"b" * LENGTH)
    assert (served.in_use, len(memory.free)) == (3, SLOTS)
