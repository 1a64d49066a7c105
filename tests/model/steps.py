"""What is done to a stack in a run, and how runs are made up.

Owns the steps and their Hypothesis strategies. It must not know how a step is carried out.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from hypothesis import strategies as st

LARGEST: Final = 12_000
"""Sizes, and so offsets, stay below."""


@dataclass(frozen=True)
class Ask:
    """A request; place and length are fitted into the size there is when its turn comes."""

    kind: Literal["read", "write", "write_zeroes", "discard", "flush"]
    at: int
    length: int
    seed: int

    def fit(self, size: int) -> tuple[int, int]:
        """Return offset and length inside a volume of *size* bytes."""
        offset = self.at % size
        return offset, min(self.length, size - offset)


@dataclass(frozen=True)
class Burst:
    """Requests that arrive together, in this order, whatever they overlap; *beside* runs at the same time."""

    asks: tuple[Ask, ...]
    beside: Literal["nothing", "writeback"]


@dataclass(frozen=True)
class Seek:
    """Look for the next hole, or the next data."""

    at: int
    hole: bool


@dataclass(frozen=True)
class WriteBack:
    """Write back one layer (modulo how many there are), or all."""

    layer: int | None


@dataclass(frozen=True)
class Invalidate:
    """Drop one layer's content."""

    layer: int
    dirty: bool


@dataclass(frozen=True)
class Resize:
    """Set the length."""

    size: int


@dataclass(frozen=True)
class Grow:
    """Make at least so long."""

    size: int


@dataclass(frozen=True)
class Reopen:
    """Close the stack and open it again."""


Step: TypeAlias = Ask | Burst | Seek | WriteBack | Invalidate | Resize | Grow | Reopen

_OFFSETS: Final = st.one_of(st.integers(0, LARGEST), st.integers(0, LARGEST // 512).map(lambda unit: unit * 512))
_LENGTHS: Final = st.one_of(st.integers(1, 700), st.sampled_from([512, 1024, 4096]), st.integers(1, LARGEST))
_ASKS: Final = st.builds(
    Ask,
    st.sampled_from(["write", "read", "write_zeroes", "discard", "write", "flush"]),
    _OFFSETS,
    _LENGTHS,
    st.integers(1, 1 << 16),
)
_RARE: Final = st.one_of(
    st.builds(WriteBack, st.one_of(st.none(), st.integers(0, 2))),
    st.builds(Invalidate, st.integers(0, 2), st.booleans()),
    st.builds(Resize, _OFFSETS),
    st.builds(Grow, _OFFSETS),
    st.just(Reopen()),
    st.builds(Seek, _OFFSETS, st.booleans()),
)
_BURSTS: Final = st.builds(
    Burst, st.lists(_ASKS, min_size=2, max_size=8).map(tuple), st.sampled_from(["nothing", "writeback"])
)

RUNS: Final = st.lists(st.one_of(_ASKS, _BURSTS, _RARE), min_size=8, max_size=40)
SIZES: Final = st.one_of(st.integers(1, LARGEST), st.sampled_from([4096, 8192]))
