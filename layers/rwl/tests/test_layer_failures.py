"""What must hold when something fails, is cancelled, or comes from a layer above in the middle of something else."""

import pytest
import trio

from fusecache.api import PENDING, Buffers, Done
from fusecache.api.errors import LayerDirty
from fusecache.testing import GatedVolume, MemoryVolume, RecordingMark
from fusecache_rwl.failures import RecordDamaged
from fusecache_rwl.format import HEADER_SIZE, RING_OFFSET
from fusecache_rwl.layer import RwlLayer
from fusecache_rwl.medium_base import ReadEnd
from layers.rwl.tests.support.one_layer import opened, opened_once, pool_file

SIZE = 1 << 20
PATIENCE = 3.0
"""Seconds after which a test that waits has failed."""


def data(length: int, byte: int = 1) -> memoryview:
    """Return so many bytes."""
    return memoryview(bytes([byte]) * length)


async def content(layer: RwlLayer, length: int) -> bytes:
    """Read from the layer's beginning."""
    return b"".join(await layer.read(0, length))


async def test_dropping_clean_content_never_drops_what_a_layer_above_writes_back_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened_once(MemoryVolume(SIZE), RecordingMark(), writeback_rate=0) as layer:
        stop = layer.moving.stop

        async def late() -> None:
            await layer.write(0, data(4096))
            await stop()

        monkeypatch.setattr(layer.moving, "stop", late)
        with pytest.raises(LayerDirty):
            await layer.invalidate(dirty=False)
        assert await content(layer, 4096) == data(4096)
        await layer.writeback()


async def test_write_back_goes_on_after_a_cancelled_discard() -> None:
    below = GatedVolume(MemoryVolume(SIZE), {"write"})
    async with opened_once(below, RecordingMark()) as layer:
        await layer.write(0, data(4096))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(layer.writeback)
            await below.wait_held(1)
            with trio.move_on_after(0) as scope:
                await layer.invalidate(dirty=True)
            assert scope.cancelled_caught
            below.open()
            with trio.fail_after(PATIENCE):
                await layer.write(0, data(4096, 2))
                await layer.writeback()


async def test_what_is_moved_below_is_durable_in_the_log_before() -> None:
    below = GatedVolume(MemoryVolume(SIZE), {"write"})
    async with opened_once(below, RecordingMark(), max_dirty_age="0s") as layer:
        await layer.write(0, data(4096))
        with trio.fail_after(PATIENCE):
            await below.wait_held(1)

        def never(error: BaseException | None) -> None:
            raise AssertionError("something was not durable")

        assert layer._medium.sync(never)
        below.open()


@pytest.mark.parametrize("size", [SIZE * 2, SIZE + 700])
async def test_another_length_is_durable_below_before_anything_is_written_there(size: int) -> None:
    """A flush makes durable what is written beyond the old end; without the length it could not be written back."""
    below = GatedVolume(MemoryVolume(SIZE), {"flush"})
    async with opened_once(below, RecordingMark()) as layer, trio.open_nursery() as nursery:
        nursery.start_soon(layer.resize, size)
        with trio.fail_after(PATIENCE):
            await below.wait_held(1)
        assert below.size == size
        below.open()


async def test_a_flush_that_ends_after_all_was_dropped_says_nothing_of_the_new_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, mark = MemoryVolume(SIZE), RecordingMark()
    with pool_file() as pool:
        async with opened(pool, memory, mark, writeback_rate=0) as layer:
            for _ in range(4):
                await layer.write(0, data(512))
            ends: list[Done] = []
            told: list[BaseException | None] = []

            def held(done: Done) -> bool:
                ends.append(done)
                return False

            with monkeypatch.context() as patch:
                patch.setattr(layer._medium, "sync", held)
                assert layer.try_flush(told.append) is PENDING
            await layer.invalidate(dirty=True)
            ends[0](None)
            assert told == [None]
            await layer.write(0, data(512, 2))
        async with opened(pool, memory, mark) as layer:
            assert await content(layer, 512) == data(512, 2)


async def test_no_append_that_fails_leaves_a_hole_before_later_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, mark = MemoryVolume(SIZE), RecordingMark()
    with pool_file() as pool:
        async with opened(pool, memory, mark, writeback_rate=0) as layer:
            await layer.write(0, data(512))

            def failing(*_: object) -> None:
                raise MemoryError

            with monkeypatch.context() as patch:
                patch.setattr(layer.moving._log, "_append", failing)
                await layer.write(512, data(512))
            await layer.write(1024, data(512))
        async with opened(pool, memory, mark) as layer:
            assert await content(layer, 1536) == data(1536)


async def test_a_mark_that_cannot_be_cleared_does_not_undo_that_all_was_dropped() -> None:
    mark = RecordingMark()
    async with opened_once(MemoryVolume(SIZE), mark, writeback_rate=0) as layer:
        await layer.write(0, data(512))
        mark.failure = OSError(5, "the record cannot be written")
        await layer.invalidate(dirty=True)
        assert await content(layer, 512) == bytes(512)
        mark.failure = None


@pytest.mark.parametrize("proven", [True, False], ids=["proven", "not proven"])
async def test_a_read_under_way_when_the_log_fails_is_answered_by_what_is_proven(
    proven: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = GatedVolume(MemoryVolume(SIZE))
    with pool_file() as pool:
        async with opened(pool, below, RecordingMark(), writeback_rate=0) as layer:
            await layer.write(0, data(512))
            ends: list[ReadEnd] = []
            told: list[BaseException | Buffers | None] = []
            ended = trio.Event()

            def done(error: BaseException | None, buffers: Buffers) -> None:
                told.append(error or [bytes(buffer) for buffer in buffers])
                ended.set()

            with monkeypatch.context() as patch:
                patch.setattr(layer._medium, "read_now", lambda position, length: None)
                patch.setattr(layer._medium, "read", lambda position, length, done: ends.append(done))
                assert layer.try_read(0, 512, done) is PENDING
            if not proven:
                content = bytearray(pool.read_bytes())
                content[RING_OFFSET + HEADER_SIZE] ^= 1
                pool.write_bytes(content)
            layer.moving._log.fail(OSError(5, "the disk failed"))
            ends[0](None, bytes(512))
            with trio.fail_after(PATIENCE):
                await ended.wait()
            assert told == [[data(512)]] if proven else isinstance(told[0], RecordDamaged)
            below.open()
