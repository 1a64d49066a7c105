"""A buffer is read into again only once nobody has it any more."""

from typing import Any

import pytest

pytest.importorskip("rados", reason="Ceph's bindings are not installed")
from fusecache.backends.rbd.reads import _Buffers, _ignore, _Read

KEPT: list[Any] = []


def read(buffers: _Buffers, keep: str) -> int:
    """Take and give back a buffer, as a finished read does; return which one it was."""
    requests = {1: (0, _Read(_ignore, *buffers.take(4096)))}
    _, ended = requests.pop(1)
    if keep == "buffer":
        KEPT.append(ended.buffer)
    elif keep == "view":
        KEPT.append(memoryview(ended.buffer)[10:20])
    buffers.give(ended)
    return id(ended.buffer)


def test_a_buffer_that_nobody_kept_is_used_again() -> None:
    buffers = _Buffers()
    assert len({read(buffers, "nothing") for _ in range(10)}) == 1


@pytest.mark.parametrize("keep", ["buffer", "view"])
def test_a_buffer_that_somebody_kept_is_his(keep: str) -> None:
    buffers = _Buffers()
    assert len({read(buffers, keep) for _ in range(10)}) == 10


def test_only_so_much_is_kept() -> None:
    buffers = _Buffers()
    taken = [buffers.take(1 << 20) for _ in range(40)]
    while taken:
        buffers.give(_Read(_ignore, *taken.pop()))
    assert sum(len(buffer) for each in buffers._spare.values() for buffer, _ in each) == 16 << 20
