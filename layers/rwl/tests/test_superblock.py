"""The superblocks: pinned, read back, noticed when they change; a torn write loses nothing."""

from dataclasses import replace
from typing import Final

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from fusecache.api.errors import CorruptState
from fusecache_rwl.format import SUPERBLOCK_SIZE
from fusecache_rwl.superblock import Superblock, decode, encode, newest, place

BLOCK: Final = Superblock(
    sequence=0x0102030405060708,
    identity="rbd:fsid:2:näme:10aa",
    index=1,
    uuid=bytes(range(16)),
    size=16 << 20,
    media="pmem",
    epoch=6,
    incarnation=3,
    tail_position=8192,
    tail_lsn=77,
    written_back=4,
    durable_lsn=99,
)
ZEROES: Final = bytes(SUPERBLOCK_SIZE)
u64: Final = st.integers(0, (1 << 64) - 1)
u32: Final = st.integers(0, (1 << 32) - 1)
blocks: Final = st.builds(
    Superblock,
    sequence=u64,
    identity=st.text(st.characters(exclude_categories=["Cs"]), max_size=512),
    index=u32,
    uuid=st.binary(min_size=16, max_size=16),
    size=u64,
    media=st.sampled_from(["pmem", "ssd"]),
    epoch=u64,
    incarnation=st.integers(1, (1 << 32) - 1),
    tail_position=st.integers(0, (1 << 58) - 1).map(lambda n: n * 64),
    tail_lsn=st.integers(1, (1 << 64) - 1),
    written_back=u64,
    durable_lsn=u64,
)


def test_a_superblock_keeps_its_bytes() -> None:
    pinned = bytes.fromhex(
        "6675736552574c73 02000000 01000000"  # magic, version, index
        "0807060504030201 000102030405060708090a0b0c0d0e0f"  # sequence, uuid
        "0000000100000000 0600000000000000"  # size, epoch
        "03000000 15000000"  # incarnation, length of the identity
        "0020000000000000 4d00000000000000"  # tail position, tail LSN
        "0400000000000000 6300000000000000"  # written back, durable LSN
        "706d656d00000000"  # media
        "7262643a667369643a323a6ec3a46d653a31306161"  # identity
    )
    block = encode(BLOCK)
    assert len(block) == SUPERBLOCK_SIZE
    assert block[: len(pinned)] == pinned
    assert not any(block[len(pinned) : 4092])
    assert block[4092:].hex() == "0bedaeb0"


@given(block=blocks)
def test_a_superblock_comes_back_as_it_was_encoded(block: Superblock) -> None:
    assert decode(encode(block)) == block


def test_every_bit_of_a_superblock_that_flips_is_noticed() -> None:
    flipped = bytearray(encode(BLOCK))
    for bit in range(SUPERBLOCK_SIZE * 8):
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptState):
            decode(flipped)
        flipped[bit // 8] ^= 1 << bit % 8
    assert decode(flipped) == BLOCK


def resealed(block: bytes, at: int, value: bytes) -> bytes:
    body = block[:at] + value + block[at + len(value) : 4092]
    return body + crc32c(body).to_bytes(4, "little")


def test_an_unknown_version_is_refused_and_both_are_named() -> None:
    unknown = resealed(encode(BLOCK), 8, bytes([3]))
    with pytest.raises(CorruptState, match="version 3, this program knows version 2"):
        decode(unknown)
    older = encode(replace(BLOCK, sequence=BLOCK.sequence - 1))
    with pytest.raises(CorruptState, match="version 3, this program knows version 2"):
        newest(unknown, older)


@pytest.mark.parametrize(
    ("at", "value"),
    [(56, bytes(4)), (60, b"\xff\xff"), (64, b"\x20"), (72, bytes(8)), (104, b"\xff"), (96, b"\xff")],
)
def test_nonsense_is_refused_even_with_a_right_checksum(at: int, value: bytes) -> None:
    with pytest.raises(CorruptState, match="does not parse"):
        decode(resealed(encode(BLOCK), at, value))


def test_what_does_not_fit_is_not_encoded() -> None:
    for bad in (
        replace(BLOCK, identity="x" * 4000),
        replace(BLOCK, uuid=b"short"),
        replace(BLOCK, media="persistent"),
        replace(BLOCK, media=""),
    ):
        with pytest.raises(ValueError, match="does not hold"):
            encode(bad)


def test_superblocks_take_turns() -> None:
    assert [place(sequence) for sequence in range(4)] == [0, 4096, 0, 4096]


@settings(max_examples=300)
@given(sequence=st.integers(1, 1000), torn=st.binary(min_size=8, max_size=8), first=st.booleans())
def test_a_torn_write_loses_nothing(sequence: int, torn: bytes, first: bool) -> None:
    """Any subset of the eight sectors of 512 bytes of a write reaches the medium."""
    places = {0: ZEROES, 4096: ZEROES}
    if not first:
        before = replace(BLOCK, sequence=sequence - 1, tail_lsn=1)
        places[place(sequence - 1)] = encode(before)
        places[place(sequence)] = encode(replace(BLOCK, sequence=max(0, sequence - 2)))
    now = replace(BLOCK, sequence=sequence, tail_lsn=2)
    new, old = encode(now), places[place(sequence)]
    mixed = b"".join((new if torn[n] % 2 else old)[n * 512 : n * 512 + 512] for n in range(8))
    places[place(sequence)] = mixed
    if mixed == new:
        assert newest(places[0], places[4096]) == now
    elif first:
        with pytest.raises(CorruptState, match="no superblock"):
            newest(places[0], places[4096])
    else:
        assert newest(places[0], places[4096]) == before


@given(cut=st.integers(0, SUPERBLOCK_SIZE // 8))
def test_a_write_torn_at_any_eight_bytes_loses_nothing(cut: int) -> None:
    old, before, now = (replace(BLOCK, sequence=n, tail_lsn=n) for n in (4, 5, 6))
    mixed = encode(now)[: cut * 8] + encode(old)[cut * 8 :]
    expected = now if mixed == encode(now) else before
    assert newest(mixed, encode(before)) == expected


def test_a_superblock_that_is_not_at_its_place_does_not_count() -> None:
    misplaced, right = replace(BLOCK, sequence=9), replace(BLOCK, sequence=4)
    assert newest(encode(misplaced), encode(replace(BLOCK, sequence=5))).sequence == 5
    assert newest(encode(right), encode(right)) == right
    with pytest.raises(CorruptState, match="sequence 9, whose place is 4096"):
        newest(encode(misplaced), ZEROES)


def test_a_pool_without_a_superblock_is_refused() -> None:
    with pytest.raises(CorruptState, match="no superblock"):
        newest(ZEROES, ZEROES)
    with pytest.raises(CorruptState, match="4096 bytes, found 3"):
        newest(b"abc", ZEROES)
