"""The kit's volumes do what tests of layers count on."""

import errno

import pytest
import trio

from fusecache.api import DECLINED, DONE, PENDING, Attempt, Buffers, ExtentKind, Span, joined
from fusecache.api.errors import ContractViolation, Misaligned, OutOfRange, VolumeClosed, VolumeReadOnly
from fusecache.testing import (
    HANG,
    Fault,
    FaultyVolume,
    GatedVolume,
    MemoryVolume,
    Request,
    WatchedVolume,
    layer_context,
)
from fusecache.testing.harness import AttemptWatch, fetch, put

DATA = b"0123456789abcdef"


def ignore(error: BaseException | None, buffers: Buffers = ()) -> None:
    """Take the end of an attempt that nobody waits for."""


async def test_a_memory_volume_remembers_its_holes() -> None:
    volume = MemoryVolume(100)
    await put(volume, 10, DATA)
    await volume.discard(14, 2)
    await volume.write_zeroes(50, 5)
    kinds = [
        (extent.offset, extent.length) for extent in await volume.extents(0, 100) if extent.kind is ExtentKind.DATA
    ]
    assert kinds == [(10, 4), (16, 10), (50, 5)]
    assert (await volume.info()).allocated == 19


async def test_a_memory_volume_refuses_what_the_contract_does_not_allow() -> None:
    volume = MemoryVolume(1000, alignment=512)
    for offset, length in ((-512, 512), (0, 0), (512, 512), (1000, 1)):
        with pytest.raises(OutOfRange):
            await volume.read(offset, length)
    for offset, length in ((1, 511), (0, 100), (511, 489)):
        with pytest.raises(Misaligned):
            await volume.discard(offset, length)
    await volume.read(512, 488)
    volume.close()
    with pytest.raises(VolumeClosed):
        await volume.flush()
    with pytest.raises(VolumeReadOnly):
        await put(MemoryVolume(1000, read_only=True), 0, DATA)


async def test_buffers_lent_by_an_attempt_are_overwritten_at_the_next_request() -> None:
    volume = MemoryVolume(16, attempts="done")
    await put(volume, 0, DATA)
    lent = volume.try_read(0, 16, ignore)
    assert not isinstance(lent, Attempt)
    assert joined(lent) == DATA
    assert volume.try_flush(ignore) is DONE
    assert joined(lent) != DATA


async def test_a_pending_attempt_takes_effect_when_it_ends() -> None:
    volume = MemoryVolume(16, attempts="pending")
    watch = AttemptWatch()
    outcome = watch.begin(lambda watch: volume.try_write(0, memoryview(DATA), watch.done))
    assert volume.content.read(0, 16) == bytes(16)
    assert await watch.end(outcome) is PENDING
    assert volume.content.read(0, 16) == DATA


async def test_a_gate_holds_requests_until_it_is_opened() -> None:
    gated = GatedVolume(MemoryVolume(32))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, gated, 0, DATA)
        nursery.start_soon(put, gated, 16, DATA)
        await gated.wait_held(2)
        assert await fetch(gated, 0, 32) == bytes(32)
        first = gated.held[0]
        first.let_go()
        while first in gated.held:
            await trio.testing.wait_all_tasks_blocked()
        assert await fetch(gated, first.request.offset, 16) == DATA
        assert len(gated.held) == 1
        gated.open()
    assert await fetch(gated, 0, 32) == DATA + DATA
    gated.close()
    with trio.move_on_after(0):
        await put(gated, 0, bytes(16))
    assert not gated.held
    assert await fetch(gated, 0, 16) == DATA


async def test_a_gate_holds_attempts_as_pending() -> None:
    gated = GatedVolume(MemoryVolume(16, attempts="done"))
    watch = AttemptWatch()
    outcome = watch.begin(lambda watch: gated.try_write(0, memoryview(DATA), watch.done))
    await gated.wait_held(1)
    assert (outcome, watch.calls) == (PENDING, 0)
    gated.open()
    await watch.end(outcome)
    assert await fetch(gated, 0, 16) == DATA
    assert gated.try_write(0, memoryview(DATA), ignore) is DONE


async def test_a_gate_may_decline_attempts() -> None:
    gated = GatedVolume(MemoryVolume(16, attempts="done"), {"flush"}, attempts="declined")
    assert gated.try_flush(ignore) is DECLINED
    assert gated.try_write(0, memoryview(DATA), ignore) is DONE


async def test_a_fault_strikes_what_it_is_about_and_nothing_else() -> None:
    faulty = FaultyVolume(MemoryVolume(64))
    fault = faulty.inject(Fault({"write"}, OSError(errno.ENOSPC, "full"), span=Span(16, 32), skip=1, count=2))
    for _ in range(5):
        await put(faulty, 0, DATA)
        await faulty.read(16, 16)
    await put(faulty, 8, DATA)
    for _ in range(2):
        with pytest.raises(OSError, match="full"):
            await put(faulty, 31, DATA)
    await put(faulty, 31, DATA)
    assert fault.hits == 2


async def test_an_attempt_is_struck_once() -> None:
    faulty = FaultyVolume(MemoryVolume(16))
    fault = faulty.inject(Fault({"write"}, skip=1))
    watch = AttemptWatch()
    assert await watch.outcome(lambda watch: faulty.try_write(0, memoryview(DATA), watch.done)) is PENDING
    assert await fetch(faulty, 0, 16) == DATA
    with pytest.raises(OSError, match="Input/output error"):
        faulty.try_write(0, memoryview(DATA), ignore)
    assert fault.hits == 1
    faulty.heal()
    assert faulty.try_write(0, memoryview(DATA), ignore) is DECLINED


async def test_a_fault_may_delay_or_hang(autojump_clock: trio.testing.MockClock) -> None:
    faulty = FaultyVolume(MemoryVolume(16, attempts="done"))
    faulty.inject(Fault({"flush"}, error=None, delay=7.0))
    before = trio.current_time()
    assert await AttemptWatch().outcome(lambda watch: faulty.try_flush(watch.done)) is PENDING
    await faulty.flush()
    assert trio.current_time() == before + 14
    faulty.inject(Fault({"read"}, delay=HANG))
    with trio.move_on_after(1e6) as scope:
        await faulty.read(0, 1)
    assert scope.cancelled_caught


async def test_a_watch_refuses_overlapping_requests() -> None:
    gated = GatedVolume(MemoryVolume(64))
    watched = WatchedVolume(gated)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, watched, 0, DATA)
        await gated.wait_held(1)
        nursery.start_soon(put, watched, 16, DATA)
        await gated.wait_held(2)
        with pytest.raises(ContractViolation):
            await watched.read(15, 1)
        with pytest.raises(ContractViolation):
            watched.try_write_zeroes(31, 2, ignore)
        with pytest.raises(ContractViolation):
            await watched.resize(10)
        await watched.read(32, 32)
        gated.open()
    assert len(watched.violations) == 3
    assert watched.ended.count(Request("write", 16, 16)) == 1


async def test_a_watch_knows_whether_a_flush_covers_every_change() -> None:
    gated = GatedVolume(MemoryVolume(64), {"flush"})
    watched = WatchedVolume(gated)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.flush)
        await gated.wait_held(1)
        await put(watched, 0, DATA)
        gated.open()
    assert watched.unflushed
    await watched.flush()
    assert not watched.unflushed


async def test_a_layer_context_lives_as_long_as_its_block() -> None:
    async with layer_context(index=3) as context:
        context.nursery.start_soon(trio.sleep_forever)
        assert context.state_dir.is_dir()
        context.completions.expect()
        called = trio.Event()
        await trio.to_thread.run_sync(context.completions.post, called.set)
        await called.wait()
        with pytest.raises(AssertionError, match="one lower-case word"):
            context.emit("Not A Word", "text")
    assert not context.state_dir.exists()
