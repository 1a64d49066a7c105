"""What earlier write-back logs did wrong with their pools, and must not happen here: one test for each mistake."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fusecache.api import DECLINED, LayerState
from fusecache.api.errors import CorruptState
from fusecache.testing import GatedVolume, MemoryVolume
from fusecache.testing.harness import content, fetch, pattern, put
from fusecache_rwl.format import RING_OFFSET, SUPERBLOCK_SIZE, RecordType, record_size
from fusecache_rwl.layer import RwlLayer
from fusecache_rwl.scan import Scanned, scan
from fusecache_rwl.superblock import newest, place
from layers.rwl.tests.support.caches import BLOCK, Cache, fill

SIZE = 1 << 20
RING = 64 << 10
PAUSED = {"writeback_rate": "0"}


@pytest.fixture
def pool() -> Iterator[Path]:
    """A path in memory."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name) / "pool"


async def change(layer: RwlLayer, expected: bytearray, rng: random.Random, *, longest: int = 16) -> None:
    """Change a random range of the layer, up to *longest* sectors, and what is expected of it."""
    length = rng.randint(1, longest) * 512
    offset = rng.randrange((len(expected) - length) // 512 + 1) * 512
    kind = rng.choice(["write"] * 4 + ["discard", "write_zeroes"])
    data = bytes(length)
    if kind == "write":
        data = pattern(length, rng.randrange(1 << 32))
        await layer.write(offset, memoryview(data))
    elif kind == "discard":
        await layer.discard(offset, length)
    else:
        await layer.write_zeroes(offset, length)
    expected[offset : offset + length] = data


def superblocks(path: Path) -> tuple[bytes, bytes]:
    """Return what lies at both places."""
    both = path.read_bytes()[: 2 * SUPERBLOCK_SIZE]
    return both[:SUPERBLOCK_SIZE], both[SUPERBLOCK_SIZE:]


def ring_of(path: Path) -> bytes:
    """Return what follows them."""
    return path.read_bytes()[RING_OFFSET:]


def extent_of(path: Path) -> tuple[int, int]:
    """Return a file's length, and the blocks that it takes."""
    return path.stat().st_size, path.stat().st_blocks


def records(path: Path) -> list[Scanned]:
    """Return the records of the log in a pool file."""
    ring = ring_of(path)
    found = scan(newest(*superblocks(path)), RING, lambda at, size: ring[at % RING : at % RING + size])
    return [one for one in found if isinstance(one, Scanned)]


# ---- root block corrupted on media; one superblock ----


@pytest.mark.parametrize("flushes", [True, False])
async def test_a_superblock_that_rots_costs_nothing_unseen(pool: Path, seed: int, flushes: bool) -> None:
    """Without the older one all is there. Without the newer one all is there, or the open says that it is not."""
    rng = random.Random(seed)
    cache = Cache(pool, MemoryVolume(SIZE), RING, options={"low_water": 0.1, "high_water": 0.5})
    expected = bytearray(SIZE)
    refusals = 0
    for _ in range(8):
        async with cache.open() as layer:
            for _ in range(rng.randint(1, 40)):
                await change(layer, expected, rng)
                if flushes and not rng.randrange(4):
                    await layer.flush()
            layer.set_writeback_rate(0)
            # So much that the older superblock's tail may be overwritten.
            while layer.status().dirty_bytes < RING * 3 // 4:
                await change(layer, expected, rng)
            await layer.write(0, memoryview(b"last" * 128))
            expected[:512] = b"last" * 128
        newer = place(newest(*superblocks(pool)).sequence)
        rotten = bytearray(superblocks(pool)[newer != 0])
        rotten[rng.randrange(SUPERBLOCK_SIZE)] ^= 1 << rng.randrange(8)
        for damage in (bytes(SUPERBLOCK_SIZE), rng.randbytes(SUPERBLOCK_SIZE), bytes(rotten)):
            async with cache.damaged(SUPERBLOCK_SIZE - newer, damage).open(**PAUSED) as layer:
                assert await content(layer) == expected
            try:
                async with cache.damaged(newer, damage).open(**PAUSED) as layer:
                    assert await content(layer) == expected
            except CorruptState:
                refusals += 1
    assert refusals


async def test_a_new_pool_has_two_superblocks_before_the_first_change(pool: Path) -> None:
    cache = Cache(pool, MemoryVolume(SIZE), RING, options=PAUSED)
    async with cache.open() as layer:
        assert cache.mark.told == []
        first, second = superblocks(pool)
        uuids = {newest(first, bytes(SUPERBLOCK_SIZE)).uuid, newest(bytes(SUPERBLOCK_SIZE), second).uuid}
        assert len(uuids) == 1
        await put(layer, 0, b"x" * BLOCK)
    for at in (0, SUPERBLOCK_SIZE):
        async with cache.damaged(at, bytes(SUPERBLOCK_SIZE)).open() as layer:
            assert await fetch(layer, 0, BLOCK) == b"x" * BLOCK


async def test_what_was_dropped_stays_so_and_what_came_then_is_there_whichever_superblock_is_lost(pool: Path) -> None:
    cache = Cache(pool, MemoryVolume(SIZE), RING, options=PAUSED)
    async with cache.open() as layer:
        await put(layer, 0, b"x" * BLOCK)
        await put(layer, BLOCK, b"y" * BLOCK)
        await layer.invalidate(dirty=True)
        await put(layer, 0, b"z" * BLOCK)
    for at in (0, SUPERBLOCK_SIZE):
        async with cache.damaged(at, bytes(SUPERBLOCK_SIZE)).open() as layer:
            assert await fetch(layer, 0, 2 * BLOCK) == b"z" * BLOCK + bytes(BLOCK)


async def test_a_dirty_pool_without_superblocks_is_refused_and_left_as_it_is(pool: Path) -> None:
    cache = Cache(pool, MemoryVolume(SIZE), RING, options=PAUSED)
    async with cache.open() as layer:
        await put(layer, 0, b"x" * BLOCK)
    damaged = cache.damaged(0, b"?" * (2 * SUPERBLOCK_SIZE))
    before = damaged.pool.read_bytes()
    for _ in range(2):
        with pytest.raises(CorruptState, match="no superblock"):
            async with damaged.open():
                raise AssertionError("the layer is open")
        assert damaged.pool.read_bytes() == before
        assert damaged.mark.is_set


# ---- no checksums ----


async def test_a_flipped_bit_in_what_was_durable_is_corruption_and_never_data(pool: Path, seed: int) -> None:
    """Whether the last record was durable a killed process could not tell; nothing ever is in its place."""
    rng = random.Random(seed)
    cache = Cache(pool, MemoryVolume(SIZE), RING, options=PAUSED)
    blocks = 6
    async with cache.open() as layer:
        for number in range(blocks):
            await put(layer, number * BLOCK, bytes([1 + number]) * BLOCK)
            await layer.flush()
        found = records(pool)
        last = max(one.position for one in found if one.record.type is RecordType.DATA)
        ring = ring_of(pool)
        # The first header, the sync point before the last data, and anything between.
        wrong = [*range(record_size(0)), *range(last - record_size(0), last), *(rng.randrange(last) for _ in range(60))]
        for at in wrong:
            with pytest.raises(CorruptState, match="LSN"):
                async with cache.damaged(RING_OFFSET + at, bytes([ring[at] ^ 1 << rng.randrange(8)])).open():
                    raise AssertionError(f"byte {at} of the ring is wrong, and the layer is open")
        expected = b"".join(bytes([1 + number]) * BLOCK for number in range(blocks - 1)) + bytes(BLOCK)
        for at in (last, last + 40, last + 64, last + 64 + BLOCK - 1):
            async with cache.damaged(RING_OFFSET + at, bytes([ring[at] ^ 1])).open() as copy:
                assert await fetch(copy, 0, blocks * BLOCK) == expected


# ---- bytes under-counted on reopen, then overwritten ----


async def test_a_full_log_is_as_full_after_a_reopen_and_nothing_is_overwritten(pool: Path, seed: int) -> None:
    rng = random.Random(seed)
    cache = Cache(pool, MemoryVolume(SIZE), RING, options={"keep_clean": False})
    expected = bytearray(SIZE)
    for _ in range(6):
        async with cache.open() as layer:
            # From here on the ring begins somewhere in its middle.
            for _ in range(rng.randint(1, 9)):
                await change(layer, expected, rng, longest=9)
            await layer.writeback()
            layer.set_writeback_rate(0)
            while layer.status().used_bytes < RING // 2:
                await change(layer, expected, rng, longest=9)
            data = pattern(BLOCK, rng.randrange(1 << 32))
            count = fill(layer, 0, data)
            expected[: count * BLOCK] = data * count
            await layer.flush()
            before = layer.status()
        for _ in range(2):
            async with cache.open(**PAUSED) as layer:
                after = layer.status()
                assert (after.used_bytes, after.dirty_bytes) == (before.used_bytes, before.dirty_bytes)
                assert layer.try_write(0, memoryview(data), lambda error: None) is DECLINED
                assert await content(layer) == expected
        async with cache.open() as layer:
            assert await content(layer) == expected


# ---- allocated beyond the cap ----


async def test_a_pool_never_takes_more_than_it_was_given(pool: Path) -> None:
    below = GatedVolume(MemoryVolume(SIZE), {"write", "discard"})
    cache = Cache(pool, below, RING)
    async with cache.open(**PAUSED) as layer, trio.open_nursery() as nursery:
        given = extent_of(pool)
        await layer.discard(0, SIZE)
        assert fill(layer, 0, b"x" * BLOCK)
        for number in range(40):
            nursery.start_soon(put, layer, SIZE // 2 + number * BLOCK, b"y" * BLOCK)
            nursery.start_soon(layer.discard, SIZE * 3 // 4 + number * BLOCK, BLOCK)
        await below.wait_held(1)
        assert layer.status().used_bytes <= RING
        assert extent_of(pool) == given
        below.open()
    assert extent_of(pool) == given
    async with cache.open() as layer:
        assert await fetch(layer, SIZE // 2, 40 * BLOCK) == b"y" * (40 * BLOCK)


# ---- an entry split at the ring's end ----


async def test_no_record_crosses_the_ring_s_end(pool: Path, seed: int) -> None:
    """Every length meets it in every way; after a reopen all is there, and the scan finds each record in one piece."""
    rng = random.Random(seed)
    cache = Cache(pool, MemoryVolume(SIZE), RING)
    expected = bytearray(SIZE)
    turns = pads = 0
    while turns < 10 or not pads:
        async with cache.open() as layer:
            start = newest(*superblocks(pool)).tail_position
            for _ in range(rng.randint(5, 30)):
                await change(layer, expected, rng, longest=rng.choice([1, 7, 32]))
            layer.set_writeback_rate(0)
            await change(layer, expected, rng, longest=8)
            assert await content(layer) == expected
        for one in records(pool):
            assert one.position % RING + one.size <= RING
            pads += one.record.type is RecordType.PAD
        turns += newest(*superblocks(pool)).tail_position // RING - start // RING
        async with cache.open() as layer:
            assert await content(layer) == expected
            if rng.randrange(2):
                await layer.writeback()


# ---- the wrong map entry removed at retirement ----


@pytest.mark.parametrize("keep_clean", [True, False])
async def test_retirement_takes_away_nothing_newer(pool: Path, keep_clean: bool) -> None:
    """What was overwritten since, in whole or in part, is read from its newer record while the older ones go."""
    memory = MemoryVolume(SIZE)
    below = GatedVolume(memory, {"flush"})
    cache = Cache(pool, below, RING, options={"keep_clean": keep_clean, "writeback_rate": "0"})
    async with cache.open() as layer, trio.open_nursery() as nursery:
        await put(layer, 0, b"a" * (4 * BLOCK))
        await layer.flush()
        await put(layer, BLOCK // 2, b"b" * BLOCK)
        await layer.discard(2 * BLOCK, BLOCK)
        await put(layer, 3 * BLOCK, b"c" * BLOCK)
        expected = b"a" * (BLOCK // 2) + b"b" * BLOCK + b"a" * (BLOCK // 2) + bytes(BLOCK) + b"c" * BLOCK
        dirty = layer.status().dirty_bytes
        nursery.start_soon(layer.writeback)
        await below.wait_held(1)
        first = below.held[0]
        first.let_go()
        while first in below.held:
            await trio.lowlevel.checkpoint()
        await below.wait_held(1)
        while layer.status().dirty_bytes != dirty - 4 * BLOCK:
            await trio.lowlevel.checkpoint()
        # What the second generation wrote below must not answer in place of the log.
        memory.content.write(0, b"?" * (4 * BLOCK))
        if keep_clean:
            assert await fetch(layer, 0, 4 * BLOCK) == expected
        else:
            assert await fetch(layer, BLOCK // 2, BLOCK) == b"b" * BLOCK
            assert await fetch(layer, 2 * BLOCK, 2 * BLOCK) == bytes(BLOCK) + b"c" * BLOCK
        # The places of the first generation are taken by others.
        assert fill(layer, SIZE // 2, b"d" * BLOCK)
        assert await fetch(layer, BLOCK // 2, BLOCK) == b"b" * BLOCK
        assert await fetch(layer, 2 * BLOCK, 2 * BLOCK) == bytes(BLOCK) + b"c" * BLOCK
        assert await fetch(layer, 0, BLOCK // 2) == b"?" * (BLOCK // 2)
        below.open()


# ---- the clean flag disagreeing with dirty bytes ----


async def test_clean_is_said_exactly_when_nothing_is_dirty(pool: Path, seed: int) -> None:
    rng = random.Random(seed)
    # So much space that nothing is written back for want of it.
    cache = Cache(pool, MemoryVolume(SIZE), 2 << 20)
    layers: list[RwlLayer] = []
    cleared_dirty = []

    def clearing() -> None:
        if layers[-1].status().dirty_bytes:
            cleared_dirty.append(layers[-1].status())

    cache.mark.on_clear = clearing
    expected = bytearray(SIZE)
    left = 0
    for _ in range(30):
        async with cache.open(**PAUSED) as layer:
            layers.append(layer)
            assert layer.status().dirty_bytes == left
            for _ in range(rng.randint(0, 6)):
                await change(layer, expected, rng)
                agree(layer, cache)
            act = rng.choice([layer.flush, layer.writeback, trio.lowlevel.checkpoint])
            await act()
            agree(layer, cache)
            assert act != layer.writeback or not layer.status().dirty_bytes
            left = layer.status().dirty_bytes
        assert cache.mark.is_set == (left > 0)
        assert not cleared_dirty
    async with cache.open(**PAUSED) as layer:
        layers.append(layer)
        await layer.discard(0, SIZE)
        assert layer.status().dirty_bytes
        agree(layer, cache)
        await layer.invalidate(dirty=True)
        agree(layer, cache)
        assert not layer.status().dirty_bytes
    assert not cache.mark.is_set


def agree(layer: RwlLayer, cache: Cache) -> None:
    """See that the state, the bytes, the age and the mark tell the same."""
    status = layer.status()
    clean = status.state is LayerState.CLEAN
    assert clean == (status.dirty_bytes == 0) == (status.oldest_dirty_seconds is None)
    assert clean or cache.mark.is_set
