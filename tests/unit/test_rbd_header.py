"""The cluster's own records of images: bytes as a Ceph 16.2.15 cluster wrote them, and bytes that are none."""

import struct

import pytest

from fusecache.api.errors import CorruptState
from fusecache.backends.rbd.header import (
    Header,
    Snapshot,
    decode_header,
    decode_listing,
    decode_string,
    encode_listing,
    encode_string,
)

VALUES = {
    "size": bytes.fromhex("0000200000000000"),
    "features": bytes.fromhex("3d00000000000000"),
    "create_timestamp": bytes.fromhex("996a036bb4fca80f"),
    "modify_timestamp": bytes.fromhex("9a6a036b01000000"),
}
SNAPSHOT = bytes.fromhex(
    "08083700000005000000000000000300000073203200002000000000000000000000000000000101"
    "0400000000000000996a036b361779150000000000"
)
"""The snapshot "s 2"."""

SNAPSHOT_OF_A_GROUP = SNAPSHOT.replace(bytes.fromhex("01010400000000000000"), bytes.fromhex("01010400000001000000"))

LISTING = bytes.fromhex(
    "0200000001000000610c000000313031336138383765366162040000007232 2d610c000000313032313332653562396636"
)
"""The images "a" and "r2-a"."""


def old_snapshot() -> bytes:
    """A snapshot as Ceph wrote it before version 14: with features and a parent, without a namespace or a time."""
    parent = struct.pack("<BBI", 1, 1, 5) + b"12345"
    body = struct.pack("<Q", 7) + encode_string("old") + struct.pack("<QQ", 4096, 1) + parent + struct.pack("<BQ", 0, 0)
    return struct.pack("<BBI", 4, 1, len(body)) + body


def test_a_header_is_decoded() -> None:
    assert decode_header("1025", "disk", VALUES, [SNAPSHOT]) == Header(
        id="1025",
        name="disk",
        size=2 << 20,
        features=0x3D,
        snapshots={"s 2": Snapshot(id=5, name="s 2", size=2 << 20, mtime_ns=1795386009360257334)},
        mtime_ns=1795386010000000001,
    )


def test_an_image_that_never_changed_has_the_time_it_was_made() -> None:
    values = {key: value for key, value in VALUES.items() if key != "modify_timestamp"}
    assert decode_header("1025", "disk", values).mtime_ns == 1795386009262732980
    values.pop("create_timestamp")
    assert decode_header("1025", "disk", values).mtime_ns == 0


def test_the_record_and_the_guard_are_found() -> None:
    values = {**VALUES, "metadata_fusecache_record": b"\xff", "metadata_conf_rbd_plugins": b"x"}
    header = decode_header("1025", "disk", values)
    assert (header.record, header.guard) == (b"\xff", "x")


def test_without_the_feature_an_image_can_only_be_read_and_it_is_said_what_to_enable() -> None:
    header = decode_header("1025", "disk", {**VALUES, "features": bytes.fromhex("0100000000000000")})
    assert "rbd feature enable disk exclusive-lock" in header.read_only_reason


def test_snapshots_that_no_user_made_are_not_shown() -> None:
    assert SNAPSHOT_OF_A_GROUP != SNAPSHOT
    assert not decode_header("1025", "disk", VALUES, [SNAPSHOT_OF_A_GROUP]).snapshots


def test_snapshots_of_old_clusters_are_decoded() -> None:
    assert decode_header("1025", "disk", VALUES, [old_snapshot()]).snapshots == {"old": Snapshot(7, "old", 4096)}


@pytest.mark.parametrize("length", range(len(SNAPSHOT) - 5))
def test_a_snapshot_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(CorruptState, match=r"a snapshot of rbd_header\.1025 does not parse"):
        decode_header("1025", "disk", VALUES, [SNAPSHOT[:length]])


@pytest.mark.parametrize("key", ["size", "features"])
def test_a_header_without_size_or_features_is_refused(key: str) -> None:
    with pytest.raises(CorruptState, match="names no size or no features"):
        decode_header("1025", "disk", {name: value for name, value in VALUES.items() if name != key})


@pytest.mark.parametrize("key", ["size", "features", "modify_timestamp"])
def test_a_value_that_is_cut_off_is_refused(key: str) -> None:
    with pytest.raises(CorruptState, match=f"rbd_header.1025 {key} does not parse: found"):
        decode_header("1025", "disk", {**VALUES, key: VALUES[key][:-1]})


def test_a_listing_is_decoded() -> None:
    assert decode_listing(LISTING) == [("a", "1013a887e6ab"), ("r2-a", "102132e5b9f6")]
    with pytest.raises(CorruptState, match="the list of images does not parse"):
        decode_listing(LISTING[:-1])


def test_names_of_any_bytes_go_through_a_listing() -> None:
    raw = struct.pack("<I", 1) + struct.pack("<I", 2) + b"\xff\0" + encode_string("id")
    ((name, _),) = decode_listing(raw)
    assert encode_listing(name, 3) == struct.pack("<I", 2) + b"\xff\0" + struct.pack("<Q", 3)


def test_an_id_is_decoded() -> None:
    assert decode_string("rbd_id.disk", encode_string("1025")) == "1025"
    with pytest.raises(CorruptState, match=r"rbd_id\.disk does not parse"):
        decode_string("rbd_id.disk", b"\x05\0\0\0abc")
