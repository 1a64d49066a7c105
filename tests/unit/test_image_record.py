"""The record in an image's own metadata: its bytes, and what follows from it."""

import random
import re

import pytest
from crc32c import crc32c

from fusecache.api import Identity, ImageRecord
from fusecache.api.errors import CorruptState, Fenced, ImageBusy
from fusecache.backends.records import check_holder, decode, encode
from fusecache.testing import FreeClaim

IDENTITY = Identity("rbd:fsid:2::abc")
COPY = Identity("rbd:fsid:2::def")
HERE = "a" * 32
CLEAN = ImageRecord(epoch=4)
DIRTY = ImageRecord(epoch=12, holder="b" * 32, holder_name="höst", manifest='{"a":"b"}\n')


def sealed(body: str, version: int = 1) -> str:
    return f"fusecache-record {version} crc32c {crc32c(body.encode()):08x}\n{body}"


def test_the_format_is_this() -> None:
    assert encode(DIRTY, IDENTITY) == (
        "fusecache-record 1 crc32c 26526c3e\n"
        f'{{"epoch":12,"holder":"{"b" * 32}","holder_name":"h\\u00f6st","identity":"rbd:fsid:2::abc",'
        '"manifest":"{\\"a\\":\\"b\\"}\\n"}\n'
    )


def test_a_record_is_ascii_and_unicode_only() -> None:
    assert encode(DIRTY, IDENTITY).isascii()
    with pytest.raises(UnicodeEncodeError):
        encode(ImageRecord(epoch=1, manifest="\udcff"), IDENTITY)


@pytest.mark.parametrize("record", [CLEAN, DIRTY])
def test_a_record_is_read_as_written(record: ImageRecord) -> None:
    assert decode(encode(record, IDENTITY), IDENTITY) == record


def test_a_copy_s_record_is_its_original_s_and_no_dirty_data_is_passed_over() -> None:
    assert decode(encode(CLEAN, IDENTITY), COPY) is None
    with pytest.raises(Fenced, match=r"copy of rbd:fsid:2::abc, made while host höst held newer data"):
        decode(encode(DIRTY, IDENTITY), COPY)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "does not begin with the header"),
        ("{}\n", "does not begin with the header"),
        (sealed("{}\n", version=2), "format version 2, this fusecache reads 1"),
        (encode(CLEAN, IDENTITY)[:-1], "wrong checksum"),
        (encode(CLEAN, IDENTITY) + "\n", "wrong checksum"),
        (sealed("{}\n"), "epoch: Field required"),
        (sealed(encode(CLEAN, IDENTITY).partition("\n")[2].replace("4", "0")), "epoch: Input should be greater"),
        (sealed(encode(CLEAN, IDENTITY).partition("\n")[2].replace(":4", ": 4")), "not in canonical form"),
        (sealed("junk\n"), "document: Invalid JSON"),
    ],
)
def test_what_is_no_record_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(CorruptState, match=re.escape(reason)):
        decode(text, IDENTITY)


def test_no_flipped_bit_goes_unnoticed() -> None:
    data = encode(DIRTY, IDENTITY).encode()
    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 1 << random.Random(at).randrange(7)
        try:
            text = flipped.decode()
        except UnicodeDecodeError:
            continue
        with pytest.raises(CorruptState):
            decode(text, IDENTITY)


def test_only_the_holder_and_who_takes_over_may_open() -> None:
    check_holder(None, FreeClaim(HERE), "disk")
    check_holder(CLEAN, FreeClaim(HERE), "disk")
    check_holder(DIRTY, FreeClaim("b" * 32), "disk")
    check_holder(DIRTY, FreeClaim(HERE, take_over=True), "disk")
    with pytest.raises(ImageBusy, match=r"'disk' has dirty data on host höst \(b{32}\).* disk --layer N --dirty`"):
        check_holder(DIRTY, FreeClaim(HERE), "disk")
