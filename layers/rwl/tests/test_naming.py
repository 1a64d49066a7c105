"""The names of pool files: readable, one for each layer of each image, and never outside of the directory."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusecache.api import Identity
from fusecache_rwl.naming import pool_name

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=512) | st.text("./:%~\0-a", max_size=512)
identities = st.builds(Identity, texts)


def test_a_name_tells_backend_pool_image_and_layer() -> None:
    directory = Identity("directory:0b4dfb0c-1c1b-4c62-8f7c-6d1c7cd7f9a3:1234")
    assert pool_name(directory, 0) == (
        f"rwl.directory.0b4dfb0c-1c1b-4c62-8f7c-6d1c7cd7f9a3.1234.{directory.digest}.0.pool"
    )
    rbd = Identity("rbd:5f7c:2:a.b/c:10aa")
    assert pool_name(rbd, 12) == f"rwl.rbd.5f7c%3A2%3Aa%2Eb%2Fc.10aa.{rbd.digest}.12.pool"


@given(identity=identities, index=st.integers(0, 9_999_999_999))
def test_a_name_is_one_file_in_the_directory(identity: Identity, index: int) -> None:
    name = pool_name(identity, index)
    assert name.isascii()
    assert name.isprintable()
    assert " " not in name
    assert len(name) <= 230
    assert PurePosixPath("/pools", name).parent == PurePosixPath("/pools")
    parts = name.split(".")
    assert len(parts) == 7
    assert parts[0] == "rwl"
    assert parts[4:] == [identity.digest, str(index), "pool"]


@given(first=identities, second=identities, indexes=st.tuples(st.integers(0, 12), st.integers(0, 12)))
def test_no_two_layers_share_a_name(first: Identity, second: Identity, indexes: tuple[int, int]) -> None:
    same = (first, indexes[0]) == (second, indexes[1])
    assert (pool_name(first, indexes[0]) == pool_name(second, indexes[1])) is same


@pytest.mark.parametrize("length", range(90, 110))
def test_what_is_too_long_is_cut_off_between_escapes(length: int) -> None:
    start = "a" * length
    first, second = (Identity(f"rbd:{start}///{end}:10aa") for end in "xy")
    assert pool_name(first, 0) != pool_name(second, 0)
    pool = pool_name(first, 0).split(".")[2]
    assert pool.removeprefix(start[:100]).replace("%2F", "").strip("x") == ""


def test_names_differ_where_only_case_does() -> None:
    lower, upper = pool_name(Identity("rbd:f:2:ns:1"), 0), pool_name(Identity("rbd:f:2:NS:1"), 0)
    assert lower.lower() != upper.lower()


def test_a_negative_layer_index_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 0, found -1"):
        pool_name(Identity("directory:1:2"), -1)
