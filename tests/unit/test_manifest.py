"""The manifest's encoding: pinned, and decoded only where it is whole."""

import json

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fusecache.api.errors import CorruptState
from fusecache.state.manifest import Manifest, ManifestLayer, decode, encode

SAMPLE = Manifest(
    identity="directory:6f1c:12",
    epoch=3,
    host="0123456789abcdef0123456789abcdef",
    layers=(
        ManifestLayer(index=0, plugin="passthrough"),
        ManifestLayer(
            index=2,
            plugin="rwl",
            options={"size": "20GiB", "path": "/mnt/Größe", "keep_clean": True},
            artifacts=("/mnt/rwl.2.pool",),
            dirty=True,
            torn=True,
            torn_beyond=True,
            holds_group=True,
            files_id="6f1c",
        ),
    ),
)
SAMPLE_BYTES = (
    b"fusecache-manifest 4 crc32c cbd7947c\n"
    b'{"epoch":3,"host":"0123456789abcdef0123456789abcdef","identity":"directory:6f1c:12","layers":['
    b'{"artifacts":[],"dirty":false,"files_id":"","holds_group":false,"index":0,"options":{},"plugin":"passthrough",'
    b'"torn":false,"torn_beyond":false},'
    b'{"artifacts":["/mnt/rwl.2.pool"],"dirty":true,"files_id":"6f1c","holds_group":true,"index":2,'
    b'"options":{"keep_clean":true,"path":"/mnt/Gr\xc3\xb6\xc3\x9fe","size":"20GiB"},"plugin":"rwl","torn":true,'
    b'"torn_beyond":true}]}\n'
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
options = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
        lambda values: st.lists(values, max_size=3) | st.dictionaries(texts, values, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    indexes = sorted(draw(st.sets(st.integers(0, 1000), max_size=4)))
    layers = [
        ManifestLayer(
            index=index,
            plugin=draw(texts),
            options=draw(options),
            artifacts=tuple(draw(st.lists(texts, max_size=3))),
            dirty=(dirty := draw(st.booleans())),
            torn=(torn := dirty and draw(st.booleans())),
            torn_beyond=torn and draw(st.booleans()),
            holds_group=dirty and draw(st.booleans()),
            files_id=draw(texts) if dirty else "",
        )
        for index in indexes
    ]
    epoch = draw(st.integers(1, 1 << 63))
    return Manifest(identity=draw(texts), epoch=epoch, host=draw(texts), layers=tuple(layers))


def with_body(body: bytes, version: int = 4) -> bytes:
    """Return *body* under a header that fits it."""
    return b"fusecache-manifest %d crc32c %08x\n%b" % (version, crc32c(body), body)


def body_with(**changes: object) -> bytes:
    """Return the sample's body with other top-level values."""
    content = json.loads(SAMPLE_BYTES.partition(b"\n")[2]) | changes
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def test_the_format_is_pinned_byte_for_byte() -> None:
    assert encode(SAMPLE) == SAMPLE_BYTES
    assert decode(SAMPLE_BYTES) == SAMPLE


@given(manifests())
def test_what_is_encoded_is_decoded(manifest: Manifest) -> None:
    assert decode(encode(manifest)) == manifest


def test_no_flipped_bit_yields_another_manifest() -> None:
    for position in range(len(SAMPLE_BYTES)):
        for bit in range(8):
            flipped = bytearray(SAMPLE_BYTES)
            flipped[position] ^= 1 << bit
            with pytest.raises(CorruptState):
                decode(bytes(flipped))


def test_no_cut_or_longer_file_is_a_manifest() -> None:
    for length in range(len(SAMPLE_BYTES)):
        with pytest.raises(CorruptState):
            decode(SAMPLE_BYTES[:length])
    for tail in (b"\n", b" ", b"\0", SAMPLE_BYTES):
        with pytest.raises(CorruptState):
            decode(SAMPLE_BYTES + tail)


@given(st.binary(max_size=100))
def test_junk_is_refused(junk: bytes) -> None:
    for data in (junk, b"fusecache-manifest 4 " + junk, with_body(junk)):
        with pytest.raises(CorruptState):
            decode(data)


def test_another_version_is_refused_with_both_named() -> None:
    with pytest.raises(CorruptState, match="has format version 1, this fusecache reads version 4"):
        decode(with_body(b"whatever comes then", version=1))
    with pytest.raises(CorruptState, match="has format version 7"):
        decode(b"fusecache-manifest 7 another checksum\n")


def test_a_wrong_checksum_is_refused_with_both_named() -> None:
    with pytest.raises(CorruptState, match="found 'crc32c 00000000', computed crc32c cbd7947c"):
        decode(SAMPLE_BYTES.replace(b"cbd7947c", b"00000000"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 0}, "epoch"),
        ({"epoch": True}, "epoch"),
        ({"epoch": "3"}, "epoch"),
        ({"host": None}, "host"),
        ({"colour": "red"}, "colour"),
        ({"layers": {}}, "layers"),
        ({"layers": [{"plugin": "rwl"}]}, "layers.0.index"),
        ({"layers": [{"index": -1, "plugin": "rwl"}]}, "layers.0.index"),
        ({"layers": [{"index": i, "plugin": "rwl"} for i in (1, 0)]}, r"\[1, 0\]"),
        ({"layers": [{"index": i, "plugin": "rwl"} for i in (1, 1)]}, r"\[1, 1\]"),
        ({"layers": [{"index": 0, "plugin": "rwl", "torn": True}]}, "is torn and is not dirty"),
        ({"layers": [{"index": 0, "plugin": "rwl", "holds_group": True}]}, "holds a group and is not dirty"),
        ({"layers": [{"index": 0, "plugin": "rwl", "dirty": True, "torn_beyond": True}]}, "beyond .* and is not torn"),
        ({"layers": [{"index": 0, "plugin": "rwl", "files_id": "6f1c"}]}, "files_id of a layer that is not dirty"),
        ({"layers": [{"index": 0, "plugin": "rwl"}]}, "canonical"),
    ],
)
def test_a_wrong_content_under_a_right_checksum_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CorruptState, match=message):
        decode(with_body(body_with(**changes)))


@pytest.mark.parametrize(
    "body",
    [
        b"[]\n",
        b"null\n",
        b"",
        SAMPLE_BYTES.partition(b"\n")[2].replace(b":", b": "),
        SAMPLE_BYTES.partition(b"\n")[2].replace(b'{"epoch":3', b'{"epoch":2,"epoch":3'),
        SAMPLE_BYTES.partition(b"\n")[2].replace(b'"20GiB"', b"1e999"),
        SAMPLE_BYTES.partition(b"\n")[2].replace(b'"20GiB"', b"NaN"),
        SAMPLE_BYTES.partition(b"\n")[2].replace(b'"20GiB"', b'"\\ud800"'),
        SAMPLE_BYTES.partition(b"\n")[2].replace(b'"20GiB"', b"[" * 100_000 + b"]" * 100_000),
    ],
)
def test_json_that_no_manifest_has_is_refused(body: bytes) -> None:
    with pytest.raises(CorruptState):
        decode(with_body(body))


def test_what_could_not_be_decoded_is_not_made() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(Manifest(identity="a", epoch=1, host="h", layers=(_layer({"rate": float("inf")}),)))
    with pytest.raises(ValidationError):
        _layer({"when": object()})
    with pytest.raises(ValueError, match="surrogates not allowed"):
        encode(Manifest(identity="a", epoch=1, host="h", layers=(_layer({"path": "\udc80"}),)))
    with pytest.raises(ValidationError, match="ascending"):
        Manifest(identity="a", epoch=1, host="h", layers=(_layer({}), _layer({})))


def test_a_manifest_is_dirty_if_any_layer_is() -> None:
    assert SAMPLE.dirty
    assert not SAMPLE.model_copy(update={"layers": SAMPLE.layers[:1]}).dirty


def _layer(given_options: dict[str, object]) -> ManifestLayer:
    return ManifestLayer.model_validate({"index": 0, "plugin": "rwl", "options": given_options})
