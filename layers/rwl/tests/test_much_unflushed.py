"""What nobody flushes goes below in parts, in the order in which it was written: space comes back part by part."""

from collections.abc import Iterator

import pytest
import trio

from fusecache.api import DECLINED, PENDING
from fusecache_rwl.ledger import Ledger, generation_size
from layers.rwl.tests.support.bench import BLOCK, SIZE, Bench, benched, block, read, write
from layers.rwl.tests.support.failing_medium import PATIENCE
from layers.rwl.tests.support.retiring import until

MIB = 1 << 20
RING = 8 * MIB
BLOCKS = SIZE // BLOCK


@pytest.fixture
def bench() -> Iterator[Bench]:
    with benched(ring=RING) as made:
        yield made


@pytest.mark.parametrize(
    ("ring", "most"),
    [(MIB, MIB), (8 * MIB, MIB), (64 * MIB, 8 * MIB), (128 * MIB, 16 * MIB), (1 << 40, 16 * MIB)],
)
def test_a_generation_is_an_eighth_of_the_ring_from_one_mebibyte_to_sixteen(ring: int, most: int) -> None:
    assert generation_size(ring) == most


def test_a_generation_is_full_so_many_bytes_behind_the_end_of_the_last_one() -> None:
    ledger = Ledger(most=1000)
    assert ledger.full_at == 1000
    ledger.add(1, 0, BLOCK, 0, 0.0)
    ledger.seal(4160, 2)
    assert ledger.full_at == 5160
    ledger.seal(9000, 3)
    assert ledger.full_at == 5160, "nothing was sealed"
    ledger.clear()
    assert ledger.full_at == 1000


async def test_a_writer_in_a_full_log_gets_the_space_of_the_first_part_though_the_next_one_hangs(bench: Bench) -> None:
    async with bench.opened(stall_timeout="60s") as layer, trio.open_nursery() as nursery:
        await write(layer, 0, 0)
        written = 1
        while layer.try_write(written % BLOCKS * BLOCK, memoryview(block(written)), lambda _: None) is not DECLINED:
            written += 1
        ledger = layer._log.ledger
        first, parts = ledger.oldest_sealed(), ledger.oldest_sealed(6)
        assert first is not None
        assert parts is not None, "it is one generation"
        assert max(first.end_position, parts.end_position // 7) <= generation_size(RING) + BLOCK + 64
        bench.gate.close()
        over = trio.Event()

        async def change() -> None:
            await write(layer, 0, written)
            over.set()

        nursery.start_soon(change)
        with trio.fail_after(PATIENCE):
            while not over.is_set():
                await until(lambda: bench.gate.held or over.is_set())
                if layer._log.superblock.written_back == 0 and bench.gate.held:
                    bench.gate.held[0].let_go()
                await trio.lowlevel.checkpoint()
        assert layer._log.superblock.written_back == 1
        number = len(first) - 1
        assert bench.below(number % BLOCKS * BLOCK) == block(number), "below is not all of the first part"
        bench.gate.open()
    async with bench.opened() as layer:
        assert await read(layer) == block(written)
        await layer.writeback()
    assert bench.below() == block(written)


@pytest.mark.parametrize("persist", ["flush", "write"])
async def test_a_log_that_is_recovered_has_the_parts_that_it_had(bench: Bench, persist: str) -> None:
    async with bench.opened(persist=persist) as layer:
        await write(layer, 0, 0)
        for number in range(1, 600):
            if layer.try_write(number % BLOCKS * BLOCK, memoryview(block(number)), lambda _: None) is PENDING:
                await until(lambda: layer._log.durable_lsn == layer._log.lsn - 1)
        ledger = layer._log.ledger
        ends = [one.end_position for one in ledger.sealed_until(ledger.open_generation)]
    assert len(ends) == 2
    async with bench.opened() as layer:
        ledger = layer._log.ledger
        assert [one.end_position for one in ledger.sealed_until(ledger.open_generation)][:2] == ends
