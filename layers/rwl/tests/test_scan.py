"""Where a scan ends: which records it takes, which it must not, and when a break is corruption."""

from typing import Final

import pytest

from fusecache.api.errors import CorruptState
from fusecache_rwl.format import ALIGNMENT, HEADER_SIZE, MAX_DATA, Encoder, RecordType, record_size
from fusecache_rwl.scan import Head
from layers.rwl.tests.support.ring_image import UUID, RingImage, superblock

DATA: Final = bytes(range(256)) * 16
OTHER: Final = DATA[::-1]
TIB: Final = 1 << 40


def filled(records: int = 9, **fields: int) -> RingImage:
    """A ring with so many records of 4 KiB."""
    ring = RingImage(**fields)  # type: ignore[arg-type]
    for _ in range(records):
        ring.data(DATA)
    return ring


def head_of(ring: RingImage, generation: int | None = None) -> Head:
    """Return where *ring* goes on."""
    return Head(ring.position, ring.lsn, ring.generation if generation is None else generation)


# ---- what is taken ----


def test_an_empty_pool_has_no_records() -> None:
    assert RingImage().scan() == ([], Head(0, 1, 0))
    assert RingImage().scan(tail_position=640, tail_lsn=7, written_back=3) == ([], Head(640, 7, 3))


def test_a_partly_filled_ring_is_taken_up_to_its_head() -> None:
    ring = filled()
    assert ring.scan() == (ring.appended, head_of(ring))


def test_a_scan_begins_at_the_tail() -> None:
    ring = filled()
    position, record, _ = ring.appended[4]
    found, head = ring.scan(tail_position=position, tail_lsn=record.lsn)
    assert (found, head) == (ring.appended[4:], head_of(ring))


def test_records_of_every_type_are_stepped_over_by_what_they_store() -> None:
    """By its image length a discard would lead out of the ring, and a write of zeroes into another's data."""
    ring = RingImage()
    ring.data(DATA[:512], offset=512)
    ring.append(RecordType.DISCARD, 0, 16 * TIB)
    ring.append(RecordType.ZERO, 4096, 512)
    ring.data(b"x", offset=TIB)
    ring.sync()
    ring.append(RecordType.VOID, length=4096)
    ring.append(RecordType.PAD, length=128)
    ring.append(RecordType.DISCARD, 512, 64)
    ring.sync()
    ring.append(RecordType.GROUP, 1, 2)
    ring.data(DATA)
    found, head = ring.scan()
    assert found == ring.appended
    assert {record.type for _, record, _ in found} == set(RecordType)
    assert head == head_of(ring)


def test_a_wrapped_ring_is_followed_over_its_pad() -> None:
    ring = filled(3)
    for number in range(100):
        ring.data(DATA[: 512 + number * 32])
        if number % 10 == 9:
            ring.sync()
    first = next(n for n, (position, _, _) in enumerate(ring.appended) if position >= ring.position - ring.size)
    position, record, _ = ring.appended[first]
    expected = ring.appended[first:]
    assert any(record.type is RecordType.PAD for _, record, _ in expected)
    found, head = ring.scan(tail_position=position, tail_lsn=record.lsn, durable_lsn=record.lsn + 1)
    assert found == expected
    assert head == head_of(ring, ring.generation - 1)


def test_a_ring_filled_to_the_last_byte_ends_where_it_began() -> None:
    ring = RingImage(size=16 * 4096)
    while ring.position < ring.size:
        ring.append(RecordType.DATA, 0, 4096 - HEADER_SIZE, DATA[HEADER_SIZE:])
    assert ring.scan() == (ring.appended, head_of(ring))
    assert len(ring.appended) == 16


def test_a_void_keeps_the_place_of_a_record_that_failed() -> None:
    ring = filled(3)
    failed = ring.position
    ring.data(DATA)
    ring.data(OTHER)
    after = ring.appended[-1]
    void = Encoder(UUID).header(4, 1, 1, RecordType.VOID, 0, len(DATA), None, 0)
    ring.store(failed, void + b"whatever is there")
    found, head = ring.scan(durable_lsn=5)
    assert [record.type for _, record, _ in found[3:]] == [RecordType.VOID, RecordType.DATA]
    assert found[4] == after
    assert head == head_of(ring)


def test_fillers_belong_to_no_generation() -> None:
    """The log closes the ring's end before a SYNC when the next generation is open already."""
    ring = RingImage()
    ring.data(DATA)
    ring.generation = 2
    ring.append(RecordType.PAD, length=64)
    ring.generation = 1
    ring.sync()
    assert ring.scan() == (ring.appended, Head(ring.position, 4, 1))


def test_a_generation_need_not_end_with_a_sync() -> None:
    ring = filled(2)
    ring.generation = 5
    ring.data(DATA)
    assert ring.scan() == (ring.appended, head_of(ring))


@pytest.mark.parametrize("length", [1, 511, 4096, MAX_DATA - 1, MAX_DATA])
def test_the_largest_records_and_odd_ones_are_read_whole(length: int) -> None:
    ring = RingImage(size=8 << 20)
    for _ in range(30):
        ring.data((DATA * 256)[:length])
    first = next(n for n, (position, _, _) in enumerate(ring.appended) if position >= ring.position - ring.size)
    position, record, _ = ring.appended[first]
    assert ring.scan(tail_position=position, tail_lsn=record.lsn) == (ring.appended[first:], head_of(ring))


# ---- what is not ----


@pytest.mark.parametrize("stored", range(0, record_size(len(DATA)), 512))
def test_a_torn_record_ends_the_log(stored: int) -> None:
    ring = filled(9)
    head = head_of(ring)
    ring.data(OTHER)
    whole = bytes(ring.read(head.position, record_size(len(OTHER))))
    ring.store(head.position, whole[:stored] + bytes(len(whole) - stored))
    assert ring.scan() == (ring.appended[:9], head)


def old_eleven() -> tuple[RingImage, bytes]:
    """Nine records, a torn tenth, and an eleventh that is whole but was never acknowledged; also the tenth, whole."""
    ring = filled(9)
    ten = ring.position
    ring.data(OTHER)
    ring.data(DATA, offset=4096)
    whole = bytes(ring.read(ten, record_size(len(OTHER))))
    ring.store(ten + 2048, bytes(512))
    assert ring.scan() == (ring.appended[:9], Head(ten, 10, 1))
    ring.position, ring.lsn, ring.incarnation = ten, 10, 2
    del ring.appended[9:]
    return ring, whole


def test_an_old_record_does_not_come_back_behind_a_new_one() -> None:
    """Torn 10, valid but unacknowledged 11, new 10: the old 11 must not come back."""
    ring, _ = old_eleven()
    ring.data(OTHER)
    assert ring.scan(incarnation=2, durable_lsn=9) == (ring.appended, head_of(ring))
    # Nor when the recovery that would have ended here died before it said so.
    assert ring.scan(incarnation=3, durable_lsn=10) == (ring.appended, head_of(ring))


def test_an_old_record_made_whole_by_a_torn_new_one_does_not_come_back() -> None:
    """The new 10 repeats the old one's write; its data arrive and its header does not, so the old 10 is whole."""
    ring, whole = old_eleven()
    ring.store(ring.position, whole)
    assert ring.scan(incarnation=2, durable_lsn=9) == (ring.appended, head_of(ring))


def test_a_recovery_that_died_half_way_changes_nothing() -> None:
    ring, _ = old_eleven()
    for incarnation in (1, 2, 3):
        durable = 9 if incarnation > 1 else 0
        assert ring.scan(incarnation=incarnation, durable_lsn=durable) == (ring.appended, head_of(ring))


def test_leftovers_beyond_the_head_that_continue_the_sequence_are_not_taken() -> None:
    ring = filled(12)
    assert ring.scan(incarnation=2, durable_lsn=9) == (ring.appended[:9], Head(9 * 4160, 10, 1))


def test_incarnations_never_fall_below_the_durable_lsn_either() -> None:
    ring = filled(3, incarnation=2)
    ring.incarnation = 1
    ring.data(DATA)
    with pytest.raises(CorruptState, match="breaks at LSN 4"):
        ring.scan(incarnation=2, durable_lsn=4)


def test_records_of_another_pool_that_continue_the_sequence_are_not_taken() -> None:
    ring = filled(5)
    head = head_of(ring)
    ring.uuid = bytes(16)
    ring.data(DATA)
    assert ring.scan() == (ring.appended[:5], head)
    assert ring.scan(uuid=bytes(range(1, 17))) == ([], Head(0, 1, 0))


def test_the_ring_before_is_not_taken_for_the_next_records() -> None:
    ring = RingImage(size=16 * 4160)
    ring.size -= ring.size % 4096
    for _ in range(40):
        ring.data(DATA)
    keep = ring.appended[-4:]
    assert ring.scan(tail_position=keep[0][0], tail_lsn=keep[0][1].lsn) == (keep, head_of(ring))


def test_a_copy_of_the_log_within_its_own_data_is_not_taken() -> None:
    ring = filled(4)
    copy = bytes(ring.memory[:3072])
    ring.data(copy + copy[:64])
    ring.position -= 64
    assert ring.scan()[1] == Head(ring.position + 64, 6, 1)


# ---- records that make no sense, with right checksums ----


def test_a_record_that_claims_to_cross_the_rings_end_ends_the_log() -> None:
    ring = filled(7, position=32768)
    head = head_of(ring)
    room = ring.size - ring.position
    assert record_size(len(DATA)) > room
    header = Encoder(UUID).header(8, 1, 1, RecordType.VOID, 0, len(DATA), None, 0)
    ring.store(ring.position, header)
    assert ring.scan(tail_position=32768) == (ring.appended, head)
    with pytest.raises(CorruptState, match="LSN 8"):
        ring.scan(tail_position=32768, durable_lsn=8)


def test_a_record_that_claims_to_reach_into_the_tail_ends_the_log() -> None:
    ring = RingImage(position=32768)
    ring.data(DATA)
    first = ring.appended[0]
    while ring.position < 32768 + ring.size - 3 * 4160:
        ring.data(DATA)
    head = head_of(ring)
    ring.append(RecordType.PAD, length=4 * 4160)
    assert first == ring.appended[0]
    assert ring.scan(tail_position=32768) == (ring.appended[:-1], head)


def test_a_generation_that_goes_backwards_ends_the_log() -> None:
    ring = filled(3, generation=4)
    head = head_of(ring)
    ring.generation = 3
    ring.data(DATA)
    assert ring.scan() == (ring.appended[:3], head)


def test_a_generation_that_goes_on_behind_its_sync_ends_the_log() -> None:
    ring = filled(3)
    ring.sync()
    head = head_of(ring, 1)
    ring.generation = 1
    ring.data(DATA)
    assert ring.scan() == (ring.appended[:4], head)


def test_an_lsn_left_out_ends_the_log() -> None:
    ring = filled(3)
    head = head_of(ring)
    ring.lsn += 1
    ring.data(DATA)
    assert ring.scan() == (ring.appended[:3], head)


# ---- corruption ----


@pytest.mark.parametrize("durable", [4, 9])
def test_a_break_below_the_superblocks_durable_lsn_is_corruption(durable: int) -> None:
    ring = filled(9)
    ring.store(ring.appended[3][0] + 100, b"rotten")
    with pytest.raises(CorruptState, match=f"breaks at LSN 4, position 12480; it was durable up to LSN {durable}"):
        ring.scan(durable_lsn=durable)
    assert ring.scan(durable_lsn=3)[1].lsn == 4


def test_a_break_before_a_record_that_knows_it_was_durable_is_corruption() -> None:
    ring = filled(9)
    ring.durable = 4
    ring.sync()
    ring.store(ring.appended[3][0], b"rotten")
    with pytest.raises(CorruptState, match="breaks at LSN 4, position 12480; record 10 says that LSN 4 was durable"):
        ring.scan()
    ring.store(ring.appended[2][0], b"rotten")
    with pytest.raises(CorruptState, match=r"breaks at LSN 3, .* LSN 4 was durable"):
        ring.scan()


def test_a_break_behind_what_was_durable_is_the_end() -> None:
    ring = filled(9)
    ring.durable = 4
    ring.sync()
    ring.store(ring.appended[4][0], b"torn")
    assert ring.scan()[1].lsn == 5


def test_the_witness_of_a_break_is_found_far_behind_it_and_over_the_rings_end() -> None:
    ring = RingImage(size=8 << 20)
    ring.position = 5 << 20
    for _ in range(6):
        ring.data(DATA * 256)
    ring.durable = 1
    ring.sync()
    assert ring.position > ring.size
    assert len(ring.scan(tail_position=5 << 20)[0]) == len(ring.appended)
    ring.store(5 << 20, b"rotten")
    with pytest.raises(CorruptState, match="breaks at LSN 1"):
        ring.scan(tail_position=5 << 20)


def test_a_stale_superblock_is_noticed_by_a_newer_incarnation() -> None:
    ring = filled(5)
    ring.incarnation = 2
    ring.data(DATA)
    with pytest.raises(CorruptState, match=r"LSN 6, .* superblock is of incarnation 1, record 6 of 2"):
        ring.scan()


def test_a_stale_superblock_is_noticed_where_its_tail_was_overwritten() -> None:
    ring = filled(5)
    while ring.position < ring.size + 5 * 4160:
        ring.durable = ring.lsn - 1
        ring.data(DATA)
    with pytest.raises(CorruptState, match="LSN 1, position 0; record "):
        ring.scan()


def test_a_tail_that_is_beyond_the_durable_lsn_needs_no_record() -> None:
    assert RingImage().scan(tail_position=640, tail_lsn=7, durable_lsn=3)[1] == Head(640, 7, 0)


def test_what_the_medium_raises_is_passed_on() -> None:
    def fails(position: int, length: int) -> bytes:
        raise OSError(5, f"{position} {length}")

    ring = RingImage()
    ring.read = fails  # type: ignore[method-assign]
    with pytest.raises(OSError, match="0 65536"):
        ring.scan()


def test_every_bit_of_a_log_that_flips_ends_it_before_that_record() -> None:
    ring = RingImage(size=4096)
    for _ in range(2):
        ring.data(DATA[:64])
    ring.append(RecordType.DISCARD, 0, TIB)
    ring.sync()
    starts = [position for position, _, _ in ring.appended] + [ring.position]
    for bit in range(ring.position * 8):
        ring.memory[bit // 8] ^= 1 << bit % 8
        intact = sum(start <= bit // 8 for start in starts) - 1
        assert ring.scan()[0] == ring.appended[:intact], f"bit {bit}"
        ring.memory[bit // 8] ^= 1 << bit % 8
    assert ring.scan_from(superblock(ring.size)) == (ring.appended, head_of(ring, 1))
    assert ring.position % ALIGNMENT == 0
