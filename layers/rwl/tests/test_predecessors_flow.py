"""What earlier write-back logs did wrong when full, slow, racing or ending: one test for each mistake."""

import errno
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Literal

import pytest
import trio
from trio.testing import MockClock

from fusecache.api import DONE, PENDING, Buffers, LayerState, joined
from fusecache.api.errors import CorruptState
from fusecache.api.ranges import Span, overlaps
from fusecache.testing import HANG, AttemptMode, Fault, FaultyVolume, GatedVolume, Held, MemoryVolume
from fusecache.testing.harness import cancelled_at_each_await, content, fetch, pattern, put, settle
from fusecache_rwl.failures import LogFull
from fusecache_rwl.format import SUPERBLOCK_SIZE
from fusecache_rwl.layer import RwlLayer
from fusecache_rwl.plugin import plugin
from fusecache_rwl.pool_file import open_pool_file
from layers.rwl.tests.support import pools
from layers.rwl.tests.support.caches import BLOCK, Cache, fill, forget_pages

SIZE = 1 << 20
RING = 64 << 10
PAUSED = {"writeback_rate": "0"}
IN_TIME = 20
"""Seconds after which something hangs."""


@pytest.fixture
def pool() -> Iterator[Path]:
    """A path in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name) / "pool"


def is_free(pool: Path) -> bool:
    """Say that nobody has the pool file open; raises where somebody has."""
    open_pool_file(pool).release()
    return True


def own_threads() -> list[threading.Thread]:
    """Return the layer's threads; trio's stay for a while."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("rwl")]


async def fill_up(layer: RwlLayer, offset: int = 0) -> int:
    """Mark the image, and fill the log with blocks of ``x`` from *offset* on; return how many bytes of them it took."""
    await put(layer, offset, b"x" * BLOCK)
    return BLOCK + fill(layer, offset + BLOCK, b"x" * BLOCK) * BLOCK


# ---- full cache hangs for ever ----


@pytest.mark.parametrize("fault", [{}, {"error": None, "delay": HANG}], ids=["fails", "hangs"])
@pytest.mark.parametrize("attempts", ["declined", "done", "pending"])
async def test_a_write_into_a_full_log_fails_in_time_while_nothing_can_be_written_back(
    pool: Path, mock_clock: MockClock, fault: dict[str, float], attempts: AttemptMode
) -> None:
    """Reads go on meanwhile; and once the level below takes data again, so do writes."""
    below = FaultyVolume(MemoryVolume(SIZE, attempts=attempts))
    cache = Cache(pool, below, RING, options={"stall_timeout": "100s", "stall_errno": "ENOSPC"})
    below.inject(Fault({"write"}, **fault))  # type: ignore[arg-type]
    async with cache.open() as layer:
        taken = await fill_up(layer)
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(expect_full, layer, taken)
                await settle()
                assert await fetch(layer, 0, taken) == b"x" * taken
                mock_clock.jump(101)
        assert layer.status().errors == 2
        assert layer.status().dirty_bytes == taken
    below.heal()
    async with cache.open() as layer:
        await put(layer, taken, b"y" * BLOCK)
        assert await fetch(layer, 0, taken + BLOCK) == b"x" * taken + b"y" * BLOCK


async def expect_full(layer: RwlLayer, offset: int) -> None:
    """See that a write fails as the option says."""
    with pytest.raises(LogFull) as failure:
        await put(layer, offset, b"y" * BLOCK)
    assert failure.value.errno == errno.ENOSPC


async def test_a_full_log_goes_on_at_once_when_the_level_below_does(pool: Path, mock_clock: MockClock) -> None:
    """No pause after errors, however long it has become, is waited for while somebody wants space."""
    below = FaultyVolume(MemoryVolume(SIZE))
    cache = Cache(pool, below, RING)
    fault = below.inject(Fault({"write"}))
    async with cache.open() as layer:
        taken = await fill_up(layer)
        while fault.hits < 5:
            await settle()
            mock_clock.jump(31)
        assert layer.status().state is LayerState.DEGRADED
        below.heal()
        await put(layer, taken, b"y" * BLOCK)
        await layer.writeback()
        assert await fetch(below, 0, taken + BLOCK) == b"x" * taken + b"y" * BLOCK
    assert cache.events == ["writeback-failed", "writeback-resumed"]


# ---- reads racing with retirement ----


async def test_what_a_thread_reads_from_the_log_stays_until_it_has_read_it() -> None:
    """Data that were written back give way to nothing as long as a read of them is under way."""
    with pools.pool_place("ssd on disk") as place:
        below = GatedVolume(MemoryVolume(SIZE), {"write"})
        below.open()
        cache = Cache(place / "pool", below, RING)
        async with cache.open() as layer:
            await put(layer, 0, b"a" * (4 * BLOCK))
            await layer.writeback()
            below.close()
            await put(layer, SIZE // 2, b"b" * BLOCK)
            forget_pages(cache.pool)
            ended = trio.Event()
            found: list[bytes] = []

            def done(error: BaseException | None, buffers: Buffers) -> None:
                assert error is None
                found.append(joined(buffers))
                ended.set()

            outcome = layer.try_read(0, 4 * BLOCK, done)
            assert outcome is PENDING, "the pool's pages are still in memory"
            # Nothing else runs between here and the end of the read.
            taken = fill(layer, SIZE // 2, b"b" * BLOCK) * BLOCK
            assert taken > RING // 2
            await ended.wait()
            assert found == [b"a" * (4 * BLOCK)]
            # Only the read was in the way.
            assert layer.try_write(SIZE // 4, memoryview(b"c" * BLOCK), lambda error: None) is DONE
            assert await fetch(layer, SIZE // 2, taken) == b"b" * taken
            assert await fetch(layer, SIZE // 4, BLOCK) == b"c" * BLOCK
            below.open()


async def test_a_read_of_log_and_gap_has_what_the_log_held_when_it_began(pool: Path) -> None:
    """The part of the log is retired and overwritten while the gap is still read below."""
    memory = MemoryVolume(SIZE)
    memory.content.write(0, b"." * SIZE)
    below = GatedVolume(memory, {"read"})
    cache = Cache(pool, below, RING, options={"keep_clean": False})
    async with cache.open() as layer, trio.open_nursery() as nursery:
        await put(layer, BLOCK, b"a" * BLOCK)
        found: list[bytes] = []

        async def read() -> None:
            found.append(await fetch(layer, 0, 3 * BLOCK))

        nursery.start_soon(read)
        await below.wait_held(2)
        for turn in range(3):
            await layer.writeback()
            for number in range(RING // BLOCK):
                await put(layer, SIZE // 2 + number * BLOCK, bytes([turn]) * BLOCK)
        assert not found
        below.open()
    assert found == [b"." * BLOCK + b"a" * BLOCK + b"." * BLOCK]


# ---- overlapping write and discard reordered on the way down ----


@pytest.mark.parametrize("flushes", [False, True])
@pytest.mark.parametrize("attempts", ["pending", "declined"])
async def test_overlapping_changes_arrive_below_as_if_in_order(
    pool: Path, flushes: bool, attempts: Literal["pending", "declined"]
) -> None:
    """Of those that are under way at once no two overlap, so the last may end first."""
    memory = MemoryVolume(SIZE)
    memory.content.write(0, b"." * SIZE)
    below = GatedVolume(memory, {"write", "write_zeroes", "discard"}, attempts=attempts)
    cache = Cache(pool, below, 512 << 10, options=PAUSED)
    k = 1 << 10
    async with cache.open() as layer:
        changes = [
            (0, 128 * k, partial(put, layer, 0, b"a" * (128 * k)), b"a"),
            (16 * k, 32 * k, partial(layer.discard, 16 * k, 32 * k), b"\0"),
            (24 * k, 4 * k, partial(put, layer, 24 * k, b"b" * (4 * k)), b"b"),
            (40 * k, 100 * k, partial(layer.write_zeroes, 40 * k, 100 * k), b"\0"),
            (26 * k, 1 * k, partial(layer.discard, 26 * k, 1 * k), b"\0"),
            (44 * k, 64 * k, partial(put, layer, 44 * k, b"c" * (64 * k)), b"c"),
        ]
        expected = bytearray(b"." * SIZE)
        for offset, length, change, byte in changes:
            await change()
            expected[offset : offset + length] = byte * length
            if flushes:
                await layer.flush()
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(let_go_last_first, below, over)
            await layer.writeback()
            over.set()
        assert memory.content.read(0, SIZE) == expected
        assert await content(layer) == expected


async def let_go_last_first(gated: GatedVolume, over: trio.Event) -> None:
    """Let what is held go one by one, the last first, until *over*; no two of them overlap."""
    while not over.is_set():
        await settle()
        assert not [pair for pair in combinations([span(held) for held in gated.held], 2) if overlaps(*pair)]
        if gated.held:
            gated.held[-1].let_go()


def span(held: Held) -> Span:
    """Return the range of a request."""
    return Span(held.request.offset, held.request.end)


# ---- deadlock of deferred requests and flush ----


@pytest.mark.parametrize("persist", ["flush", "write"])
async def test_a_flush_does_not_wait_for_writes_that_wait_for_space(pool: Path, persist: str) -> None:
    below = GatedVolume(MemoryVolume(SIZE), {"write", "flush"})
    cache = Cache(pool, below, RING, options={"stall_timeout": "never"})
    writers = 20
    async with cache.open() as layer:
        taken = await fill_up(layer)
    async with cache.open(persist=persist) as layer:
        with trio.fail_after(IN_TIME):
            async with trio.open_nursery() as nursery:
                for number in range(writers):
                    nursery.start_soon(put, layer, taken + number * BLOCK, b"y" * BLOCK)
                await below.wait_held(1)
                for _ in range(3):
                    await layer.flush()
                assert below.held
                below.open()
                for _ in range(3):
                    await layer.flush()
                    await layer.writeback()
        assert await fetch(layer, 0, taken + writers * BLOCK) == b"x" * taken + b"y" * (writers * BLOCK)


# ---- deadlock at shutdown and at failed start; retried for ever on close ----


@pytest.mark.parametrize("doing", ["nothing", "background", "command", "full"])
@pytest.mark.parametrize("attempts", ["declined", "done", "pending"])
async def test_a_layer_closes_while_the_level_below_hangs(pool: Path, doing: str, attempts: AttemptMode) -> None:
    below = FaultyVolume(MemoryVolume(SIZE, attempts=attempts))
    fault = below.inject(Fault({"write", "flush"}, error=None, delay=HANG))
    cache = Cache(pool, below, RING, options={"stall_timeout": "never"})
    with trio.fail_after(IN_TIME):
        async with cache.open() as layer, trio.open_nursery() as nursery:
            taken = BLOCK
            if doing in ("nothing", "command"):
                await put(layer, 0, b"x" * BLOCK)
            else:
                taken = await fill_up(layer)
            if doing == "command":
                nursery.start_soon(layer.writeback)
            elif doing == "full":
                for number in range(5):
                    nursery.start_soon(put, layer, taken + number * BLOCK, b"y" * BLOCK)
            while doing != "nothing" and not fault.hits:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    assert is_free(pool)
    assert not own_threads()
    below.heal()
    assert cache.mark.is_set
    async with cache.open() as layer:
        assert await fetch(layer, 0, taken) == b"x" * taken
        await layer.writeback()
    assert await fetch(below, 0, taken) == b"x" * taken
    assert not cache.mark.is_set


async def test_a_close_retries_nothing_and_keeps_what_is_dirty(pool: Path, mock_clock: MockClock) -> None:
    """The clock stands still: neither the command nor the close waits for an attempt that comes later."""
    below = FaultyVolume(MemoryVolume(SIZE))
    fault = below.inject(Fault({"write"}))
    cache = Cache(pool, below, RING)
    async with cache.open() as layer:
        await put(layer, 0, b"x" * BLOCK)
        for _ in range(3):
            with pytest.raises(OSError, match="Input/output"):
                await layer.writeback()
        hits = fault.hits
    assert fault.hits == hits
    assert cache.mark.is_set
    below.heal()
    async with cache.open() as layer:
        assert await fetch(layer, 0, BLOCK) == b"x" * BLOCK
        await layer.writeback()
    assert not cache.mark.is_set


async def test_a_failed_start_leaves_nothing_behind(pool: Path) -> None:
    cache = Cache(pool, MemoryVolume(SIZE), RING, options=PAUSED)
    async with cache.open() as layer:
        await put(layer, 0, b"x" * BLOCK)
    damaged = cache.damaged(0, bytes(2 * SUPERBLOCK_SIZE))
    with trio.fail_after(IN_TIME):
        async with damaged.context() as context:
            path = damaged.move_to(context)
            for _ in range(3):
                with pytest.raises(CorruptState):
                    async with plugin.open(context, damaged.below):
                        raise AssertionError("the layer is open")
                assert is_free(path)
                assert not own_threads()


async def test_a_cancelled_start_leaves_nothing_behind(pool: Path) -> None:
    cache = Cache(pool, MemoryVolume(SIZE), RING, options=PAUSED)
    async with cache.open() as layer:
        await put(layer, 0, b"x" * BLOCK)

    async def start() -> None:
        async with plugin.open(context, cache.below) as layer:
            assert await fetch(layer, 0, BLOCK) == b"x" * BLOCK

    async def look(when: str) -> None:
        assert is_free(cache.pool), when
        assert not own_threads(), when
        assert cache.mark.is_set, when

    with trio.fail_after(IN_TIME):
        async with cache.context() as context:
            cache.move_to(context)
            await cancelled_at_each_await(start, look)


# ---- full and over 32 requests deep ----


@pytest.mark.parametrize("persist", ["flush", "write"])
async def test_many_writers_on_a_full_log_all_go_on(pool: Path, persist: str) -> None:
    """Space goes to all who wait for it; nobody is left behind, and nobody is told that the log is full."""
    memory = MemoryVolume(2 * SIZE, attempts="pending")
    below = GatedVolume(memory, {"write"})
    cache = Cache(pool, below, RING, options={"persist": persist})
    writers, rounds = 64, 8
    data = [pattern(rounds * BLOCK, writer) for writer in range(writers)]

    async def write(layer: RwlLayer, writer: int) -> None:
        start = writer * rounds * BLOCK
        for at in range(0, rounds * BLOCK, BLOCK):
            await put(layer, start + at, data[writer][at : at + BLOCK])

    with trio.fail_after(2 * IN_TIME):
        async with cache.open() as layer:
            async with trio.open_nursery() as nursery:
                for writer in range(writers):
                    nursery.start_soon(write, layer, writer)
                await below.wait_held(1)
                await settle()
                below.open()
            assert await content(layer) == b"".join(data)
            await layer.writeback()
            assert layer.status().errors == 0
    assert memory.content.read(0, 2 * SIZE) == b"".join(data)


# ---- one generation per write makes write-back one at a time ----


@pytest.mark.parametrize("persist", ["flush", "write"])
@pytest.mark.parametrize("attempts", ["pending", "declined"])
@pytest.mark.parametrize("depth", [1, 16, 40])
async def test_writes_without_a_flush_go_down_in_parallel(
    pool: Path, persist: str, attempts: Literal["pending", "declined"], depth: int
) -> None:
    below = GatedVolume(MemoryVolume(8 << 20), {"write"}, attempts=attempts)
    cache = Cache(pool, below, options={"persist": persist, "writeback_depth": depth, **PAUSED})
    async with cache.open() as layer, trio.open_nursery() as nursery:
        # So far apart that they do not join.
        for number in range(50):
            await put(layer, number * (128 << 10), b"x" * BLOCK)
        nursery.start_soon(layer.writeback)
        await below.wait_held(depth)
        await settle()
        assert len(below.held) == depth
        below.open()
    assert not cache.mark.is_set
