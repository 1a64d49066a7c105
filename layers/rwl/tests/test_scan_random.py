"""Scans of rings that chance has damaged, and of pools that crash again and again."""

import random
import time
from dataclasses import dataclass, field, replace
from typing import Final

from fusecache.api.errors import CorruptState
from fusecache_rwl.format import HEADER_SIZE, Record, RecordType, record_size
from fusecache_rwl.superblock import Superblock
from layers.rwl.tests.support.ring_image import RingImage, superblock

SECTOR: Final = 512


def append_something(ring: RingImage, chance: random.Random) -> None:
    """Append one record of any type, and the PAD that it may need."""
    kind = chance.random()
    if kind < 0.15:
        ring.sync()
    elif kind < 0.3:
        ring.append(chance.choice([RecordType.DISCARD, RecordType.ZERO]), 0, chance.randrange(1, 1 << 44))
    elif kind < 0.35:
        ring.append(RecordType.VOID)
    elif kind < 0.4 and ring.generation > 2:
        last = chance.randrange(2, ring.generation)
        ring.append(RecordType.GROUP, chance.randrange(1, last), last)
    else:
        ring.data(chance.randbytes(chance.choice([1, 512, 512, 700, 4096, 4096, 9000])), chance.randrange(1 << 40))


def damage(ring: RingImage, chance: random.Random) -> None:
    """Do to the ring what should never happen to it."""
    length = chance.choice([1, 8, 64, SECTOR, 4096])
    at = chance.randrange(0, ring.size - length)
    if chance.random() < 0.7:
        at -= at % min(length, SECTOR)
    match chance.randrange(4):
        case 0:
            ring.memory[at] ^= 1 << chance.randrange(8)
        case 1:
            ring.memory[at : at + length] = bytes(length)
        case 2:
            ring.memory[at : at + length] = chance.randbytes(length)
        case _:
            source = chance.randrange(0, ring.size - length) // HEADER_SIZE * HEADER_SIZE
            ring.memory[at : at + length] = ring.memory[source : source + length]


def test_a_damaged_log_is_a_prefix_of_what_it_was_or_corrupt(seed: int, soak_seconds: float) -> None:
    """Nothing but CorruptState is raised, and no record is found that is not right, with its data."""
    chance = random.Random(seed)
    started, damaged, corrupt, shorter = time.monotonic(), 0, 0, 0
    while time.monotonic() < started + soak_seconds:
        ring = RingImage()
        for _ in range(chance.randrange(1, 60)):
            ring.durable = chance.choice([ring.durable, ring.lsn - 1])
            append_something(ring, chance)
        live = [one for one in ring.appended if one[0] >= ring.position - ring.size]
        first = chance.choice(live)
        expected = live[live.index(first) :]
        durable = chance.randrange(ring.lsn)
        pristine = bytes(ring.memory)
        tail = {"tail_position": first[0], "tail_lsn": first[1].lsn, "durable_lsn": durable}
        assert ring.scan(**tail)[0] == expected
        for _ in range(20):
            ring.memory[:] = pristine
            for _ in range(chance.choice([1, 1, 1, 2, 10])):
                damage(ring, chance)
            damaged += 1
            try:
                found, head = ring.scan(**tail)
            except CorruptState:
                corrupt += 1
                continue
            assert found == expected[: len(found)]
            assert head.lsn == first[1].lsn + len(found) > durable
            shorter += len(found) < len(expected)
    print(f"{damaged} damaged logs, {corrupt} of them refused, {shorter} cut short")
    assert corrupt
    assert shorter


@dataclass
class Pool:
    """A pool whose medium forgets, at a crash, any of the sectors that were not synced; *platter* has the others."""

    chance: random.Random
    ring: RingImage = field(default_factory=RingImage)
    platter: bytearray = field(default_factory=bytearray)
    block: Superblock = field(default_factory=lambda: superblock(1 << 16))
    log: list[tuple[int, Record, bytes]] = field(default_factory=list)
    durable: int = 0

    def __post_init__(self) -> None:
        self.platter = bytearray(self.ring.memory)

    def append(self) -> None:
        """Append, where the ring has space: nothing at or behind the tail is ever overwritten."""
        ring, before = self.ring, len(self.ring.appended)
        if ring.position + 2 * record_size(9000) > self.block.tail_position + ring.size:
            return
        ring.durable = self.durable
        # A retried write: the same bytes at the same place as before the crash.
        if self.chance.random() < 0.5:
            ring.data(b"again" * 200)
        else:
            append_something(ring, self.chance)
        self.log += ring.appended[before:]

    def sync(self) -> None:
        """Make durable all that was appended."""
        self.platter[:] = self.ring.memory
        self.durable = self.ring.lsn - 1

    def retire(self) -> None:
        """Move the tail to any durable record; the superblock is durable at once."""
        choice = [one for one in self.log if one[1].lsn <= self.durable]
        if choice:
            position, record, _ = self.chance.choice(choice)
            self.block = replace(
                self.block,
                tail_position=position,
                tail_lsn=record.lsn,
                durable_lsn=max(self.block.durable_lsn, self.chance.choice([record.lsn - 1, self.durable])),
            )
            self.log = [one for one in self.log if one[1].lsn >= record.lsn]

    def crash(self) -> None:
        """Lose power: each sector is on the platter or not. Or only the process dies, and none is lost."""
        if self.chance.random() < 0.2:
            self.platter[:] = self.ring.memory
        for at in range(0, self.ring.size, SECTOR):
            if self.chance.random() < 0.7:
                self.platter[at : at + SECTOR] = self.ring.memory[at : at + SECTOR]
        self.ring.memory[:] = self.platter

    def recover(self) -> None:
        """Scan, and check what is found; then what a recovery does, which may be interrupted after each step."""
        found, head = self.ring.scan_from(self.block)
        assert found == self.log[: len(found)], "a record that was not there, or is not of this life"
        assert head.lsn > self.durable, "a durable record is lost"
        del self.log[len(found) :]
        self.sync_found(head.lsn - 1)
        if self.chance.random() < 0.2:
            return self.recover()
        self.block = replace(self.block, incarnation=self.block.incarnation + 1, durable_lsn=head.lsn - 1)
        if self.chance.random() < 0.2:
            return self.recover()
        ring = self.ring
        ring.position, ring.lsn, ring.generation = head.position, head.lsn, head.generation + 1
        ring.incarnation = self.block.incarnation
        return None

    def sync_found(self, lsn: int) -> None:
        """What was found is durable now."""
        self.platter[:] = self.ring.memory
        self.durable = lsn


def test_a_pool_that_loses_power_again_and_again_keeps_all_that_was_durable(seed: int, soak_seconds: float) -> None:
    """What is found is all that was synced and a prefix of what came after it; never anything of an older life."""
    chance = random.Random(seed)
    started, crashes = time.monotonic(), 0
    while time.monotonic() < started + soak_seconds:
        pool = Pool(chance)
        for _ in range(30):
            for _ in range(chance.randrange(12)):
                chance.choice([pool.append, pool.append, pool.append, pool.append, pool.sync, pool.retire])()
            pool.crash()
            pool.recover()
            crashes += 1
    print(f"{crashes} crashes")
    assert crashes > 100
