"""A dirty record is not what was written: it never goes below, nobody reads it, and it is told."""

import pytest
import trio

from fusecache.api import LayerState, Span
from fusecache.testing import Fault
from fusecache_rwl.failures import LogFailed, RecordDamaged
from fusecache_rwl.format import HEADER_SIZE, RING_OFFSET, record_size
from fusecache_rwl.layer import RwlLayer
from layers.rwl.tests.support.bench import BLOCK, RING, Bench, block, read, write

PATIENCE = 5.0
"""Seconds after which a test that waits has failed."""
RECORD = record_size(BLOCK)


def flip(bench: Bench, number: int, byte: int) -> None:
    """Turn a bit of a byte of the ring's record of that number, if all are of a block and none was before."""
    at = RING_OFFSET + (number * RECORD + byte) % RING
    with bench.pool.open("r+b", buffering=0) as pool:
        pool.seek(at)
        old = pool.read(1)
        pool.seek(at)
        pool.write(bytes([old[0] ^ 4]))


async def fill(layer: RwlLayer, count: int = 3) -> bytes:
    """Write blocks; return them."""
    for number in range(count):
        await write(layer, number, number)
    return b"".join(block(number) for number in range(count))


@pytest.mark.parametrize("cold", [False, True], ids=["in memory", "on the device"])
@pytest.mark.parametrize("byte", [8, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + BLOCK - 1])
async def test_a_flipped_byte_of_a_dirty_record_never_goes_below(bench: Bench, byte: int, cold: bool) -> None:
    async with bench.opened(writeback_depth=1) as layer:
        written = await fill(layer)
        bench.medium.cold = cold
        flip(bench, 1, byte)
        for _ in range(2):
            with pytest.raises(RecordDamaged, match=f"position {RECORD}, of {BLOCK} bytes of the image at {BLOCK},"):
                await layer.writeback()
        assert bench.below(BLOCK) == bytes(BLOCK)
        assert layer.status().state is LayerState.FAILED
        assert layer.status().errors == 1
        assert bench.events == ["log-failed", "writeback-failed"]
        # What is proven is still served, what is not is not.
        assert await read(layer, 0) + await read(layer, 2) == written[:BLOCK] + written[2 * BLOCK :]
        for number, count in ((1, 1), (0, 2)):
            with pytest.raises(RecordDamaged) as caught:
                await read(layer, number, count)
            assert caught.value.errno == 5
        # What was acknowledged may not survive, and nothing more is taken on top of it.
        with pytest.raises(RecordDamaged):
            await layer.flush()
        with pytest.raises(LogFailed):
            await write(layer, 5, 5)
        assert bench.mark.is_set


async def test_a_record_that_is_good_again_is_saved_and_the_layer_goes_on(bench: Bench) -> None:
    async with bench.opened() as layer:
        written = await fill(layer)
        flip(bench, 1, 100)
        with pytest.raises(RecordDamaged):
            await layer.writeback()
        flip(bench, 1, 100)
        await layer.flush()
        assert bench.below(0, 3 * BLOCK) == written
        await layer.writeback()
        with trio.fail_after(PATIENCE):
            await bench.wait_for("log-resumed")
        assert await fill(layer) == written
        assert layer.status().state is LayerState.DIRTY


async def test_a_discard_of_the_damaged_layer_helps(bench: Bench) -> None:
    async with bench.opened() as layer:
        await fill(layer)
        flip(bench, 0, 100)
        with pytest.raises(RecordDamaged):
            await layer.writeback()
        below = bench.below(0, 3 * BLOCK)
        await layer.invalidate(dirty=True)
        assert await read(layer, 0, 3) == below
        await write(layer, 0, 7)
        with trio.fail_after(PATIENCE):
            await bench.wait_for("log-aside")
        await layer.flush()
        assert await read(layer, 0) == block(7)


async def test_an_older_record_of_the_same_blocks_is_no_proof(bench: Bench) -> None:
    """The ring's place holds what the device had before: whole, of this pool, of this range, and too old."""
    async with bench.opened() as layer:
        count = RING // RECORD - 1
        below = await fill(layer, count)
        await layer.writeback()
        before = bench.pool.read_bytes()
        # Up to the ring's end.
        await write(layer, 100, 100)
        await layer.writeback()
        # The same places get the same ranges again.
        for number in range(count):
            await write(layer, number, 1000 + number)
        bench.pool.write_bytes(before)
        with pytest.raises(RecordDamaged):
            await layer.writeback()
        assert bench.below(0, count * BLOCK) == below


async def test_a_record_of_which_only_parts_are_newest_is_checked_as_a_whole(bench: Bench) -> None:
    async with bench.opened() as layer:
        await layer.write(0, memoryview(block(1) * 4))
        await write(layer, 1, 2)
        await layer.write(2 * BLOCK, memoryview(block(3)[:512]))
        expected = block(1) + block(2) + block(3)[:512] + block(1)[512:] + block(1)
        position = RING_OFFSET + HEADER_SIZE + BLOCK
        content = bytearray(bench.pool.read_bytes())
        content[position] ^= 1
        bench.pool.write_bytes(content)
        with pytest.raises(RecordDamaged):
            await layer.writeback()
        assert bench.below() == bytes(BLOCK)
        content[position] ^= 1
        bench.pool.write_bytes(content)
        await layer.writeback()
        assert bench.below(0, 4 * BLOCK) == expected


async def test_a_failed_log_answers_reads_by_what_it_can_prove(bench: Bench) -> None:
    async with bench.opened() as layer:
        written = await fill(layer)
        await layer.writeback()
        await write(layer, 1, 11)
        await layer.flush()
        await layer.write(2 * BLOCK + 512, memoryview(block(12)[:1024]))
        bench.faults.inject(Fault({"write"}, span=Span(0, 4 * BLOCK)))
        layer.moving._log.fail(OSError(5, "the disk failed"))
        newest = written[:BLOCK] + block(11) + written[2 * BLOCK :][:512] + block(12)[:1024] + written[-BLOCK + 1536 :]
        assert await read(layer, 0, 3) == newest
        assert b"".join(await layer.read(BLOCK + 512, 2048)) == newest[BLOCK + 512 :][:2048]
        # What was clean is read below, whatever the pool has.
        flip(bench, 0, 100)
        assert await read(layer, 0) == written[:BLOCK]
        bench.faults.heal()
        await layer.flush()
        assert bench.below(0, 3 * BLOCK) == newest


async def test_reads_go_on_while_the_level_below_keeps_a_failed_log_waiting(bench: Bench) -> None:
    async with bench.opened(writeback_depth=2) as layer:
        written = await fill(layer, 8)
        bench.gate.close()
        layer.moving._log.fail(OSError(5, "the disk failed"))
        await bench.gate.wait_held(1)
        assert await read(layer, 0, 8) == written
        bench.gate.open()
        await layer.flush()
        assert bench.below(0, 8 * BLOCK) == written
