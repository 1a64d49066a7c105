"""Whole pool files damaged at random: the plugin refuses them, or opens them as they were at an earlier time."""

import hashlib
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusecache.api import Layer, joined
from fusecache.api.errors import CorruptState, Fenced
from fusecache.testing import MemoryVolume, RecordingMark, layer_context, validated
from fusecache_rwl.format import RING_OFFSET
from fusecache_rwl.plugin import plugin
from layers.rwl.tests.support.bench import WHERE, raised_alone

SIZE = 1 << 20
POOL = 16 << 20
PAGE = 4096


@dataclass
class Damaged:
    """A pool as a killed process left it, and what it may be damaged with.

    Attributes:
        pool: the file's bytes.
        early: its bytes at an earlier time.
        below: the image.
        states: the digest of the volume after each change since the last write-back, and how many there were.
        end: the log's end in the file.
    """

    place: Path
    pool: bytes
    early: bytes
    below: bytes
    states: Mapping[bytes, int]
    end: int


@asynccontextmanager
async def opened(place: Path, below: MemoryVolume, mark: RecordingMark) -> AsyncIterator[Layer]:
    """Open the layer through its plugin; it writes back only when asked."""
    config = validated(plugin, {"path": str(place), "size": "16MiB", "writeback_rate": "0"})
    with raised_alone():
        async with (
            layer_context(config, identity=WHERE, dirty=mark) as context,
            plugin.open(context, below) as layer,
        ):
            yield layer


async def digest(layer: Layer) -> bytes:
    """Return the digest of all that is there."""
    return hashlib.sha256(joined(await layer.read(0, SIZE))).digest()


async def change(layer: Layer, chance: random.Random) -> None:
    """Make one change."""
    length = chance.choice((512, 4096, 4096, 4096, 65536, 262144))
    offset = chance.randrange((SIZE - length) // 512 + 1) * 512
    kind = chance.random()
    if kind < 0.1:
        await layer.discard(offset, length)
    elif kind < 0.2:
        await layer.write_zeroes(offset, length)
    else:
        await layer.write(offset, memoryview(chance.randbytes(length)))


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


async def made(place: Path, chance: random.Random) -> Damaged:
    """Write until the ring has gone round, write back, recover once, write more; and leave it as a kill would."""
    below, mark = MemoryVolume(SIZE), RecordingMark()
    states: dict[bytes, int] = {}
    async with opened(place, below, mark) as layer:
        for _ in range(70):
            await layer.write(chance.randrange(4) << 18, memoryview(chance.randbytes(1 << 18)))
            if layer.status().dirty_bytes > POOL // 2:
                await layer.writeback()
        await layer.writeback()
        early = _file(place).read_bytes()
        for _ in range(10):
            states[await digest(layer)] = len(states)
            await change(layer, chance)
    async with opened(place, below, mark) as layer:
        for number in range(40):
            states[await digest(layer)] = len(states)
            await change(layer, chance)
            if number == 20:
                await layer.flush()
        states[await digest(layer)] = len(states)
        pool = _file(place).read_bytes()
    changed = [at for at in range(RING_OFFSET, POOL, PAGE) if pool[at : at + PAGE] != early[at : at + PAGE]]
    return Damaged(place, pool, early, bytes(below.content.read(0, SIZE)), states, changed[-1] + PAGE)


def _file(place: Path) -> Path:
    (path,) = place.iterdir()
    return path


def flip_bits(damaged: Damaged, content: bytearray, chance: random.Random) -> None:
    """Flip a few bits, mostly where the log is."""
    for _ in range(chance.choice((1, 1, 2, 8, 64))):
        content[_somewhere(damaged, chance)] ^= 1 << chance.randrange(8)


def overwrite(damaged: Damaged, content: bytearray, chance: random.Random) -> None:
    """Put zeroes or rubbish somewhere."""
    at, length = _somewhere(damaged, chance), chance.choice((1, 64, 512, PAGE, 10 * PAGE))
    length = min(length, POOL - at)
    content[at : at + length] = chance.choice((bytes(length), b"\xff" * length, chance.randbytes(length)))


def misdirect(damaged: Damaged, content: bytearray, chance: random.Random) -> None:
    """Have a write arrive at another page."""
    source, target = (_somewhere(damaged, chance) // PAGE * PAGE for _ in range(2))
    length = min(chance.choice((1, 1, 8)) * PAGE, POOL - max(source, target))
    content[target : target + length] = content[source : source + length]


def lose_writes(damaged: Damaged, content: bytearray, chance: random.Random) -> None:
    """Have some pages of the ring as they were earlier."""
    for _ in range(chance.choice((1, 1, 4))):
        at = max(RING_OFFSET, _somewhere(damaged, chance) // PAGE * PAGE)
        content[at : at + PAGE] = damaged.early[at : at + PAGE]


def cut(damaged: Damaged, content: bytearray, chance: random.Random) -> None:
    """Lose the end of the file."""
    del content[chance.randrange(POOL) :]


DAMAGES: tuple[Callable[[Damaged, bytearray, random.Random], None], ...] = (
    *(flip_bits, flip_bits, overwrite, overwrite, misdirect, lose_writes),
    cut,
)


def _somewhere(damaged: Damaged, chance: random.Random) -> int:
    kind = chance.random()
    if kind < 0.2:
        return chance.randrange(RING_OFFSET)
    if kind < 0.9:
        return chance.randrange(max(RING_OFFSET, damaged.end - (4 << 20)), damaged.end)
    return chance.randrange(POOL)


async def open_damaged(damaged: Damaged, content: bytes | bytearray, chance: random.Random) -> int | None:
    """Open that pool, change it, and open it again; return how many changes it had, None where it is refused."""
    _file(damaged.place).write_bytes(content)
    below, mark = MemoryVolume(SIZE), RecordingMark(is_set=True)
    below.content.write(0, damaged.below)
    try:
        async with opened(damaged.place, below, mark) as layer:
            found = await digest(layer)
            assert found in damaged.states, "the volume is as it never was"
            for _ in range(3):
                await change(layer, chance)
            expected = await digest(layer)
    except (CorruptState, Fenced):
        assert bytes(below.content.read(0, SIZE)) == damaged.below
        return None
    async with opened(damaged.place, below, mark) as layer:
        assert await digest(layer) == expected
        await layer.writeback()
    assert hashlib.sha256(below.content.read(0, SIZE)).digest() == expected
    return damaged.states[found]


async def test_a_pool_damaged_at_random_is_refused_or_as_it_once_was(
    place: Path, seed: int, soak_seconds: float
) -> None:
    chance = random.Random(seed)
    until = time.monotonic() + soak_seconds
    damaged = await made(place, chance)
    # Not their count less one: a change may have brought back what was there before.
    last = max(damaged.states.values())
    assert await open_damaged(damaged, damaged.pool, chance) == last
    outcomes: list[int | None] = []
    while not outcomes or time.monotonic() < until:
        content = bytearray(damaged.pool)
        damages = [chance.choice(DAMAGES) for _ in range(chance.choice((1, 1, 2)))]
        print(len(outcomes), *(damage.__name__ for damage in damages))
        for damage in damages:
            if len(content) == POOL:
                damage(damaged, content, chance)
        outcomes.append(await open_damaged(damaged, content, chance))
    print(f"{len(outcomes)} damaged pools: {outcomes.count(None)} refused, {outcomes.count(last)} whole")
