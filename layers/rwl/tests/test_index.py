"""The index: exact answers at its edges, and the RAM it takes."""

import gc
import tracemalloc
from random import Random

import pytest

from fusecache_rwl.index import GAP, MIXED, ZERO, Index

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
RECORD = 64 + 4096


def filled(size: int, slots: list[int]) -> Index:
    """4 KiB written at each slot, one record after the other."""
    index = Index(size)
    for number, slot in enumerate(slots):
        index.insert(slot << 12, 4096, number * RECORD + 64)
    return index


def scattered(size: int, count: int) -> list[int]:
    return Random(1).sample(range(size >> 12), count)


def test_an_empty_index_is_one_gap() -> None:
    index = Index(16 * TIB)
    assert index.find(0, 16 * TIB) == GAP
    assert index.lookup(4 * GIB - 512, 1024) == [(4 * GIB - 512, 1024, GAP)]


def test_a_record_is_found_where_it_was_put() -> None:
    index = Index(GIB)
    index.insert(4 * MIB - 64 * KIB, 128 * KIB, 640)
    assert index.find(4 * MIB - 64 * KIB, 128 * KIB) == 640
    assert index.find(4 * MIB, 4096) == 640 + 64 * KIB
    assert index.find(4 * MIB - 128 * KIB, 128 * KIB) == MIXED
    assert index.lookup(4 * MIB - 65 * KIB, 130 * KIB) == [
        (4 * MIB - 65 * KIB, KIB, GAP),
        (4 * MIB - 64 * KIB, 128 * KIB, 640),
        (4 * MIB + 64 * KIB, KIB, GAP),
    ]


def test_zeroes_of_two_records_are_one_run() -> None:
    index = Index(MIB)
    index.insert_zero(0, 4096, 0)
    index.insert_zero(4096, 4096, 64)
    assert index.lookup(0, 12288) == [(0, 8192, ZERO), (8192, 4096, GAP)]


@pytest.mark.parametrize("density", [0.001, 0.5])
def test_what_the_tail_has_passed_is_a_gap(density: float) -> None:
    slots = scattered(64 * MIB, int(16384 * density))
    index = filled(64 * MIB, slots)
    index.tail = len(slots) // 2 * RECORD
    for number, slot in enumerate(slots):
        assert index.find(slot << 12, 4096) == (number * RECORD + 64 if number >= len(slots) // 2 else GAP)


def test_retired_zeroes_show_what_is_below_and_not_what_they_hid() -> None:
    index = Index(GIB)
    index.insert(0, 4096, 64)
    index.insert_zero(0, GIB, 4160)
    index.tail = 4224
    assert index.find(0, GIB) == GAP


@pytest.mark.parametrize("size", [1, 511, 700, 4096 + 1, 4 * MIB + 513])
def test_the_last_sector_of_an_odd_image_counts_as_one(size: int) -> None:
    index = Index(size)
    offset = (size - 1) & ~511
    index.insert(offset, size - offset, 64)
    assert index.find(offset, size - offset) == 64
    assert index.lookup(0, size)[-1] == (offset, size - offset, 64)


def test_growth_from_within_a_sector_of_data_is_refused() -> None:
    index = Index(700)
    index.insert(512, 188, 64)
    with pytest.raises(ValueError, match="700 bytes holds data"):
        index.resize(1024)
    assert index.lookup(0, 700) == [(0, 512, GAP), (512, 188, 64)]
    index.remove(512, 188)
    index.resize(1024)
    assert index.find(0, 1024) == GAP


def test_what_a_shrink_cut_off_does_not_come_back() -> None:
    index = filled(16 * MIB, list(range(4096)))
    index.resize(5 * MIB + 512)
    index.resize(16 * MIB)
    assert index.find(5 * MIB, 512) == 1280 * RECORD + 64
    assert index.find(5 * MIB + 512, 11 * MIB - 512) == GAP


@pytest.mark.parametrize("size", [-1, (1 << 60) + 1])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=str(size)):
        Index(size)
    index = Index(512)
    with pytest.raises(ValueError, match=str(size)):
        index.resize(size)


@pytest.mark.parametrize(("size", "bound"), [(64 * MIB, 12), (128 * MIB, 25), (640 * MIB, 100), (6400 * MIB, 100)])
def test_a_cached_4_kib_takes_at_most_100_bytes(size: int, bound: int) -> None:
    tracemalloc.start()
    try:
        slots = scattered(size, 16384)
        before, _ = tracemalloc.get_traced_memory()
        index = filled(size, slots)
        # Without the tuples that the interpreter keeps for others.
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken / len(slots) <= bound
    assert taken == pytest.approx(index.memory(), rel=0.1)


def test_the_sparsest_case_takes_at_most_200_bytes() -> None:
    assert filled(16 * TIB, scattered(16 * TIB, 10000)).memory() / 10000 <= 200
    assert filled(16 * TIB, [number << 20 for number in range(4096)]).memory() / 4096 <= 200


def test_a_lone_4_kib_takes_less_than_25_bytes() -> None:
    assert filled(16 * TIB, scattered(16 * TIB, 10000)).memory() / 10000 <= 25


def test_slots_that_lay_in_zeroes_stand_alone_once_the_tail_has_passed_those() -> None:
    index, slots = Index(16 * TIB), scattered(16 * TIB, 30000)
    index.insert_zero(0, 16 * TIB, 0)
    for number, slot in enumerate(slots, 1):
        index.tail = RECORD * (number > 10000)
        index.insert(slot << 12, 4096, number * RECORD + 64)
    assert index.memory() / 30000 <= 25
    assert [index.find(slot << 12, 4096) for slot in slots] == [n * RECORD + 64 for n in range(1, 30001)]
    assert index.lookup(0, 16 * TIB)[-1][2] == GAP


@pytest.mark.parametrize("what", ["data", "zeroes", "gap"])
@pytest.mark.parametrize("end", range(1, 33))
def test_lone_slots_are_cut_at_any_sector(what: str, end: int) -> None:
    for start in range(end):
        index = Index(64 * KIB)
        sectors = [GAP] * 128
        for number, slot in enumerate([1, 2, 0, 5], 1):
            index.insert(slot << 12, 4096, number * RECORD)
            sectors[8 * slot : 8 * slot + 8] = [number * RECORD + 512 * k for k in range(8)]
        length = end - start << 9
        if what == "data":
            index.insert(start << 9, length, 1 << 20)
            sectors[start:end] = [(1 << 20) + 512 * k for k in range(end - start)]
        elif what == "zeroes":
            index.insert_zero(start << 9, length, 1 << 20)
            sectors[start:end] = [ZERO] * (end - start)
        else:
            index.remove(start << 9, length)
            sectors[start:end] = [GAP] * (end - start)
        assert [index.find(k << 9, 512) for k in range(128)] == sectors


def test_small_writes_take_no_more_than_the_slots_they_lie_in() -> None:
    index = Index(4 * GIB)
    for number, sector in enumerate(Random(1).sample(range(4 * GIB >> 9), 20000)):
        index.insert(sector << 9, 512, number * 576 + 64)
    assert index.memory() / 20000 <= 200


def test_a_whole_image_of_zeroes_is_small_whatever_was_there() -> None:
    index = filled(16 * TIB, scattered(GIB, 50000) + scattered(16 * TIB, 50000))
    before = index.memory()
    index.insert_zero(0, 16 * TIB, 100001 * RECORD)
    assert index.find(0, 16 * TIB) == ZERO
    # What was there is given back with the changes that follow, as freeing it all takes a while.
    assert index.memory() < before + MIB
    for _ in range(100):
        index.insert_zero(0, 512, 100002 * RECORD)
    assert index.memory() < MIB


def test_an_image_discarded_in_uneven_pieces_is_small() -> None:
    """A loop device discards at most 4 GiB - 512 bytes at once, so that no piece fits a leaf."""
    index, offset, position = Index(16 * TIB), 0, 0
    while offset < 16 * TIB:
        length = min(4 * GIB - 512, 16 * TIB - offset)
        index.insert_zero(offset, length, position)
        offset, position = offset + length, position + 64
    assert index.find(0, 16 * TIB) == ZERO
    assert index.memory() < MIB


def test_zeroes_below_sparse_writes_cost_nothing() -> None:
    index = Index(16 * TIB)
    index.insert_zero(0, 16 * TIB, 0)
    slots = scattered(16 * TIB, 10000)
    for number, slot in enumerate(slots, 1):
        index.insert(slot << 12, 4096, number * RECORD + 64)
    assert index.memory() / 10000 <= 200
    assert [index.find(slot << 12, 4096) for slot in slots] == [n * RECORD + 64 for n in range(1, 10001)]


@pytest.mark.parametrize(("size", "alive"), [(16 * TIB, 5000), (GIB, 5000)])
def test_retired_records_are_forgotten(size: int, alive: int) -> None:
    random = Random(1)
    index = Index(size)
    for number in range(20 * alive):
        index.tail = max(0, number - alive) * RECORD
        index.insert(random.randrange(size >> 12) << 12, 4096, number * RECORD + 64)
    assert index.memory() / alive <= 400


def test_leaves_that_have_died_are_forgotten() -> None:
    random = Random(1)
    index, number = Index(TIB), 0
    for leaf in range(100):
        for slot in random.sample(range(1024), 300):
            index.tail = max(0, number - 600) * RECORD
            index.insert(leaf * 4 * MIB + slot * 4096, 4096, number * RECORD + 64)
            number += 1
    assert index.memory() < 10 * 8192 + 600 * 100


def test_what_is_alive_in_a_dying_leaf_is_kept() -> None:
    index, slots = Index(16 * TIB), list(range(0, 1024, 2))
    for number, slot in enumerate(slots):
        index.insert(slot << 12, 4096, number * RECORD + 64)
    index.insert_zero(0, 4096, 500 * RECORD)
    elsewhere = [slot for slot in scattered(16 * TIB, 5000) if slot >= 1024]
    for number, slot in enumerate(elsewhere, 512):
        index.insert(slot << 12, 4096, number * RECORD + 64)
        index.tail = 500 * RECORD  # the zeroes and the last twelve slots live on
    assert [index.find(slot << 12, 4096) for slot in slots] == [
        ZERO,
        *[GAP] * 499,
        *(number * RECORD + 64 for number in range(500, 512)),
    ]
    assert index.memory() / 5000 <= 100


def test_a_sector_in_a_slot_is_seen_wherever_runs_are_cut() -> None:
    index = Index(16 * TIB)
    slots = scattered(16 * TIB, 5000)
    for number, slot in enumerate(slots):
        index.insert((slot << 12) + 512, 512, number * 576 + 64)
    for number, slot in enumerate(slots):
        assert index.find(slot << 12, 4096) == MIXED
        assert index.find((slot << 12) + 512, 512) == number * 576 + 64


def test_zeroes_of_the_record_at_the_tail_are_alive() -> None:
    index = Index(16 * TIB)
    for number in range(5000):
        index.tail = number * 64
        index.insert_zero(number << 24, 8 * MIB, number * 64)
        if number % 100 == 0:
            index.insert_zero(1 << 43, 8 * MIB, number * 64)
        assert index.find(number << 24, 8 * MIB) == ZERO
    index = filled(16 * TIB, scattered(8 * TIB, 500))
    index.insert_zero(9 * TIB, GIB, 500 * RECORD)
    index.tail = 500 * RECORD
    for number, slot in enumerate(scattered(8 * TIB, 5000), 501):
        index.insert(slot << 12, 4096, number * RECORD)
    assert index.find(9 * TIB, GIB) == ZERO
