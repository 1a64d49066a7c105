"""What pyfuse3 answers goes there and back byte for byte, and nothing of it is lost, kept or leaked."""

import errno
import logging
import os
import sys
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from fusecache.fuse import channel as channel_module
from fusecache.fuse.protocol import Opcode
from fusecache.fuse.slots import SlotState
from tests.support.fake_kernel import NODEID, Served, serving, u
from tests.support.nodes import ScriptedFile

LOOKUP, GETATTR, SETXATTR, OPENDIR = 1, 3, 21, 27
DIRECT_IO, PARALLEL_DIRECT_WRITES = 1, 64
ENTRY = bytes(range(128))


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    async with serving(monkeypatch) as served:
        yield served


@pytest.mark.parametrize("length", [0, 5, 39, 40, 41, 60_000])
async def test_a_request_and_its_reply_are_passed_on_byte_for_byte(length: int, served: Served) -> None:
    body = bytes(at & 255 for at in range(length))
    unique = served.kernel.send(SETXATTR, body)
    request = await served.names.receive()
    assert request == u(4, 40 + length, SETXATTR) + u(8, unique, NODEID) + bytes(16) + body
    assert served.in_use == 1
    reply = served.names.answer(unique, body[::-1])
    assert await served.kernel.receive() == reply
    assert served.in_use == 0
    assert not served.holds(unique)


async def test_replies_come_back_in_any_order(served: Served) -> None:
    uniques = [served.kernel.send(LOOKUP, b"name\0") for _ in range(4)]
    for _ in uniques:
        await served.names.receive()
    for unique in (uniques[2], uniques[0], uniques[3], uniques[1]):
        served.names.answer(unique, error=errno.ENOENT)
        assert await served.kernel.reply() == (unique, errno.ENOENT, b"")
    assert served.in_use == 0


async def test_data_requests_pass_a_name_request_that_hangs(served: Served) -> None:
    handle = served.open(ScriptedFile())
    served.kernel.send(LOOKUP, b"name\0")
    await served.names.receive()
    unique = served.kernel.read(handle, 0, 1)
    assert (await served.kernel.reply()).unique == unique


async def test_init_is_recorded_and_its_reply_says_what_pyfuse3_cannot(served: Served) -> None:
    offered = u(4, 7, 45, 131072, 0x7FFFFFFF, 0xFFFFFFFF) + bytes(44)
    unique = served.kernel.send(Opcode.INIT, offered)
    request = await served.names.receive()
    assert not served.channel.serving.is_set()
    served.names.answer(
        unique, u(4, 7, 38, 65536, 1 << 14) + u(2, 0, 0) + u(4, 131072, 1) + u(2, 32, 0) + u(4, 0, 0) + bytes(24)
    )
    reply = await served.kernel.reply()
    flags = 1 << 13 | 1 << 15 | 1 << 18 | 1 << 22 | 1 << 30
    assert reply.body == (
        u(4, 7, 38, 65536, flags) + u(2, 960, 720) + u(4, 1 << 20, 1) + u(2, 256, 0) + u(4, 1 << 4, 0) + bytes(24)
    )
    assert served.channel.serving.is_set()
    assert os.pread(served.channel.memory.fd, len(request), 64) == request


@pytest.mark.parametrize("opcode", [Opcode.FORGET, Opcode.BATCH_FORGET])
async def test_forgetting_is_done_at_once_and_answered_by_nobody(opcode: Opcode, served: Served) -> None:
    expected = [(0x50, 3), (0x51, 1)]
    if opcode is Opcode.BATCH_FORGET:
        served.kernel.batch_forget(*expected)
    else:
        for nodeid, lookups in expected:
            served.kernel.forget(nodeid, lookups)
    assert await served.kernel.nothing()
    assert await served.names.nothing()
    assert served.taken_back.forgotten == expected
    assert served.in_use == 0


async def test_a_batch_of_many_is_forgotten_as_a_whole(served: Served) -> None:
    expected = [(nodeid, 1) for nodeid in range(2, 4000)]
    served.kernel.batch_forget(*expected)
    assert await served.kernel.nothing()
    assert served.taken_back.forgotten == expected


@pytest.mark.parametrize(("asked", "relayed"), [(1 << 20, 1 << 17), (4096, 4096)])
async def test_a_listing_is_asked_for_in_pieces_that_pass_the_relay(asked: int, relayed: int, served: Served) -> None:
    served.kernel.send(Opcode.READDIRPLUS, u(8, 5, 0) + u(4, asked, 0) + u(8, 0) + u(4, 0, 0))
    assert (await served.names.receive())[40:] == u(8, 5, 0) + u(4, relayed, 0) + u(8, 0) + u(4, 0, 0)


@pytest.mark.parametrize("opcode", [Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.RMDIR, Opcode.LINK])
async def test_what_no_image_is_cannot_be_made(
    opcode: Opcode, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    unique = served.kernel.send(opcode, b"name\0")
    assert await served.kernel.reply() == (unique, errno.EPERM, b"")
    assert await served.names.nothing()
    assert served.in_use == 0
    assert not caplog.records


@pytest.mark.parametrize(("flags", "expected"), [(DIRECT_IO, DIRECT_IO | PARALLEL_DIRECT_WRITES), (2, 2)])
@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.CREATE])
async def test_direct_openers_may_write_in_parallel(opcode: Opcode, flags: int, expected: int, served: Served) -> None:
    entry = ENTRY if opcode is Opcode.CREATE else b""
    file = ScriptedFile()
    handle = served.open(file)
    unique = served.kernel.send(opcode, u(4, 2, 0))
    await served.names.receive()
    served.names.answer(unique, entry + u(8, handle) + u(4, flags, 0))
    assert await served.kernel.reply() == (unique, 0, entry + u(8, handle) + u(4, expected, 0))
    assert not file.closed


@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.CREATE])
async def test_an_interrupted_open_is_given_up_and_what_it_opened_is_closed(
    opcode: Opcode, served: Served, autojump_clock: MockClock
) -> None:
    unique = served.kernel.send(opcode, u(4, 2, 0))
    await served.names.receive()
    served.kernel.interrupt(unique)
    assert await served.kernel.reply() == (unique, errno.EINTR, b"")
    assert await served.names.nothing()
    assert served.in_use == 1
    file = ScriptedFile()
    entry = ENTRY if opcode is Opcode.CREATE else b""
    served.names.answer(unique, entry + u(8, served.open(file)) + u(4, 0, 0))
    assert await served.kernel.nothing()
    assert file.closed == 1
    assert served.in_use == 0
    nodeid = int.from_bytes(ENTRY[:8], sys.byteorder)
    assert served.taken_back.forgotten == ([(nodeid, 1)] if entry else [])


async def test_an_open_that_was_closed_in_the_meantime_is_still_answered(served: Served) -> None:
    unique = served.kernel.send(Opcode.OPEN, u(4, 2, 0))
    await served.names.receive()
    handle = served.open(ScriptedFile())
    served.channel.handles.close_all()
    served.names.answer(unique, u(8, handle) + u(4, 0, 0))
    assert await served.kernel.reply() == (unique, 0, u(8, handle) + u(4, 0, 0))


async def test_an_open_nobody_waits_for_any_more_is_closed(served: Served) -> None:
    unique = served.kernel.send(Opcode.OPEN, u(4, 2, 0))
    await served.names.receive()
    served.kernel.gone.add(unique)
    file = ScriptedFile()
    served.names.answer(unique, u(8, served.open(file)) + u(4, 0, 0))
    assert await served.kernel.nothing()
    assert file.closed == 1


async def test_an_interrupted_open_that_fails_later_closes_nothing(served: Served, autojump_clock: MockClock) -> None:
    unique = served.kernel.send(Opcode.OPEN, u(4, 2, 0))
    await served.names.receive()
    served.kernel.interrupt(unique)
    assert (await served.kernel.reply()).error == errno.EINTR
    served.names.answer(unique, error=errno.EBUSY)
    assert await served.kernel.nothing()
    assert served.in_use == 0


@pytest.mark.parametrize(
    "opcode", [Opcode.SETATTR, Opcode.CREATE, Opcode.UNLINK, Opcode.RENAME, Opcode.RENAME2, LOOKUP, GETATTR]
)
async def test_a_change_of_names_is_marked_while_it_is_under_way(opcode: int, served: Served) -> None:
    unique = served.kernel.send(opcode, bytes(16))
    await served.names.receive()
    slot = served.slot(unique)
    changes = opcode not in (LOOKUP, GETATTR)
    assert slot._words[0] == (SlotState.STARTED if changes else SlotState.READ)
    served.names.answer(unique, error=errno.EEXIST)
    await served.kernel.receive()
    assert served.in_use == 0
    assert slot._words[0] == SlotState.READ


async def test_an_answer_to_nothing_is_ignored(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.names.answer(998, b"late")
    assert await served.kernel.nothing()
    assert "pyfuse3 answered request 998, which is not pending" in caplog.text
    served.kernel.send(LOOKUP, b"name\0")
    await served.names.receive()


@pytest.fixture
async def narrow(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """Serve with a relay that holds a few requests only."""
    monkeypatch.setattr(channel_module, "_RELAY_BUFFER", 4096)
    async with serving(monkeypatch, slots=60) as served:
        yield served


async def test_requests_keep_their_order_while_pyfuse3_is_slow(narrow: Served) -> None:
    sent = []
    for at in range(12):
        sent.append(narrow.kernel.send(SETXATTR, bytes(1500)))
        sent.append(narrow.kernel.send(GETATTR if at % 2 else LOOKUP, u(8, 1)))
    assert await narrow.kernel.nothing()
    assert narrow.in_use > 12
    handle = narrow.open(ScriptedFile())
    unique = narrow.kernel.read(handle, 0, 1)
    assert (await narrow.kernel.reply()).unique == unique
    received = []
    for _ in range(20):
        # Room in the relay and a new request at the same time: the new one must not take the place.
        received.append(await narrow.names.receive())
        sent.append(narrow.kernel.send(GETATTR, u(8, 1)))
    received += [await narrow.names.receive() for _ in sent[20:]]
    assert [message[8:16] for message in received] == [u(8, number) for number in sent]
    await trio.testing.wait_all_tasks_blocked()
    assert narrow.in_use == len(sent)
    for number in sent:
        narrow.names.answer(number)
        assert (await narrow.kernel.reply()).unique == number
    assert narrow.in_use == 0


async def test_a_request_that_waits_for_pyfuse3_to_listen_can_be_interrupted(
    narrow: Served, autojump_clock: MockClock
) -> None:
    sent = [narrow.kernel.send(SETXATTR, bytes(1500)) for _ in range(10)]
    assert await narrow.kernel.nothing()
    narrow.kernel.interrupt(sent[-1])
    assert await narrow.kernel.reply() == (sent[-1], errno.EINTR, b"")
    for number in sent:
        assert (await narrow.names.receive())[8:16] == u(8, number)
        narrow.names.answer(number)
    assert [(await narrow.kernel.reply()).unique for _ in sent[:-1]] == sent[:-1]
    assert await narrow.kernel.nothing()
    assert narrow.in_use == 0


async def test_without_pyfuse3_names_fail_and_data_is_still_served(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    served.names.close()
    handle = served.open(ScriptedFile())
    for _ in range(20):
        unique = served.kernel.send(Opcode.UNLINK, b"name\0")
        assert await served.kernel.reply() == (unique, errno.EPIPE, b"")
        assert served.channel.memory.free[-1]._words[0] == SlotState.READ
        served.kernel.read(handle, 0, 1)
        assert (await served.kernel.reply()).error == 0
    assert served.in_use == 0
    with trio.fail_after(5):
        await served.channel.stop()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_requests_that_wait_for_pyfuse3_fail_when_it_goes(narrow: Served) -> None:
    sent = [narrow.kernel.send(Opcode.UNLINK, bytes(1500)) for _ in range(10)]
    assert await narrow.kernel.nothing()
    narrow.names.close()
    await trio.testing.wait_all_tasks_blocked()
    failed = []
    while not await narrow.kernel.nothing():
        failed.append(await narrow.kernel.reply())
    in_relay = len(sent) - len(failed)
    assert 0 < in_relay < len(sent)
    assert [reply.unique for reply in failed] == sent[in_relay:]
    assert {reply.error for reply in failed} <= {errno.EPIPE, errno.ECONNRESET}
    assert narrow.in_use == in_relay
