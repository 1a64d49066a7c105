"""Sync points: appended where they tell a recovery something, and never waited for."""

import trio

from fusecache.api import DONE
from fusecache.testing import MemoryVolume, RecordingMark
from fusecache_rwl.format import RecordType
from fusecache_rwl.layer import RwlLayer
from fusecache_rwl.log import Log
from fusecache_rwl.scan import Head, Scanned, scan
from layers.rwl.tests.support.bench import benched
from layers.rwl.tests.support.one_layer import opened_once

SIZE = 1 << 20
DATA = memoryview(b"d" * 4096)


def log_of(layer: RwlLayer) -> Log:
    return layer._log


def types(log: Log) -> list[RecordType]:
    """Return the types of the records in the log, less PADs."""
    found: list[Scanned | Head] = list(scan(log.superblock, log.medium.ring_size, log.medium.read_blocking))
    return [one.record.type for one in found if isinstance(one, Scanned) and one.record.type is not RecordType.PAD]


def bounds(log: Log) -> list[int]:
    """Return the LSNs that the records say are durable."""
    found: list[Scanned | Head] = list(scan(log.superblock, log.medium.ring_size, log.medium.read_blocking))
    return [one.record.durable_lsn for one in found if isinstance(one, Scanned)]


async def test_a_flush_after_a_write_to_the_page_cache_appends_nothing() -> None:
    async with opened_once(MemoryVolume(SIZE), RecordingMark()) as layer:
        for number in range(4):
            await layer.write(number * 4096, DATA)
            await layer.flush()
        assert types(log_of(layer)) == [RecordType.DATA] * 4
        # Each says that the one before was flushed.
        assert bounds(log_of(layer)) == [0, 1, 2, 3]
        assert [len(sealed) for sealed in log_of(layer).ledger._sealed] == [1, 1, 1, 1]


async def test_a_flush_says_that_the_last_write_is_durable_where_it_was_already_and_waits_for_nothing() -> None:
    async with opened_once(MemoryVolume(SIZE), RecordingMark(), persist="write") as layer:
        for number in range(3):
            await layer.write(number * 4096, DATA)
            assert layer.try_flush(lambda error: None) is DONE
            assert layer.try_flush(lambda error: None) is DONE
        assert types(log_of(layer)) == [RecordType.DATA, RecordType.SYNC] * 3
        assert bounds(log_of(layer)) == [0, 1, 1, 3, 3, 5]


async def test_a_flush_behind_one_that_has_ended_meanwhile_tells_what_that_made_durable() -> None:
    with benched() as bench:
        async with bench.opened() as layer:
            await layer.write(0, DATA)
            await layer.write(4096, DATA)
            async with trio.open_nursery() as nursery:
                bench.medium.hold("sync")
                nursery.start_soon(layer.flush)
                await bench.medium.wait_held()
                await layer.write(8192, DATA)
                bench.medium.let_go()
            await layer.flush()
            # The third record was made when nothing was known to be durable.
            assert types(log_of(layer)) == [*[RecordType.DATA] * 3, RecordType.SYNC]
            assert bounds(log_of(layer)) == [0, 0, 0, 2]
