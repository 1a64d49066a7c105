"""What is measured, and what fusecache should reach there.

Owns the workloads and the goals, and which of them a run takes. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

FUSECACHE: Final = "fusecache"
QEMU: Final = "Q"
BARE: Final = "B"
QEMU_RBD: Final = "QR"
LIBRBD: Final = "L"

DIRECTORY: Final = "directory"
RBD: Final = "rbd"
PMEM: Final = "pmem"
SSD: Final = "ssd"

CONTESTANTS: Final[Mapping[str, Sequence[str]]] = {
    DIRECTORY: (FUSECACHE, QEMU, BARE),
    RBD: (FUSECACHE, QEMU_RBD, LIBRBD),
    PMEM: (FUSECACHE, QEMU),
    SSD: (FUSECACHE, QEMU, BARE),
}
"""Who takes turns at each place. The third one is left out where time is short."""

MEANING: Final[Mapping[tuple[str, str], str]] = {
    (DIRECTORY, FUSECACHE): "a directory through one passthrough layer, the host's page cache below",
    (DIRECTORY, QEMU): "qemu-storage-daemon's FUSE export of the same raw file, the host's page cache below",
    (DIRECTORY, BARE): "a raw file on the same file system, used by fio itself past the page cache",
    (RBD, FUSECACHE): "an image of a one-node Ceph cluster through one passthrough layer",
    (RBD, QEMU_RBD): "qemu-storage-daemon's FUSE export of such an image, librbd's cache off",
    (RBD, LIBRBD): "such an image used by fio itself through librbd, its cache off",
    (
        PMEM,
        FUSECACHE,
    ): "an image of a one-node Ceph cluster through an rwl layer, its pool on tmpfs as if that were pmem",
    (PMEM, QEMU): "qemu-storage-daemon's FUSE export of a raw file, past the page cache",
    (SSD, FUSECACHE): "an image of a one-node Ceph cluster through an rwl layer, its pool on the disk",
    (SSD, QEMU): "qemu-storage-daemon's FUSE export of a raw file on that disk, past the page cache",
    (SSD, BARE): "a raw file on that disk, used by fio itself past the page cache",
}
"""What each contestant is, by place and name."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load.

    Attributes:
        place: where the images are; says who takes part.
        access: fio's ``rw``.
        block: bytes of a request.
        depth: requests in flight.
        sync: every write is followed by a flush.
        filled: the whole image is written before, so that a layer that keeps what is written has it.
    """

    name: str
    place: str
    access: str
    block: int
    depth: int
    sync: bool = False
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Goal:
    """What fusecache should reach.

    Attributes:
        name: what the goal is known by; several goals may share it.
        peer, workload: whom to compare with, and where.
        goal: the least ratio of requests per second, fusecache's to the peer's.
    """

    name: str
    peer: str
    workload: str
    goal: float


def _workload(
    place: str, direction: str, block: int, depth: int, *, sync: bool = False, filled: bool = False
) -> Workload:
    size, access = ("4k", f"rand{direction}") if block == 4096 else ("1m", direction)
    words = [*([] if place == DIRECTORY else [place]), size, direction, *(["sync"] if sync else []), f"qd{depth}"]
    return Workload("-".join(words), place, access, block, depth, sync, filled)


_SHAPES: Final = ((4096, 16), (4096, 1), (1 << 20, 1), (1 << 20, 4))

WORKLOADS: Final = (
    *(_workload(DIRECTORY, direction, *shape) for direction in ("read", "write") for shape in _SHAPES),
    *(_workload(RBD, direction, *shape) for direction in ("read", "write") for shape in _SHAPES),
    _workload(RBD, "write", 4096, 1, sync=True),
    _workload(PMEM, "write", 4096, 1, sync=True),
    _workload(PMEM, "write", 4096, 16),
    _workload(SSD, "write", 4096, 1, sync=True),
    _workload(SSD, "write", 4096, 16),
    _workload(SSD, "write", 1 << 20, 4),
    _workload(SSD, "read", 4096, 16, filled=True),
    _workload(SSD, "read", 1 << 20, 4, filled=True),
)
"""4 KiB at random, 1 MiB in sequence."""


_LOG_GOALS: Final[Mapping[str, Sequence[tuple[str, str, float]]]] = {
    "pmem-4k-write-sync-qd1": [("pmem-write-sync-qd1", QEMU, 3.5)],
    "pmem-4k-write-qd16": [("pmem-write-qd16", QEMU, 2.5)],
    "ssd-4k-write-sync-qd1": [("ssd-write-sync-qd1", QEMU, 1.0), ("ssd-write-sync-qd1", BARE, 0.6)],
    "ssd-4k-write-qd16": [("ssd-write-qd16", QEMU, 2.0)],
    "ssd-4k-read-qd16": [("cached-read-qd16", QEMU, 1.5)],
    "ssd-1m-write-qd4": [("write-1m", BARE, 0.6)],
    "ssd-1m-read-qd4": [("read-1m", BARE, 0.6)],
}


def _goals(workload: Workload) -> Iterable[Goal]:
    if workload.place in (PMEM, SSD):
        for name, peer, goal in _LOG_GOALS[workload.name]:
            yield Goal(name, peer, workload.name, goal)
        return
    uncached = workload.access == "randread" and workload.depth == 16
    if workload.place == DIRECTORY:
        direction = workload.access.removeprefix("rand")
        yield Goal(f"passthrough-directory-{direction}", QEMU, workload.name, 1.2 if uncached else 1.0)
        return
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
