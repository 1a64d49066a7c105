"""What is done to a stack in a run, and how runs are made up.

Owns the steps and their Hypothesis strategies. It must not know how a step is carried out.
"""

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar

from hypothesis import strategies as st

from layers.rwl.tests.support.world import LayerKind

T = TypeVar("T")

UNIT: Final = 512
LARGEST: Final = 48 << 10
"""Sizes, and so offsets, stay below."""


@dataclass(frozen=True)
class Ask:
    """A request; place and length are fitted into the size there is when its turn comes.

    Attributes:
        attempt: try the synchronous attempt first.
    """

    kind: Literal["read", "write", "write_zeroes", "discard", "flush"]
    at: int
    length: int
    attempt: bool

    def fit(self, size: int) -> tuple[int, int]:
        """Return offset and length inside a volume of *size* bytes, aligned."""
        offset = self.at % size // UNIT * UNIT
        return offset, min(self.length, size - offset)


@dataclass(frozen=True)
class Burst:
    """Requests that run beside each other; those that overlap an earlier one are left out."""

    asks: tuple[Ask, ...]
    writeback: bool


@dataclass(frozen=True)
class WriteBack:
    """Write back one layer (modulo how many there are), or all, top down."""

    layer: int | None


@dataclass(frozen=True)
class Invalidate:
    """Drop the top's content."""

    dirty: bool


@dataclass(frozen=True)
class Resize:
    """Set the length."""

    size: int


@dataclass(frozen=True)
class Reopen:
    """Close the stack and open it again."""


@dataclass(frozen=True)
class Die:
    """The process dies so many events from now; the next one dies while it recovers, after as many events as *then*
    says."""

    events: int
    then: int | None


Step: TypeAlias = Ask | Burst | WriteBack | Invalidate | Resize | Reopen | Die

_UNITS: Final = st.integers(0, LARGEST // UNIT).map(lambda unit: unit * UNIT)
_LENGTHS: Final = st.one_of(
    st.sampled_from([512, 1024, 4096, 4096, 8192]), st.integers(1, LARGEST // UNIT).map(lambda unit: unit * UNIT)
)
_CHANGES: Final = st.sampled_from(["write", "write", "write", "write_zeroes", "discard"])


def _asks(kinds: st.SearchStrategy[str]) -> st.SearchStrategy[Ask]:
    return st.builds(Ask, kinds, _UNITS, _LENGTHS, st.booleans())


_ANY: Final = _asks(st.one_of(_CHANGES, st.sampled_from(["read", "flush"])))
_FLUSHES: Final = _asks(st.just("flush"))
_BURSTS: Final = st.builds(Burst, st.lists(_ANY, min_size=2, max_size=10).map(tuple), st.booleans())
_WRITEBACKS: Final = st.builds(WriteBack, st.one_of(st.none(), st.integers(0, 1)))
_DEATHS: Final = st.builds(Die, st.integers(0, 40), st.one_of(st.none(), st.integers(0, 12)))
_RARE: Final = st.one_of(
    st.builds(Invalidate, st.booleans()),
    st.builds(Resize, st.one_of(_UNITS, st.integers(1, LARGEST))),
    st.just(Reopen()),
)

_DOOMED: Final = st.tuples(
    st.builds(Die, st.integers(0, 14), st.one_of(st.none(), st.integers(0, 12))),
    st.one_of(_WRITEBACKS, _BURSTS, _RARE),
)
"""Work in the middle of which the process dies."""


def _weighted(*choices: tuple[int, st.SearchStrategy[T]]) -> st.SearchStrategy[T]:
    """Choose each strategy as often as its number says."""
    return st.sampled_from([strategy for weight, strategy in choices for _ in range(weight)]).flatmap(lambda one: one)


def _runs(rare: int, doomed: st.SearchStrategy[tuple[Step, ...]], flushes: int = 4) -> st.SearchStrategy[list[Step]]:
    ordinary = _weighted((8, _ANY), (3, _BURSTS), (flushes, _FLUSHES), (3, _WRITEBACKS), (rare, _RARE))
    parts = _weighted((6, st.tuples(ordinary)), (1, doomed))
    return st.lists(parts, min_size=12, max_size=40).map(lambda parts: [step for part in parts for step in part])


RUNS: Final = _runs(1, _DOOMED)
"""Everything that may happen to a stack."""
FLUSHED: Final = _runs(1, _DOOMED, flushes=12)
"""The same, with a flush after nearly every change."""
POWERED: Final = _runs(0, st.tuples(_DEATHS, st.one_of(_BURSTS, _WRITEBACKS)))
"""What may happen before power is lost."""
UNMOVED: Final = st.lists(st.one_of(_ANY, _BURSTS.map(lambda burst: Burst(burst.asks, False))), min_size=4, max_size=24)
"""Nothing that makes a layer write back."""
SMALL: Final = st.lists(
    st.builds(Ask, st.sampled_from(["write", "write", "write", "flush"]), _UNITS, st.just(UNIT), st.booleans()),
    min_size=2,
    max_size=6,
)
"""Few records, all of one size: what a crash leaves of them fits exactly behind those that come after it."""

SIZES: Final = st.one_of(st.sampled_from([4096, 16384, LARGEST]), st.integers(1, LARGEST))
_SMALLEST: Final = 100 << 10
"""Bytes of a ring into which the largest write fits wherever its head is: that takes twice as many. Real rings have
many times as much."""
_KINDS: Final = st.builds(
    LayerKind,
    st.sampled_from(["ssd", "pmem"]),
    st.sampled_from([_SMALLEST, 128 << 10, 256 << 10]),
    st.sampled_from(["auto", "auto", "write", "flush"]),
    st.booleans(),
    st.sampled_from(["strict", "strict", "grouped"]),
    st.sampled_from([1 << 62, 1 << 62, 20 << 10]),
)
GROUPED: Final = st.tuples(
    st.builds(
        LayerKind,
        st.sampled_from(["ssd", "pmem"]),
        st.sampled_from([_SMALLEST, 256 << 10]),
        st.just("auto"),
        st.booleans(),
        st.just("grouped"),
    )
)
"""One layer that writes back in groups, of 12 or of 32 KiB."""
STACKS: Final = st.lists(_KINDS, min_size=1, max_size=2)
"""One layer, or two."""
ATTEMPTS: Final = st.sampled_from(["done", "pending", "declined"])
"""What the image below answers to attempts."""
