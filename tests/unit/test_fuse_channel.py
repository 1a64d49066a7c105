"""The channel's loop: when it reads, when it stops reading, how it sleeps and how it ends."""

import errno
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusecache.fuse import channel as channel_module
from tests.support.fake_kernel import Served, serving, u
from tests.support.nodes import ScriptedFile

LOOKUP = 1
SLOTS = 8


@pytest.fixture
async def served(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    async with serving(monkeypatch, slots=SLOTS) as served:
        yield served


async def test_with_all_slots_taken_nothing_is_read_until_one_is_free(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    file = ScriptedFile(waits=True)
    handle = served.open(file)
    sent = [served.kernel.write(handle, at, b"a") for at in range(SLOTS + 3)]
    assert await served.kernel.nothing()
    assert (served.in_use, served.full) == (SLOTS, [True])
    assert file.asked == [f"write {at} 1" for at in range(SLOTS)]
    assert f"all {SLOTS} request slots are taken" in caplog.text
    file.changes[3](None)
    assert (await served.kernel.reply()).unique == sent[3]
    await wait_all_tasks_blocked()
    assert (served.in_use, served.full) == (SLOTS, [True])
    assert file.asked[SLOTS:] == [f"write {SLOTS} 1"]
    for done in [done for at, done in enumerate(file.changes) if at != 3]:
        done(None)
    await wait_all_tasks_blocked()
    assert served.full == [True, False]
    assert len(file.asked) == SLOTS + 3
    for done in file.changes[SLOTS + 1 :]:
        done(None)
    assert sorted([(await served.kernel.reply()).unique for _ in range(SLOTS + 2)]) == sorted({*sent} - {sent[3]})
    assert served.in_use == 0


async def test_a_relayed_request_takes_a_slot_like_any_other(served: Served) -> None:
    sent = [served.kernel.send(LOOKUP, b"name\0") for _ in range(SLOTS + 1)]
    assert await served.kernel.nothing()
    assert served.full == [True]
    for unique in sent:
        assert (await served.names.receive())[8:16] == u(8, unique)
        served.names.answer(unique)
        assert (await served.kernel.reply()).unique == unique
    assert await served.kernel.nothing()
    assert served.full == [True, False]


async def test_a_request_that_is_taken_back_or_a_signal_ends_nothing(served: Served) -> None:
    served.kernel.read_errors = [OSError(errno.ENOENT, "aborted"), OSError(errno.EINTR, "signal")]
    for _ in range(3):
        served.kernel.flush(0)
        assert (await served.kernel.reply()).error == 0
    assert served.in_use == 0


async def test_the_end_of_the_mount_ends_the_channel(served: Served) -> None:
    served.kernel.close()
    with trio.fail_after(5):
        await served.ended.wait()


async def test_the_end_of_the_mount_is_seen_with_requests_under_way(served: Served) -> None:
    file = ScriptedFile(waits=True)
    served.kernel.read(served.open(file), 0, 5)
    served.kernel.send(LOOKUP, b"name\0")
    assert await served.kernel.nothing()
    served.kernel.close()
    with trio.fail_after(5):
        await served.ended.wait()
    # Late results have nowhere to go, and hurt nobody.
    file.reads[0](None, [b"\0" * 5])


async def test_an_error_of_the_descriptor_that_nobody_knows_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail() -> None:
        async with serving(monkeypatch) as served:
            served.kernel.read_errors = [OSError(errno.EBADF, "not a descriptor")]
            served.kernel.flush(0)
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as caught:
        await fail()
    assert caught.group_contains(OSError, match="not a descriptor")


async def test_stopping_reads_nothing_more_and_answers_what_is_under_way(served: Served, nursery: trio.Nursery) -> None:
    file = ScriptedFile(waits=True)
    handle = served.open(file)
    writing = served.kernel.write(handle, 0, b"a")
    looking = served.kernel.send(LOOKUP, b"name\0")
    await served.names.receive()
    stopped = trio.Event()

    async def stop() -> None:
        await served.channel.stop()
        stopped.set()

    nursery.start_soon(stop)
    await wait_all_tasks_blocked()
    served.kernel.write(handle, 1, b"a")
    await wait_all_tasks_blocked()
    assert file.asked == ["write 0 1"]
    file.changes[0](None)
    assert await served.kernel.reply() == (writing, 0, u(4, 1, 0))
    await wait_all_tasks_blocked()
    assert not stopped.is_set()
    served.names.answer(looking)
    assert (await served.kernel.reply()).unique == looking
    await stopped.wait()
    assert file.asked == ["write 0 1"]
    assert not served.ended.is_set()


async def test_stopping_with_nothing_under_way_returns_at_once(served: Served) -> None:
    with trio.fail_after(5):
        await served.channel.stop()


async def test_stopping_with_all_slots_taken_answers_them(served: Served, nursery: trio.Nursery) -> None:
    file = ScriptedFile(waits=True)
    handle = served.open(file)
    for at in range(SLOTS + 1):
        served.kernel.write(handle, at, b"a")
    assert await served.kernel.nothing()
    nursery.start_soon(served.channel.stop)
    await wait_all_tasks_blocked()
    for done in tuple(file.changes):
        done(None)
    await wait_all_tasks_blocked()
    assert len(file.asked) == SLOTS
    assert served.in_use == 0


async def test_other_tasks_get_their_turn_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "_BATCH", 4)
    async with serving(monkeypatch) as served:
        file = ScriptedFile()
        handle = served.open(file)
        for _ in range(40):
            served.kernel.fsync(handle)
        seen = [0]
        while seen[-1] < 40:
            await trio.lowlevel.checkpoint()
            seen.append(len(file.asked))
        # Trio runs the tasks of a turn in any order: up to two batches between two looks.
        assert max(after - before for before, after in pairwise(seen)) <= 8


async def test_large_requests_leave_other_tasks_more_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch) as served:
        answered: list[int] = []
        served.kernel.takes_data = answered.append
        handle = served.open(ScriptedFile(end=1 << 20))
        for _ in range(40):
            served.kernel.read(handle, 0, 1 << 20)
        seen = [0]
        while seen[-1] < 40:
            await trio.lowlevel.checkpoint()
            seen.append(len(answered))
        assert max(after - before for before, after in pairwise(seen)) <= 4


async def test_results_after_the_channel_was_closed_touch_no_descriptor(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    file = ScriptedFile(waits=True)
    handle = served.open(file)
    served.kernel.read(handle, 0, 5)
    served.kernel.write(handle, 0, b"a")
    assert await served.kernel.nothing()
    served.channel.close()
    file.reads[0](None, [b"\0" * 5])
    file.changes[0](None)
    assert await served.kernel.nothing()
    assert served.in_use == 0
    assert not caplog.records


async def test_an_idle_mount_gives_memory_back(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    async with serving(monkeypatch, slots=12) as served:
        file = ScriptedFile(waits=True, end=1 << 20)
        handle = served.open(file)
        for at in range(12):
            served.kernel.write(handle, at, bytes([at + 1]) * 20_000)
            assert await served.kernel.nothing()
        for done in file.changes:
            done(None)
        for _ in range(12):
            await served.kernel.reply()
        assert sum(slot.used for slot in served.channel.memory.slots) == 12
        await trio.sleep(30)
        used = [slot.used for slot in served.channel.memory.slots]
        assert sum(used) == 8
        assert [bytes(slot.body[:1]) != b"\0" for slot in served.channel.memory.slots] == used
        served.kernel.flush(0)
        await served.kernel.reply()


async def test_a_channel_that_spins_serves_what_comes_now_and_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(monkeypatch, spin=0.001) as served:
        handle = served.open(ScriptedFile())
        for _ in range(5):
            for count in (1, 7):
                for _ in range(count):
                    served.kernel.read(handle, 0, 1)
                for _ in range(count):
                    assert (await served.kernel.reply()).body == b"\0"
            assert await served.kernel.nothing()
        served.kernel.send(LOOKUP, u(8, 1))
        assert len(await served.names.receive()) == 48
