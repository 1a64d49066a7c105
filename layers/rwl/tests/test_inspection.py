"""What an inspection tells of a pool file, whole and damaged."""

import fcntl
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fusecache.api import Inspection
from fusecache.api.errors import CorruptState
from fusecache_rwl.format import HEADER_SIZE, RING_OFFSET, SUPERBLOCK_SIZE, RecordType
from fusecache_rwl.inspection import inspect_pool
from fusecache_rwl.superblock import encode, place
from layers.rwl.tests.support.ring_image import RingImage, superblock

RING = 256 << 10


@dataclass
class Pool:
    """A pool file made of records."""

    path: Path
    ring: RingImage = field(default_factory=lambda: RingImage(size=RING))

    def write(self, **changes: int) -> None:
        """Write the file, with the superblock of a new pool but for *changes*."""
        block = superblock(RING, **changes)
        blocks = bytearray(RING_OFFSET)
        blocks[place(block.sequence) : place(block.sequence) + SUPERBLOCK_SIZE] = encode(block)
        self.path.write_bytes(bytes(blocks) + self.ring.memory)

    def damage(self, at: int) -> None:
        """Flip a bit at an offset of the file."""
        content = bytearray(self.path.read_bytes())
        content[at] ^= 1
        self.path.write_bytes(content)

    def inspect(self, *, verify: bool = True) -> Inspection:
        """Inspect; nothing is changed by it."""
        before = self.path.read_bytes(), self.path.stat().st_mtime_ns
        found = inspect_pool(self.path, verify=verify)
        assert (self.path.read_bytes(), self.path.stat().st_mtime_ns) == before
        return found


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """A pool of two generations: 1 with two writes and a discard, 2 with one write."""
    made = Pool(tmp_path / "rwl.test.0.pool")
    made.ring.data(b"a" * 4096, 0)
    made.ring.data(b"b" * 4096, 8192)
    made.ring.append(RecordType.DISCARD, 16384, 16384)
    made.ring.sync()
    made.ring.data(b"c" * 4096, 4096)
    made.write()
    return made


def group(found: Inspection, name: str) -> Mapping[str, object]:
    facts = found.facts[name]
    assert isinstance(facts, Mapping)
    return facts


@pytest.mark.parametrize("verify", [False, True], ids=["quick", "verify"])
def test_a_good_pool_is_described(pool: Pool, verify: bool) -> None:
    found = pool.inspect(verify=verify)
    assert list(found.problems) == []
    assert "layer 0 of rbd:f:1::10aa" in found.title
    assert (found.facts["state"], found.facts["in_use_by"]) == ("dirty", None)
    records = {"data": 3, "discard": 1, "zero": 0, "sync": 1, "pad": 0, "void": 0, "group": 0}
    assert dict(group(found, "records")) == records
    log = group(found, "log")
    assert (log["tail_lsn"], log["head_lsn"], log["used_bytes"]) == (1, 6, pool.ring.position)
    assert log["generation"] == 2
    assert group(found, "superblock")["format_version"] == 2


@pytest.mark.parametrize("verify", [False, True], ids=["quick", "verify"])
def test_the_group_in_flight_is_named_until_it_is_written_back(pool: Pool, verify: bool) -> None:
    assert group(pool.inspect(verify=verify), "log")["group_in_flight"] is None
    pool.ring.sync()
    pool.ring.append(RecordType.GROUP, 1, 2)
    pool.ring.data(b"d" * 4096, 0)
    pool.write()
    found = pool.inspect(verify=verify)
    assert group(found, "log")["group_in_flight"] == "generations 1 to 2"
    assert (group(found, "records")["group"], list(found.problems)) == (1, [])
    pool.write(written_back=2)
    assert group(pool.inspect(verify=verify), "log")["group_in_flight"] is None


def test_the_picture_shows_what_is_dirty(pool: Pool) -> None:
    head, *lines = pool.inspect().picture
    assert head.endswith("from byte 0 to 32768:")
    cells = "".join(lines)
    part = len(cells) // 8
    assert cells == "#" * 3 * part + "." * part + "#" * 4 * part


def test_what_is_written_back_is_clean(pool: Pool) -> None:
    pool.write(written_back=1)
    cells = "".join(pool.inspect().picture[1:])
    assert cells == "." * (len(cells) // 2) + "#" * (len(cells) // 2)
    pool.write(written_back=2)
    found = pool.inspect()
    assert (found.facts["state"], found.facts["dirty_bytes"], list(found.picture)) == ("clean", 0, [])


def test_an_empty_pool_is_described(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "rwl.test.0.pool")
    pool.write()
    found = pool.inspect()
    assert (found.facts["state"], group(found, "log")["occupancy"], list(found.problems)) == ("clean", "0.0%", [])


@pytest.mark.parametrize("number", range(4), ids=["data 1", "data 2", "discard", "sync"])
@pytest.mark.parametrize("byte", [0, 30, HEADER_SIZE - 1])
def test_a_damaged_header_is_named_by_its_record(pool: Pool, number: int, byte: int) -> None:
    position, record, _ = pool.ring.appended[number]
    pool.damage(RING_OFFSET + position + byte)
    (problem,) = pool.inspect().problems
    assert problem.startswith(f"record {record.lsn} at position {position}: its header has a wrong checksum")


@pytest.mark.parametrize("number", [0, 1, 4])
@pytest.mark.parametrize("byte", [0, 4095])
def test_damaged_data_is_named_by_its_record(pool: Pool, number: int, byte: int) -> None:
    position, record, _ = pool.ring.appended[number]
    pool.damage(RING_OFFSET + position + HEADER_SIZE + byte)
    (problem,) = pool.inspect().problems
    assert problem == f"record {record.lsn} at position {position}: its data have a wrong checksum"
    assert not pool.inspect(verify=False).problems


def test_a_break_below_what_was_durable_is_named(pool: Pool) -> None:
    pool.write(durable_lsn=5)
    position, record, _ = pool.ring.appended[1]
    pool.damage(RING_OFFSET + position)
    problems = pool.inspect().problems
    assert any(f"the log breaks at LSN {record.lsn}" in problem for problem in problems)


def test_a_record_that_follows_beyond_the_rings_end_is_found(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "rwl.test.0.pool", RingImage(size=RING, position=RING - 2 * 4096, lsn=7))
    start = pool.ring.position
    first = pool.ring.data(b"a" * 4096)
    pool.ring.data(b"b" * 4096)
    pool.write(tail_position=start, tail_lsn=7)
    assert not pool.inspect().problems
    pool.damage(RING_OFFSET + first)
    (problem,) = pool.inspect().problems
    assert problem.startswith("record 7 ")


def test_a_torn_superblock_is_named_and_the_other_one_counts(pool: Pool) -> None:
    content = bytearray(pool.path.read_bytes())
    content[0] = 7
    pool.path.write_bytes(content)
    found = pool.inspect()
    (problem,) = found.problems
    assert problem.startswith("superblock at 0: ")
    assert group(found, "log")["head_lsn"] == 6


def test_a_lost_superblock_is_named_once_there_have_been_two(pool: Pool) -> None:
    pool.write(sequence=2)
    (problem,) = pool.inspect().problems
    assert problem.startswith(f"superblock at {SUPERBLOCK_SIZE}: ")
    assert not pool.inspect(verify=False).problems


def test_a_superblock_at_the_wrong_place_is_named(pool: Pool) -> None:
    content = bytearray(pool.path.read_bytes())
    content[:SUPERBLOCK_SIZE] = content[SUPERBLOCK_SIZE : 2 * SUPERBLOCK_SIZE]
    pool.path.write_bytes(content)
    (problem,) = pool.inspect().problems
    assert problem == f"superblock at 0: found sequence 1, whose place is {SUPERBLOCK_SIZE}"


def test_what_was_checked_is_told(pool: Pool) -> None:
    assert pool.inspect().facts["checked"] == (
        "both superblocks, header and data of 5 records, from the tail to the head"
    )
    assert pool.inspect(verify=False).facts["checked"] == (
        "one superblock, the headers of 5 records, from the tail to the head"
    )
    position, _, _ = pool.ring.appended[2]
    pool.damage(RING_OFFSET + position)
    assert "of 2 records, from the tail to the head" in str(pool.inspect().facts["checked"])


def test_a_file_without_a_superblock_is_refused(pool: Pool) -> None:
    pool.damage(SUPERBLOCK_SIZE + 100)
    with pytest.raises(CorruptState, match="no superblock"):
        pool.inspect()
    pool.path.write_bytes(b"")
    with pytest.raises(CorruptState, match="no superblock"):
        pool.inspect()


def test_a_file_of_another_length_is_a_problem(pool: Pool) -> None:
    with pool.path.open("ab") as file:
        file.write(b"more")
    (problem,) = pool.inspect().problems
    assert problem == f"superblock 1: the pool has {RING_OFFSET + RING} bytes, the file {RING_OFFSET + RING + 4}"


def test_who_uses_the_pool_is_told(pool: Pool) -> None:
    with pool.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert pool.inspect().facts["in_use_by"] == f"process {os.getpid()}"
    assert pool.inspect().facts["in_use_by"] is None


def test_images_of_odd_sizes_and_whole_discards_are_drawn(tmp_path: Path) -> None:
    pool = Pool(tmp_path / "rwl.test.0.pool")
    pool.ring.append(RecordType.DISCARD, 0, 16 << 40)
    pool.ring.data(b"a" * 100, 16 << 40)
    pool.ring.data(b"b" * 700, (16 << 40) + 512)
    pool.write()
    found = pool.inspect()
    assert found.facts["dirty_bytes"] == 64 + 800
    assert found.picture[0].endswith(f"to {(16 << 40) + 1212}:")
    assert set("".join(found.picture[1:-1])) == {"#"}
