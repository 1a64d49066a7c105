"""The mark names the log in the pool: of a process that dies at any step of a discard either log, and no copy of old.

The table stands in ``fusecache_rwl.recovery``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fusecache.api import joined
from fusecache.api.errors import Fenced, unwrapped
from fusecache.testing import MemoryVolume, RecordingMark
from fusecache_rwl.format import SUPERBLOCK_SIZE
from fusecache_rwl.layer import RwlLayer
from fusecache_rwl.superblock import newest
from fusecache_rwl.superblock_io import write_superblock
from layers.rwl.tests.support.one_layer import opened, pool_file

BLOCK = 4096
PAUSED = {"writeback_rate": "0"}


@dataclass(frozen=True)
class Crash:
    """What a process that dies leaves.

    Attributes:
        pool: the pool file's bytes.
        named: the log that the mark names; None where it is not set.
    """

    pool: bytes
    named: str | None

    def mark(self) -> RecordingMark:
        """Return the mark as the next process finds it."""
        mark = RecordingMark(is_set=self.named is not None)
        mark.files_id = self.named or ""
        return mark


def crash_of(pool: Path, mark: RecordingMark) -> Crash:
    return Crash(pool.read_bytes(), mark.files_id if mark.is_set else None)


def log_of(pool: Path) -> str:
    """Return the name of the log that is in the pool."""
    content = pool.read_bytes()
    return newest(content[:SUPERBLOCK_SIZE], content[SUPERBLOCK_SIZE : 2 * SUPERBLOCK_SIZE]).uuid.hex()


async def write(layer: RwlLayer, data: bytes) -> None:
    await layer.write(0, memoryview(data * BLOCK))


async def content(layer: RwlLayer) -> bytes:
    return joined(await layer.read(0, BLOCK))[:1]


async def refusal(pool: Path, mark: RecordingMark) -> BaseException:
    """Return why the layer is not opened."""
    try:
        async with opened(pool, MemoryVolume(BLOCK), mark, **PAUSED):
            raise AssertionError("the layer is open")
    except BaseExceptionGroup as group:
        return unwrapped(group)


async def crashes_of_a_discard(start: Crash, patch: pytest.MonkeyPatch) -> list[Crash]:
    """Open, write, discard and write again; return what was durable before and after each step, from the discard on."""
    found: list[Crash] = []
    with pool_file() as pool, patch.context() as patched:
        mark = start.mark()
        pool.write_bytes(start.pool)

        async def writing(*arguments: Any) -> None:
            found.append(crash_of(pool, mark))
            await write_superblock(*arguments)
            found.append(crash_of(pool, mark))

        async with opened(pool, MemoryVolume(BLOCK), mark, **PAUSED) as layer:
            await write(layer, b"1")
            patched.setattr("fusecache_rwl.log.write_superblock", writing)
            await layer.invalidate(dirty=True)
            found.append(crash_of(pool, mark))
            await write(layer, b"2")
            found.append(crash_of(pool, mark))
    assert [crash.named for crash in found[:-2]] == 4 * [found[0].named]
    assert found[-2].named is None
    assert found[-1].named not in (None, found[0].named)
    return found


def fresh() -> Crash:
    with pool_file() as pool:
        return Crash(pool.read_bytes(), None)


async def test_a_discard_that_dies_at_any_step_leaves_all_or_nothing_and_a_log_that_is_named_by_the_next_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crashes = await crashes_of_a_discard(fresh(), monkeypatch)
    for crash, expected in zip(crashes, (b"1", b"\0", b"\0", b"\0", b"\0", b"2"), strict=True):
        with pool_file() as pool:
            pool.write_bytes(crash.pool)
            mark = crash.mark()
            async with opened(pool, MemoryVolume(BLOCK), mark, **PAUSED) as layer:
                assert await content(layer) == expected
                await write(layer, b"3")
                assert mark.files_id.startswith(log_of(pool))
            async with opened(pool, MemoryVolume(BLOCK), mark, **PAUSED) as layer:
                assert await content(layer) == b"3"
            if expected != b"1":
                pool.write_bytes(crashes[0].pool)
                found = await refusal(pool, mark)
                assert isinstance(found, Fenced)
                assert f"the dirty data is in {mark.files_id}" in str(found)


async def test_a_discard_after_one_that_died_leaves_all_or_nothing_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # What has one superblock of the new log, and both.
    for first in (await crashes_of_a_discard(fresh(), monkeypatch))[1:4]:
        for crash in await crashes_of_a_discard(first, monkeypatch):
            with pool_file() as pool:
                pool.write_bytes(crash.pool)
                async with opened(pool, MemoryVolume(BLOCK), crash.mark(), **PAUSED) as layer:
                    assert await content(layer) in (b"1", b"\0", b"2")


async def test_a_mark_that_cannot_name_the_log_lets_nothing_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = (await crashes_of_a_discard(fresh(), monkeypatch))[3]
    with pool_file() as pool:
        pool.write_bytes(crash.pool)
        mark = crash.mark()
        mark.failure = OSError("no record is written")
        assert await refusal(pool, mark) is mark.failure
        mark.failure = None
        async with opened(pool, MemoryVolume(BLOCK), mark, **PAUSED) as layer:
            assert mark.files_id.startswith(log_of(pool))
            assert mark.files_id != crash.named
            assert await content(layer) == b"\0"


async def test_a_torn_layer_s_old_pool_file_is_refused_with_the_command_that_will_do() -> None:
    with pool_file() as pool:
        mark = RecordingMark()
        async with opened(pool, MemoryVolume(BLOCK), mark, **PAUSED) as layer:
            await write(layer, b"1")
        mark.files_id, mark.is_torn = 32 * "0" + ".1", True
        before = pool.read_bytes()
        assert "--layer 0 --dirty --torn`" in str(await refusal(pool, mark))
        assert pool.read_bytes() == before


async def test_a_copy_from_before_the_log_was_last_clean_is_refused_though_the_log_is_the_same() -> None:
    below = MemoryVolume(BLOCK)
    with pool_file() as pool:
        mark = RecordingMark()
        async with opened(pool, below, mark, **PAUSED) as layer:
            await write(layer, b"1")
        async with opened(pool, below, mark, **PAUSED) as layer:
            copies = [pool.read_bytes()]
            await layer.writeback()
            assert not mark.is_set
            await write(layer, b"2")
            copies.append(pool.read_bytes())
            await layer.writeback()
            await write(layer, b"3")
        newest_one = pool.read_bytes()
        for copy in copies:
            pool.write_bytes(copy)
            found = await refusal(pool, mark)
            assert isinstance(found, Fenced)
            assert pool.read_bytes() == copy
        pool.write_bytes(newest_one)
        async with opened(pool, below, mark, **PAUSED) as layer:
            assert await content(layer) == b"3"


@pytest.mark.parametrize("place", [0, 1])
async def test_a_superblock_that_is_damaged_makes_no_copy_of_before(place: int) -> None:
    below = MemoryVolume(BLOCK)
    with pool_file() as pool:
        mark = RecordingMark()
        async with opened(pool, below, mark, **PAUSED) as layer:
            await write(layer, b"1")
            await layer.writeback()
            await write(layer, b"2")
            damaged = bytearray(pool.read_bytes())
        damaged[place * SUPERBLOCK_SIZE + 100] ^= 1
        pool.write_bytes(damaged)
        async with opened(pool, below, mark, **PAUSED) as layer:
            assert await content(layer) == b"2"
