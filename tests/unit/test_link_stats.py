"""A link's figures: what is counted, and when."""

import pytest
import trio

from fusecache.api.errors import OutOfRange
from fusecache.api.volume import DONE, PENDING
from fusecache.stack.link import Link, Op
from fusecache.stack.stats import LATENCY_BUCKETS, OpStats
from fusecache.testing.faulty import Fault, FaultyVolume
from fusecache.testing.gated import GatedVolume
from fusecache.testing.memory import MemoryVolume

SIZE = 1 << 20


def never(*args: object) -> None:
    raise AssertionError(f"done was called: {args}")


def figures(link: Link) -> dict[str, tuple[int, int, int]]:
    """Return count, bytes and errors of every operation that has any."""
    all_figures = {op.name: (link.stats[op].count, link.stats[op].bytes, link.stats[op].errors) for op in Op}
    return {name: found for name, found in all_figures.items() if found != (0, 0, 0)}


async def test_every_operation_has_figures_of_its_own() -> None:
    link = Link(MemoryVolume(SIZE, attempts="done"))
    link.try_read(0, 1, never)
    link.try_write(0, memoryview(bytes(2)), never)
    link.try_write_zeroes(0, 4, never)
    link.try_discard(0, 8, never)
    link.try_flush(never)
    once = {"READ": (1, 1, 0), "WRITE": (1, 2, 0), "ZERO": (1, 4, 0), "DISCARD": (1, 8, 0), "FLUSH": (1, 0, 0)}
    assert figures(link) == once
    await link.read(0, 1)
    await link.write(0, memoryview(bytes(2)))
    await link.write_zeroes(0, 4)
    await link.discard(0, 8)
    await link.flush()
    assert figures(link) == {name: (2 * count, 2 * moved, 0) for name, (count, moved, _) in once.items()}


def test_a_declined_attempt_is_not_counted() -> None:
    link = Link(MemoryVolume(SIZE))
    link.try_read(0, 1, never)
    link.try_flush(never)
    assert figures(link) == {}


def test_a_refused_request_is_not_counted() -> None:
    link = Link(MemoryVolume(SIZE, attempts="done"))
    with pytest.raises(OutOfRange):
        link.try_read(SIZE, 1, never)
    assert figures(link) == {}


async def test_a_failure_is_counted_and_its_bytes_are_not() -> None:
    volume = FaultyVolume(MemoryVolume(SIZE, attempts="done"))
    volume.inject(Fault())
    link = Link(volume)
    with pytest.raises(OSError, match="Input/output error"):
        link.try_write(0, memoryview(bytes(512)), never)
    with pytest.raises(OSError, match="Input/output error"):
        link.try_read(0, 512, never)
    with pytest.raises(OSError, match="Input/output error"):
        await link.write(0, memoryview(bytes(512)))
    assert figures(link) == {"WRITE": (2, 0, 2), "READ": (1, 0, 1)}


async def test_a_pending_attempt_is_in_flight_until_its_end() -> None:
    link = Link(MemoryVolume(SIZE, attempts="pending"))
    ended = trio.Event()
    assert link.try_write(0, memoryview(bytes(512)), lambda error: ended.set()) is PENDING
    assert link.stats.in_flight == 1
    assert figures(link) == {}
    await ended.wait()
    assert link.stats.in_flight == 0
    assert figures(link) == {"WRITE": (1, 512, 0)}


async def test_a_cancelled_request_is_neither_success_nor_error() -> None:
    volume = GatedVolume(MemoryVolume(SIZE))
    link = Link(volume)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write, 0, memoryview(bytes(512)))
        await volume.wait_held(1)
        assert link.stats.in_flight == 1
        nursery.cancel_scope.cancel()
    assert link.stats.in_flight == 0
    assert figures(link) == {}


def test_a_latency_lands_in_the_bucket_of_its_bit_length(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0, 1023, 5000, 5000 + 1024])
    monkeypatch.setattr("fusecache.stack.link.perf_counter_ns", lambda: next(now))
    link = Link(MemoryVolume(SIZE, attempts="done"))
    assert link.try_write(0, memoryview(bytes(1)), never) is DONE
    assert link.try_write(0, memoryview(bytes(1)), never) is DONE
    assert {index: n for index, n in enumerate(link.stats[Op.WRITE].latency) if n} == {10: 1, 11: 1}


def test_no_latency_is_too_long_for_the_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusecache.stack.stats.perf_counter_ns", lambda: (1 << 63) - 1)
    op = OpStats()
    op.succeeded(1, 0)
    assert op.latency[LATENCY_BUCKETS - 1] == 1
