"""Bytes with holes agree with a list that has a place for every byte."""

from hypothesis import given
from hypothesis import strategies as st

from fusecache.api import ExtentKind, Span
from fusecache.testing.sparse import SparseBytes

END = 64
SPANS = st.tuples(st.integers(0, END), st.integers(0, END)).map(lambda ends: Span(*ends))


@given(size=st.integers(0, END), changes=st.lists(st.tuples(st.sampled_from("wpr"), SPANS), max_size=12))
def test_sparse_bytes_agree_with_a_list_of_bytes(size: int, changes: list[tuple[str, Span]]) -> None:
    sparse = SparseBytes(size)
    model: list[int | None] = [None] * size
    for number, (kind, span) in enumerate(changes, 1):
        if kind == "r":
            sparse.resize(span.end)
            model = model[: span.end] + [None] * (span.end - len(model))
            continue
        start, end = min(span.start, len(model)), min(span.end, len(model))
        if start < end:
            model[start:end] = [number if kind == "w" else None] * (end - start)
            if kind == "w":
                sparse.write(start, bytes([number]) * (end - start))
            else:
                sparse.punch(start, end - start)
    assert sparse.read(0, sparse.size) == bytes(byte or 0 for byte in model)
    assert sparse.allocated == sum(byte is not None for byte in model)
    if model:
        kinds = [extent.kind for extent in sparse.extents(0, sparse.size) for _ in range(extent.length)]
        assert kinds == [ExtentKind.HOLE if byte is None else ExtentKind.DATA for byte in model]
