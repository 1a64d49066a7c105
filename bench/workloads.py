"""What is measured, and what fusecache should reach there.

Owns the workloads and the goals, and which of them a run takes. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

FUSECACHE: Final = "fusecache"
QEMU: Final = "Q"
QEMU_TMPFS: Final = "Q-tmpfs"
BARE: Final = "B"
QEMU_RBD: Final = "QR"
LIBRBD: Final = "L"
STRICT: Final = "strict"
ON_SSD: Final = "fusecache-ssd"
TIMED: Final = "fusecache-timed"
TIMED_ON_SSD: Final = "fusecache-ssd-timed"

DIRECTORY: Final = "directory"
RBD: Final = "rbd"
PMEM: Final = "pmem"
SSD: Final = "ssd"
FULL: Final = "full"
WRITEBACK: Final = "writeback"
GROUPED: Final = "grouped"
COST: Final = "cost"

CONTESTANTS: Final[Mapping[str, Sequence[str]]] = {
    DIRECTORY: (FUSECACHE, QEMU, BARE),
    RBD: (FUSECACHE, QEMU_RBD, LIBRBD),
    PMEM: (FUSECACHE, QEMU, QEMU_TMPFS),
    SSD: (FUSECACHE, QEMU, BARE),
    FULL: (FUSECACHE, LIBRBD),
    WRITEBACK: (FUSECACHE, LIBRBD),
    GROUPED: (FUSECACHE, STRICT),
    COST: (FUSECACHE, ON_SSD, TIMED, TIMED_ON_SSD),
}
"""Who takes turns at each place."""

_SERVED_BY_NOBODY: Final = (BARE, LIBRBD)

_LOG: Final = "an image of a one-node Ceph cluster through an rwl layer"
_ON_TMPFS: Final = f"{_LOG}, its pool on tmpfs as if that were pmem"
_ON_DISK: Final = f"{_LOG}, its pool on the disk"
_RAW: Final = "qemu-storage-daemon's FUSE export of a raw file"
_IN_LIBRBD: Final = "such an image used by fio itself through librbd, its cache off"
_TIMED_IS: Final = "what is timed is the write-back of what was written before"
_STOPWATCHES: Final = "with a stopwatch at each hop, for the table of hops only"

MEANING: Final[Mapping[tuple[str, str], str]] = {
    (DIRECTORY, FUSECACHE): "a directory through one passthrough layer, the host's page cache below",
    (DIRECTORY, QEMU): f"{_RAW}, the same one, the host's page cache below",
    (DIRECTORY, BARE): "a raw file on the same file system, used by fio itself past the page cache",
    (RBD, FUSECACHE): "an image of a one-node Ceph cluster through one passthrough layer",
    (RBD, QEMU_RBD): "qemu-storage-daemon's FUSE export of such an image, librbd's cache off",
    (RBD, LIBRBD): _IN_LIBRBD,
    (PMEM, FUSECACHE): _ON_TMPFS,
    (PMEM, QEMU): f"{_RAW} on the disk, past the page cache",
    (PMEM, QEMU_TMPFS): f"{_RAW} on tmpfs",
    (SSD, FUSECACHE): _ON_DISK,
    (SSD, QEMU): f"{_RAW} on that disk, past the page cache",
    (SSD, BARE): "a raw file on that disk, used by fio itself past the page cache",
    (FULL, FUSECACHE): f"{_ON_DISK} and full of dirty data",
    (FULL, LIBRBD): _IN_LIBRBD,
    (WRITEBACK, FUSECACHE): f"{_ON_DISK}; {_TIMED_IS}",
    (WRITEBACK, LIBRBD): _IN_LIBRBD,
    (GROUPED, FUSECACHE): f'{_ON_DISK}, order = "grouped"; {_TIMED_IS}',
    (GROUPED, STRICT): f'{_ON_DISK}, order = "strict"; {_TIMED_IS}',
    (COST, FUSECACHE): f"{_ON_TMPFS}; daemon and fio are pinned to the same CPU",
    (COST, ON_SSD): f"{_ON_DISK}; daemon and fio are pinned to the same CPU",
    (COST, TIMED): f"the same as {FUSECACHE}, {_STOPWATCHES}",
    (COST, TIMED_ON_SSD): f"the same as {ON_SSD}, {_STOPWATCHES}",
}
"""What each contestant is, by place and name."""


class Before(Enum):
    """What a layer that keeps data holds before a measurement."""

    NOTHING = "nothing"
    IMAGE = "the whole image"


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load.

    Attributes:
        place: where the images are; says who takes part.
        access: fio's ``rw``.
        block: bytes of a request.
        depth: requests in flight.
        sync: every write is followed by a flush.
        before: what fusecache's layer holds at the beginning.
        drained: where not 0, a contestant with a log is given so many writes, all to different blocks, and what is
            timed is their write-back; all others do the load as it is.
        seconds: the least that a measurement takes.
        ramp: seconds of the same load before it.
        loops: where not 0, the load ends when the whole image was written so often, and not with the time: what goes on
            for longer measures how a full log is emptied.
    """

    name: str
    place: str
    access: str
    block: int
    depth: int
    sync: bool = False
    before: Before = Before.NOTHING
    drained: int = 0
    seconds: float = 0.0
    ramp: float = 0.0
    loops: int = 0


@dataclass(frozen=True, slots=True)
class Goal:
    """What fusecache should reach.

    Attributes:
        name: what the goal is known by; several goals may share it.
        peer, workload: whom to compare with, and where; of a goal in microseconds the peer is the goal in words.
        goal: the least ratio of requests per second, fusecache's to the peer's.
        cpu_us: where not 0, the goal is so many microseconds of CPU time for a request, and the ratio how many times
            what was needed goes into that.
    """

    name: str
    peer: str
    workload: str
    goal: float
    cpu_us: float = 0.0


def _workload(place: str, direction: str, block: int, depth: int, *, sync: bool = False) -> Workload:
    size, access = ("4k", f"rand{direction}") if block == 4096 else ("1m", direction)
    words = [*([] if place == DIRECTORY else [place]), size, direction, *(["sync"] if sync else []), f"qd{depth}"]
    return Workload("-".join(words), place, access, block, depth, sync)


_SHAPES: Final = ((4096, 16), (4096, 1), (1 << 20, 1), (1 << 20, 4))

WORKLOADS: Final = (
    *(_workload(DIRECTORY, direction, *shape) for direction in ("read", "write") for shape in _SHAPES),
    *(_workload(RBD, direction, *shape) for direction in ("read", "write") for shape in _SHAPES),
    _workload(RBD, "write", 4096, 1, sync=True),
    _workload(PMEM, "write", 4096, 1, sync=True),
    _workload(PMEM, "write", 4096, 16),
    _workload(SSD, "write", 4096, 1, sync=True),
    _workload(SSD, "write", 4096, 16),
    # The log is four times as large.
    replace(_workload(SSD, "write", 1 << 20, 4), loops=3),
    replace(_workload(SSD, "read", 4096, 16), before=Before.IMAGE),
    replace(_workload(SSD, "read", 1 << 20, 4), before=Before.IMAGE),
    # A full log goes in bursts of a log's length, of which several are to count.
    replace(_workload(FULL, "write", 4096, 16), seconds=10.0, ramp=3.0),
    replace(_workload(WRITEBACK, "write", 4096, 16), drained=4096, seconds=1.0),
    replace(_workload(WRITEBACK, "write", 4096, 1, sync=True), drained=1024, seconds=1.0),
    replace(_workload(GROUPED, "write", 4096, 1, sync=True), drained=1024),
    _workload(COST, "write", 4096, 16),
)
"""4 KiB at random, 1 MiB in sequence."""


_LOG_GOALS: Final[Mapping[str, Sequence[tuple[str, str, float]]]] = {
    "pmem-4k-write-sync-qd1": [("pmem-write-sync-qd1", QEMU, 3.5)],
    "pmem-4k-write-qd16": [("pmem-write-qd16", QEMU, 2.5), ("pmem-write-qd16-tmpfs", QEMU_TMPFS, 1.2)],
    "ssd-4k-write-sync-qd1": [("ssd-write-sync-qd1", QEMU, 1.0), ("ssd-write-sync-qd1", BARE, 0.6)],
    "ssd-4k-write-qd16": [("ssd-write-qd16", QEMU, 2.0)],
    "ssd-4k-read-qd16": [("cached-read-qd16", QEMU, 1.5)],
    "ssd-1m-write-qd4": [("write-1m", BARE, 0.6)],
    "ssd-1m-read-qd4": [("read-1m", BARE, 0.6)],
    "full-4k-write-qd16": [("full-log-write", LIBRBD, 1.0)],
    "writeback-4k-write-qd16": [("writeback-random", LIBRBD, 1.0)],
    "writeback-4k-write-sync-qd1": [("writeback-flush-strict", LIBRBD, 1.0)],
    "grouped-4k-write-sync-qd1": [("writeback-flush-grouped", STRICT, 5.0)],
}


def _goals(workload: Workload) -> Iterable[Goal]:
    for name, peer, goal in _LOG_GOALS.get(workload.name, ()):
        yield Goal(name, peer, workload.name, goal)
    if workload.place == COST:
        yield Goal("layer-cost", "10 µs", workload.name, 1.0, cpu_us=10.0)
    uncached = workload.access == "randread" and workload.depth == 16
    if workload.place == DIRECTORY:
        direction = workload.access.removeprefix("rand")
        yield Goal(f"passthrough-directory-{direction}", QEMU, workload.name, 1.2 if uncached else 1.0)
    elif workload.place == RBD:
        yield Goal("passthrough-rbd", QEMU_RBD, workload.name, 1.0)
        if uncached:
            yield Goal("uncached-read-qd16", QEMU_RBD, workload.name, 1.2)
            yield Goal("uncached-read-qd16", LIBRBD, workload.name, 1.0)


GOALS: Final = tuple(goal for workload in WORKLOADS for goal in _goals(workload))

NAMES: Final = tuple(dict.fromkeys(goal.name for goal in GOALS))


def chosen(only: str | None) -> tuple[Sequence[Goal], Sequence[Workload]]:
    """Return the goals of the name *only*, and their workloads; all where it is None."""
    goals = [goal for goal in GOALS if only in (None, goal.name)]
    return goals, _named(goal.workload for goal in goals)


def _named(names: Iterable[str]) -> Sequence[Workload]:
    wanted = set(names)
    return [workload for workload in WORKLOADS if workload.name in wanted]


def contestants(workload: Workload, *, quick: bool) -> Sequence[str]:
    """Return who takes turns; where time is short, without those that nobody serves, unless a goal names them."""
    peers = [goal.peer for goal in _goals(workload)]
    return [
        name for name in CONTESTANTS[workload.place] if not (quick and name in _SERVED_BY_NOBODY and name not in peers)
    ]
