"""Slots of writes that were given up while their payload may still be in use."""

import errno
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.fuse.slots import MAX_WRITE
from fusecache.images.node import GivenUp
from tests.support.fake_kernel import Served, serving, u
from tests.support.nodes import ScriptedFile

SLOTS = 2
LENGTH = 5000


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
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
    slots = served.channel.memory.slots
    assert [bytes(slot.head[8:16]) for slot in slots] == [bytes(8)] * SLOTS


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


async def test_with_all_slots_kept_one_late_end_is_enough_to_go_on(served: Served, file: ScriptedFile) -> None:
    file.waits = True
    handle = served.open(file)
    served.kernel.write(handle, 0, b"b" * LENGTH)
    assert await served.kernel.nothing()
    file.changes[1](GivenUp("its stack came down"))
    assert (await served.kernel.reply()).error == errno.EIO
    file.waits = False
    waiting = served.kernel.write(handle, 0, b"c" * LENGTH)
    assert await served.kernel.nothing()
    file.changes[0](None)
    assert (await served.kernel.reply()).unique == waiting
    assert bytes(file.written[1]) == b"b" * LENGTH
