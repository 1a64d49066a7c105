"""A dirty pool file whose bytes are not what was written: refused, or opened as what it was at an earlier time."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from fusecache.api.errors import CorruptState, Fenced
from fusecache_rwl import superblock
from fusecache_rwl.format import HEADER_SIZE, RING_OFFSET, SUPERBLOCK_SIZE
from fusecache_rwl.scan import Scanned, scan
from layers.rwl.tests.support.bench import BLOCK, SIZE, Bench, benched, block, read, write

BLOCKS = 8


@dataclass
class Killed:
    """What a process that was killed left.

    Attributes:
        pool: bytes of the pool file.
        below: bytes of the image.
        states: the first blocks after each change since the last write-back; the last one is the whole log's.
        records: those of the log.
    """

    bench: Bench
    pool: bytes
    below: bytes
    states: Sequence[bytes]
    records: Sequence[Scanned]

    def put_back(self, pool: bytes) -> None:
        """Have everything as it was, but for the pool."""
        self.bench.pool.write_bytes(pool)
        self.bench.bare.content.write(0, self.below)
        self.bench.mark.is_set = True

    async def outcome(self, pool: bytes) -> bytes | None:
        """Open with that pool and return what is there, which must be a state; None where it is refused as corrupt."""
        self.put_back(pool)
        try:
            async with self.bench.opened() as layer:
                found = await read(layer, 0, BLOCKS)
                assert found in self.states
                await layer.writeback()
                assert self.bench.below(0, len(found)) == found
        except CorruptState:
            assert self.bench.below(0, SIZE) == self.below
            return None
        return found


@pytest.fixture
async def killed() -> AsyncIterator[Killed]:
    """A log that went round once, whose first record is not at the ring's beginning."""
    with benched() as bench:
        content = [bytes(BLOCK)] * BLOCKS
        async with bench.opened() as layer:
            for number in range(36):
                content[number % BLOCKS] = block(number)
                await write(layer, number % BLOCKS, number)
                if number % 12 == 11:
                    await layer.writeback()
            states = [b"".join(content)]
            for number in range(100, 108):
                at = number * 3 % BLOCKS
                if number % 4:
                    content[at] = block(number)
                    await write(layer, at, number)
                else:
                    content[at] = bytes(BLOCK)
                    await layer.discard(at * BLOCK, BLOCK)
                states.append(b"".join(content))
                if number == 103:
                    await layer.flush()
            pool = bench.pool.read_bytes()
        yield Killed(bench, pool, bench.below(0, SIZE), states, records_of(pool))


def newest_of(pool: bytes) -> superblock.Superblock:
    """Return the superblock that counts."""
    return superblock.newest(pool[:SUPERBLOCK_SIZE], pool[SUPERBLOCK_SIZE:RING_OFFSET])


def records_of(pool: bytes) -> Sequence[Scanned]:
    """Return what a recovery finds."""
    ring = pool[RING_OFFSET:]

    def stored(position: int, length: int) -> bytes:
        at = position % len(ring)
        return ring[at : at + length]

    return [one for one in scan(newest_of(pool), len(ring), stored) if isinstance(one, Scanned)]


def flipped(pool: bytes, *places: int) -> bytes:
    """Return the pool with one bit of each of those bytes wrong."""
    content = bytearray(pool)
    for place in places:
        content[place] ^= 1 << place % 8
    return bytes(content)


def place_of(killed: Killed, record: Scanned) -> int:
    """Return where in the pool file a record begins."""
    return RING_OFFSET + record.position % (len(killed.pool) - RING_OFFSET)


SUPERBLOCK_BYTES = (*range(0, 120), 2000, *range(SUPERBLOCK_SIZE - 4, SUPERBLOCK_SIZE))


async def test_the_untouched_pool_has_everything(killed: Killed) -> None:
    assert await killed.outcome(killed.pool) == killed.states[-1]


async def test_a_flipped_superblock_loses_nothing_where_the_other_counts(killed: Killed) -> None:
    older = SUPERBLOCK_SIZE - superblock.place(newest_of(killed.pool).sequence)
    for byte in SUPERBLOCK_BYTES:
        assert await killed.outcome(flipped(killed.pool, older + byte)) == killed.states[-1]


async def test_a_flipped_newest_superblock_leads_to_nothing_wrong(killed: Killed) -> None:
    newest = superblock.place(newest_of(killed.pool).sequence)
    for byte in SUPERBLOCK_BYTES:
        assert await killed.outcome(flipped(killed.pool, newest + byte)) in (None, killed.states[-1])


async def test_without_a_whole_superblock_the_pool_is_refused(killed: Killed) -> None:
    for byte in SUPERBLOCK_BYTES:
        assert await killed.outcome(flipped(killed.pool, byte, SUPERBLOCK_SIZE + byte)) is None
    assert await killed.outcome(bytes(RING_OFFSET) + killed.pool[RING_OFFSET:]) is None


async def test_a_flipped_header_ends_the_log_before_it_or_is_refused(killed: Killed) -> None:
    for record in (killed.records[0], killed.records[len(killed.records) // 2], killed.records[-1]):
        for byte in range(HEADER_SIZE):
            await killed.outcome(flipped(killed.pool, place_of(killed, record) + byte))


async def test_flipped_data_end_the_log_before_them_or_are_refused(killed: Killed) -> None:
    assert any(record.record.data_length == BLOCK for record in killed.records)
    for record in killed.records:
        if record.record.data_length != BLOCK:
            continue
        for byte in (0, 1, 511, 512, BLOCK // 2, BLOCK - 1):
            at = place_of(killed, record) + HEADER_SIZE + byte
            assert await killed.outcome(flipped(killed.pool, at)) != killed.states[-1]


async def test_what_later_records_know_to_be_durable_is_not_cut_off(killed: Killed) -> None:
    known = max(record.record.durable_lsn for record in killed.records)
    flushed = [record for record in killed.records if record.record.lsn <= known]
    assert flushed
    for record in flushed:
        assert await killed.outcome(flipped(killed.pool, place_of(killed, record))) is None


async def test_what_is_not_of_the_log_may_hold_anything(killed: Killed) -> None:
    last = killed.records[-1]
    ring = len(killed.pool) - RING_OFFSET
    free = (last.position + last.size + BLOCK - 1) // BLOCK * BLOCK
    until = killed.records[0].position + ring
    assert until - free > BLOCK
    for at in range(free, until - BLOCK, 977):
        assert await killed.outcome(flipped(killed.pool, RING_OFFSET + at % ring)) == killed.states[-1]


async def test_a_pool_of_another_length_is_refused(killed: Killed) -> None:
    whole = len(killed.pool)
    for length in (0, 1, BLOCK, RING_OFFSET, RING_OFFSET + BLOCK, whole // 2, whole - BLOCK, whole - 1):
        assert await killed.outcome(killed.pool[:length]) is None
    for more in (1, BLOCK):
        assert await killed.outcome(killed.pool + bytes(more)) is None


async def test_a_pool_of_another_layer_or_epoch_is_refused(killed: Killed) -> None:
    bench = killed.bench
    killed.put_back(killed.pool)
    with pytest.raises(CorruptState, match="layer 0 of memory:bench"):
        async with bench.opened(index=1):
            pytest.fail("it opened")
    for epoch in (2, 1000):
        with pytest.raises(Fenced, match=f"epoch 1, .* epoch {epoch}: .*`fusecache discard .* --layer 0 --dirty`"):
            async with bench.opened(epoch=epoch):
                pytest.fail("it opened")
    assert bench.pool.read_bytes() == killed.pool
    assert await killed.outcome(killed.pool) == killed.states[-1]


async def test_a_pool_of_another_image_is_refused(killed: Killed) -> None:
    other = superblock.Superblock(
        **{
            **{name: getattr(newest_of(killed.pool), name) for name in superblock.Superblock.__slots__},
            "identity": "memory:other",
        }
    )
    encoded = superblock.encode(other)
    assert await killed.outcome(encoded + encoded + killed.pool[RING_OFFSET:]) is None


async def test_records_of_another_pool_are_not_taken(killed: Killed) -> None:
    with benched() as other:
        async with other.opened() as layer:
            for number in range(20):
                await write(layer, number % BLOCKS, 1000 + number)
            strange = other.pool.read_bytes()
    assert await killed.outcome(killed.pool[:RING_OFFSET] + strange[RING_OFFSET:]) in (None, killed.states[0])
    for at in range(RING_OFFSET, len(killed.pool), BLOCK):
        await killed.outcome(killed.pool[:at] + strange[at : at + BLOCK] + killed.pool[at + BLOCK :])


async def test_a_clean_layer_takes_nothing_of_what_its_pool_holds(killed: Killed) -> None:
    for pool in (killed.pool, bytes(len(killed.pool)), b"\xff" * len(killed.pool), flipped(killed.pool, 0, 4096, 9000)):
        killed.put_back(pool)
        killed.bench.mark.is_set = False
        async with killed.bench.opened() as layer:
            assert await read(layer, 0, SIZE // BLOCK) == killed.below
            assert not layer.status().dirty_bytes


async def test_what_comes_after_a_cut_off_end_is_not_followed_by_what_was_cut_off(killed: Killed) -> None:
    for record in killed.records[-3:]:
        cut = flipped(killed.pool, place_of(killed, record))
        killed.put_back(cut)
        async with killed.bench.opened() as layer:
            found = await read(layer, 0, BLOCKS)
            assert found in killed.states[:-1]
            await write(layer, 20, 2000)
        async with killed.bench.opened() as layer:
            assert await read(layer, 0, BLOCKS) == found
            assert await read(layer, 20) == block(2000)
