"""The bytes of a record: pinned, read back, and noticed when they change."""

from typing import Final

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from fusecache_rwl.format import (
    HEADER_SIZE,
    MAX_DATA,
    Encoder,
    Record,
    RecordType,
    data_good,
    decode,
    record_size,
)

UUID: Final = bytes(range(16))
ONES: Final = (1 << 64) - 1
lsns: Final = st.integers(1, ONES)
PINNED: Final = bytes.fromhex(
    "52574c72 03000000"  # magic, incarnation
    "0807060504030201 0500000000000000"  # LSN, generation
    "0010000000000000 0900000000000000"  # offset, length
    "0707060504030201"  # durable LSN
    "09000000 839206e3"  # data length, CRC-32C of "123456789" as in RFC 3720's check value
    "01000000"  # type
)


def sealed(body: bytes, uuid: bytes = UUID) -> bytes:
    """Put the right checksum behind 60 bytes of header, whatever they say."""
    return body + crc32c(body, crc32c(uuid + body[4:8])).to_bytes(4, "little")


def test_a_record_header_keeps_its_bytes() -> None:
    header = Encoder(UUID).header(0x0102030405060708, 3, 5, RecordType.DATA, 4096, 9, b"123456789", 0x0102030405060707)
    assert header[:60] == PINNED
    assert header[60:].hex() == "0b0fd3f5"
    assert header == sealed(PINNED)


def test_the_types_keep_their_numbers() -> None:
    assert {kind.name: kind.value for kind in RecordType} == {
        "DATA": 1,
        "DISCARD": 2,
        "ZERO": 3,
        "SYNC": 4,
        "PAD": 5,
        "VOID": 6,
        "GROUP": 7,
    }


@given(lsn=lsns, incarnation=st.integers(1, (1 << 32) - 1), generation=lsns, data=st.binary(min_size=1, max_size=700))
def test_data_come_back_as_they_were_encoded(lsn: int, incarnation: int, generation: int, data: bytes) -> None:
    header = Encoder(UUID).header(lsn, incarnation, generation, RecordType.DATA, 512, len(data), data, lsn - 1)
    record = decode(UUID, memoryview(bytearray(header)))
    assert record == Record(
        lsn, incarnation, generation, RecordType.DATA, 512, len(data), len(data), lsn - 1, crc32c(data)
    )
    assert data_good(record, memoryview(data))


@given(
    kind=st.sampled_from([RecordType.DISCARD, RecordType.ZERO]),
    offset=st.integers(0, 1 << 62),
    length=st.integers(1, 1 << 62),
)
def test_ranges_without_data_come_back_as_they_were_encoded(kind: RecordType, offset: int, length: int) -> None:
    record = decode(UUID, Encoder(UUID).header(7, 1, 2, kind, offset, length, None, 0))
    assert record == Record(7, 1, 2, kind, offset, length, 0, 0, 0)


@pytest.mark.parametrize("fills", [0, 64, 1000, MAX_DATA])
def test_pad_and_void_say_how_much_they_fill(fills: int) -> None:
    encoder = Encoder(UUID)
    assert decode(UUID, encoder.pad(7, 1, 2, fills)) == Record(7, 1, 2, RecordType.PAD, 0, fills, fills, 0, 0)
    void = decode(UUID, encoder.header(7, 1, 2, RecordType.VOID, 0, fills, None, 6))
    assert void == Record(7, 1, 2, RecordType.VOID, 0, fills, fills, 6, 0)


def test_every_bit_of_a_header_that_flips_is_noticed() -> None:
    header = Encoder(UUID).header(9, 3, 5, RecordType.DATA, 4096, 9, b"123456789", 8)
    for bit in range(HEADER_SIZE * 8):
        flipped = bytearray(header)
        flipped[bit // 8] ^= 1 << bit % 8
        assert decode(UUID, flipped) is None, f"bit {bit}"


def test_every_bit_of_the_data_that_flips_is_noticed() -> None:
    data = bytes(range(256)) * 16
    record = decode(UUID, Encoder(UUID).header(9, 3, 5, RecordType.DATA, 0, len(data), data, 8))
    assert record is not None
    flipped = bytearray(data)
    for bit in range(len(data) * 8):
        flipped[bit // 8] ^= 1 << bit % 8
        assert not data_good(record, flipped), f"bit {bit}"
        flipped[bit // 8] ^= 1 << bit % 8
    assert not data_good(record, data[:-1])
    assert data_good(record, flipped)


def test_a_header_of_another_pool_or_incarnation_is_not_valid() -> None:
    header = Encoder(UUID).header(9, 3, 5, RecordType.SYNC, 0, 0, None, 8)
    assert decode(bytes(16), header) is None
    claims = bytearray(header)
    claims[4] = 4
    assert decode(UUID, claims) is None


def test_an_encoder_goes_on_with_another_incarnation() -> None:
    encoder = Encoder(UUID)
    for incarnation in (1, 2, 1):
        record = decode(UUID, encoder.header(9, incarnation, 5, RecordType.SYNC, 0, 0, None, 8))
        assert record is not None
        assert record.incarnation == incarnation


def field(at: int, value: int, size: int, body: bytes = PINNED) -> bytes:
    return body[:at] + value.to_bytes(size, "little") + body[at + size :]


GROUP: Final = field(56, 7, 4, field(48, 0, 4, field(32, 4, 8, field(24, 2, 8, field(16, 4, 8)))))
"""A GROUP of the generations 2 to 4, in generation 4."""


def test_a_group_names_generations_before_its_own_and_keeps_its_bytes() -> None:
    header = Encoder(UUID).header(0x0102030405060708, 3, 5, RecordType.GROUP, 2, 4, None, 0x0102030405060707)
    assert header[:52] == field(16, 5, 8, GROUP)[:52]
    assert header[52:56] == bytes(4)
    assert decode(UUID, header) == Record(0x0102030405060708, 3, 5, RecordType.GROUP, 2, 4, 0, 0x0102030405060707, 0)
    assert decode(UUID, sealed(field(16, 5, 8, GROUP))) is not None


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(field(4, 0, 4), id="incarnation 0"),
        pytest.param(field(16, 0, 8), id="generation 0"),
        pytest.param(field(40, 0x0102030405060708, 8), id="durable LSN not below its own"),
        pytest.param(field(32, 10, 8), id="length is not that of the data"),
        pytest.param(field(48, 0, 4, field(32, 0, 8)), id="data of length 0"),
        pytest.param(field(48, MAX_DATA + 1, 4, field(32, MAX_DATA + 1, 8)), id="data too long"),
        pytest.param(field(24, ONES, 8), id="beyond the end of any image"),
        pytest.param(field(56, 0, 4), id="type 0"),
        pytest.param(field(56, 8, 4), id="type 8"),
        pytest.param(field(56, 2, 4), id="DISCARD with data"),
        pytest.param(field(56, 3, 4, field(48, 0, 4, field(32, 0, 8))), id="ZERO of nothing"),
        pytest.param(field(56, 4, 4, field(48, 0, 4)), id="SYNC with a range"),
        pytest.param(field(56, 5, 4), id="PAD with an offset"),
        pytest.param(
            field(56, 6, 4, field(24, 0, 8, field(48, 1 << 21, 4, field(32, 1 << 21, 8)))), id="VOID too long"
        ),
        pytest.param(GROUP, id="GROUP up to its own generation"),
        pytest.param(field(24, 4, 8, field(16, 6, 8, GROUP)), id="GROUP of one"),
        pytest.param(field(24, 0, 8, field(16, 6, 8, GROUP)), id="GROUP from 0"),
        pytest.param(field(48, 64, 4, field(16, 6, 8, GROUP)), id="GROUP with data"),
    ],
)
def test_nonsense_is_not_valid_even_with_a_right_checksum(body: bytes) -> None:
    assert decode(UUID, sealed(body)) is None


def test_what_can_not_be_read_back_is_not_encoded() -> None:
    encoder = Encoder(UUID)
    with pytest.raises(ValueError, match="9 bytes of data for a length of 512"):
        encoder.header(9, 1, 1, RecordType.DATA, 0, 512, b"123456789", 8)
    with pytest.raises(ValueError, match="data length 1048577 of 1048576"):
        encoder.header(9, 1, 1, RecordType.DATA, 0, MAX_DATA + 1, bytes(MAX_DATA + 1), 8)
    with pytest.raises(ValueError, match="durable LSN 9 at LSN 9"):
        encoder.header(9, 1, 1, RecordType.SYNC, 0, 0, None, 9)


def test_zeroes_are_no_header() -> None:
    assert decode(UUID, bytes(HEADER_SIZE)) is None


def test_a_record_takes_its_header_and_its_data_rounded_up() -> None:
    assert [record_size(length) for length in (0, 1, 64, 65, 4096, MAX_DATA)] == [64, 128, 128, 192, 4160, 1048640]
