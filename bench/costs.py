"""What one write costs at each hop: which methods are hops, and how spans become costs.

Owns the table of hops from the kernel's request to its reply, and the arithmetic. It must not know how spans are
measured. Pure.

A *span* is the time from a call of a hop's method to its return, less those of the hops below. It holds what a
stopwatch takes: *inside* is in the span of the hop itself, *outside* in that of the hop above.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

READ: Final = "channel: read a request from the kernel"
CHANNEL: Final = "channel: decode, dispatch, free the slot"
REPLY: Final = "reply: write it to the kernel"
REST: Final = "waiting, waking, turns of other tasks"


@dataclass(frozen=True, slots=True)
class Hop:
    """One hop.

    Attributes:
        depth: how many hops are above; a hop is called by the last one before it that is less deep.
        methods: module, class and name of what is timed; several where only one of them is used at a time.
    """

    name: str
    depth: int
    methods: Sequence[tuple[str, str, str]]


HOPS: Final = (
    Hop(READ, 0, ()),
    Hop(CHANNEL, 0, ()),
    Hop("data plane", 1, [("fusecache.fuse.dataplane", "DataPlane", "_write")]),
    Hop("image as a file", 2, [("fusecache.images.files", "ImageFile", "write")]),
    Hop("image: range guard, alignment", 3, [("fusecache.images.image", "Image", "write")]),
    Hop("link", 4, [("fusecache.stack.link", "Link", "try_write")]),
    Hop("rwl: layer", 5, [("fusecache_rwl.layer", "RwlLayer", "try_write")]),
    Hop("rwl: log", 6, [("fusecache_rwl.log", "Log", "append")]),
    Hop("rwl: space", 7, [("fusecache_rwl.space", "Space", "reserve")]),
    Hop("rwl: header and CRC", 7, [("fusecache_rwl.format", "Encoder", "header")]),
    Hop(
        "rwl: append to the medium",
        7,
        [("fusecache_rwl.medium_pmem", "PmemMedium", "append"), ("fusecache_rwl.medium_ssd", "SsdMedium", "append")],
    ),
    Hop("rwl: index", 7, [("fusecache_rwl.index", "Index", "insert")]),
    Hop("rwl: ledger", 7, [("fusecache_rwl.ledger", "Generation", "add")]),
    Hop(REPLY, 2, [("fusecache.fuse.dataplane", "DataPlane", "send")]),
)
"""In the order in which a request comes to them. The first two are the channel's loop, between its calls."""


@dataclass(frozen=True, slots=True)
class Spans:
    """What the stopwatches of one daemon said, in nanoseconds.

    Attributes:
        means: by the hop's name; without those that were never called.
        inside, outside: what a stopwatch itself takes.
    """

    means: Mapping[str, float]
    inside: float
    outside: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What one hop costs by itself, in nanoseconds per request."""

    media: str
    hop: str
    ns: float


def mean(spans: Sequence[int]) -> float:
    """Return the mean of *spans* without the slowest fiftieth, which something interrupted.

    Not the median: a hop that wakes somebody, or does not, takes one of two times.
    """
    kept = sorted(spans)[: len(spans) - len(spans) // 50]
    return sum(kept) / len(kept)


def costs(media: str, spans: Spans, cpu_us: float | None) -> Iterator[Cost]:
    """Yield what each hop costs without those below it, and at last what they and the stopwatches leave of *cpu_us*.

    Args:
        cpu_us: CPU time for a request, of the same daemon; None where it is not known.
    """
    found = 0.0
    hops = [hop for hop in HOPS if hop.name in spans.means]
    for place, hop in enumerate(hops):
        watches = spans.inside * (hop.name != CHANNEL) + spans.outside * _below(hops, place)
        own = spans.means[hop.name] - watches
        found += own
        yield Cost(media, hop.name, own)
    if cpu_us is not None:
        yield Cost(media, REST, cpu_us * 1000 - found - len(hops) * (spans.inside + spans.outside))


def _below(hops: Sequence[Hop], place: int) -> int:
    """Return how many hops the one at *place* calls."""
    depth = hops[place].depth
    called = takewhile(lambda hop: hop.depth > depth, hops[place + 1 :])
    return sum(hop.depth == depth + 1 for hop in called)
