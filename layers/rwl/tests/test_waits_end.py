"""Whoever waits for a layer is told, whatever happens meanwhile; and write-back goes at the rate that is asked for."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import PENDING, Buffers
from fusecache.api.errors import VolumeClosed, VolumeReadOnly
from fusecache.testing import Fault, FaultyVolume, GatedVolume, MemoryVolume, RecordingMark
from fusecache_rwl import layer as layer_module
from fusecache_rwl.layer import RwlLayer
from fusecache_rwl.superblock_io import write_superblock
from fusecache_rwl.waits import Waits
from layers.rwl.tests.support.one_layer import RING, opened, opened_once, pool_file

SIZE = 1 << 20
PATIENCE = 3.0
"""Seconds after which a test that waits has failed."""


def data(length: int, byte: int = 1) -> memoryview:
    """Return so many bytes."""
    return memoryview(bytes([byte]) * length)


async def fill(layer: RwlLayer) -> None:
    """Write until the log is full."""
    offset = 0
    await layer.write(0, data(4096))
    while layer.moving._log.space.free > 8192:
        offset += 4096
        await layer.write(offset, data(4096))


async def test_a_write_that_waits_for_a_read_to_let_go_of_clean_data_goes_on_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened_once(MemoryVolume(SIZE), RecordingMark(), stall_timeout="never") as layer:
        await fill(layer)
        await layer.writeback()
        ends: list[object] = []
        monkeypatch.setattr(layer._medium, "read_now", lambda position, length: None)
        monkeypatch.setattr(layer._medium, "read", lambda position, length, done: ends.append(done))
        told: list[BaseException | None] = []

        def read(error: BaseException | None, buffers: Buffers) -> None:
            told.append(error)

        assert layer.try_read(0, 4096, read) is PENDING
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(layer.write, 0, data(RING // 2))
                await wait_all_tasks_blocked()
                assert layer.status().dirty_bytes == 0, "nothing had to wait"
                (end,) = ends
                assert callable(end)
                end(None, bytes(4096))
        assert told == [None]


async def test_a_write_that_waits_for_space_when_the_log_fails_goes_below_when_all_else_has() -> None:
    below = GatedVolume(MemoryVolume(SIZE))
    async with opened_once(below, RecordingMark(), stall_timeout="never") as layer:
        await fill(layer)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(layer.write, 0, data(16384, 2))
                await below.wait_held(1)
                layer.moving._log.fail(OSError("the disk is gone"))
                below.open()
        assert not layer.status().dirty_bytes
        assert b"".join(await layer.read(0, 20480)) == data(16384, 2).tobytes() + data(4096)


async def test_a_full_log_over_a_failing_level_does_not_ask_it_without_pause() -> None:
    below = FaultyVolume(MemoryVolume(SIZE))
    fault = below.inject(Fault({"write"}))
    async with opened_once(below, RecordingMark(), stall_timeout="never") as layer:
        await fill(layer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(layer.write, 0, data(16384))
            for _ in range(300):
                await trio.lowlevel.checkpoint()
            assert fault.hits < 40, f"{fault.hits} writes below failed in a moment"
            below.heal()


async def test_a_discard_does_not_use_up_the_rate() -> None:
    below = GatedVolume(MemoryVolume(SIZE), {"flush"})
    async with opened_once(below, RecordingMark(), writeback_rate=1024, max_dirty_age="0s") as layer:
        with trio.fail_after(PATIENCE):
            await layer.discard(0, SIZE)
            await below.wait_held(1)
        below.open()


async def test_another_rate_ends_the_pause_of_the_one_before() -> None:
    below = GatedVolume(MemoryVolume(SIZE), {"flush"})
    async with opened_once(below, RecordingMark(), writeback_rate=1, max_dirty_age="0s") as layer:
        with trio.fail_after(PATIENCE):
            await layer.write(0, data(4096))
            await wait_all_tasks_blocked()
            assert not below.held
            layer.set_writeback_rate(None)
            await below.wait_held(1)
        below.open()


async def test_rate_zero_stops_a_write_back_that_is_under_way() -> None:
    memory = MemoryVolume(SIZE)
    below = GatedVolume(memory, {"write"})
    async with opened_once(below, RecordingMark(), max_dirty_age="0s", writeback_depth=1) as layer:
        with trio.fail_after(PATIENCE):
            await layer.write(0, data(512))
            await layer.write(SIZE // 2, data(512))
            await below.wait_held(1)
            layer.set_writeback_rate(0)
            below.held[0].let_go()
            await wait_all_tasks_blocked()
        assert not below.held
        assert layer.status().dirty_bytes > 0


async def test_a_layer_that_is_configured_as_paused_says_so() -> None:
    """The core leaves paused layers alone when it gives an image up."""
    async with opened_once(MemoryVolume(SIZE), RecordingMark(), writeback_rate=0) as layer:
        assert layer.writeback_rate == 0


async def test_a_write_back_that_was_asked_for_ends_with_the_layer() -> None:
    below = GatedVolume(MemoryVolume(SIZE), {"write"})
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:

            async def write_back(layer: RwlLayer) -> None:
                with pytest.raises(VolumeClosed):
                    await layer.writeback()

            async with opened_once(below, RecordingMark()) as layer:
                await layer.write(0, data(4096))
                nursery.start_soon(write_back, layer)
                await below.wait_held(1)


async def test_writing_back_to_a_level_that_is_read_only_is_refused() -> None:
    memory, mark = MemoryVolume(SIZE), RecordingMark()
    with pool_file() as pool:
        async with opened(pool, memory, mark, writeback_rate=0) as layer:
            await layer.write(0, data(4096))
        again = MemoryVolume(image=memory.image, read_only=True)
        async with opened(pool, again, mark) as layer:
            with trio.fail_after(PATIENCE), pytest.raises(VolumeReadOnly):
                await layer.writeback()


async def test_a_close_does_not_wait_for_a_backend_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(RecordingMark):
        async def clear(self) -> None:
            self.is_set = False
            await trio.sleep_forever()

    monkeypatch.setattr(layer_module, "_PATIENCE", 0.0)
    with trio.fail_after(PATIENCE):
        async with opened_once(MemoryVolume(SIZE), Hanging()) as layer:
            await layer.write(0, data(4096))
            await layer.moving.drain()


async def test_a_superblock_that_another_commit_has_just_covered_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened_once(MemoryVolume(SIZE), RecordingMark()) as layer:
        monkeypatch.setattr(layer._medium._committer, "sync", lambda done: True)  # type: ignore[attr-defined]
        with trio.move_on_after(PATIENCE) as patience:
            # Not under the shield that the log has around it: a failure here would hang.
            await write_superblock(layer._medium, layer.moving._log.superblock, Waits())
        assert not patience.cancelled_caught
        monkeypatch.undo()
