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

CONTESTANTS: Final[Mapping[str, Sequence[str]]] = {
    DIRECTORY: (FUSECACHE, QEMU, BARE),
    RBD: (FUSECACHE, QEMU_RBD, LIBRBD),
}
"""Who takes turns at each place. The last one of a place sets no pace, and is left out where time is short."""

MEANING: Final[Mapping[tuple[str, str], str]] = {
    (DIRECTORY, FUSECACHE): "a directory through one passthrough layer, the host's page cache below",
    (DIRECTORY, QEMU): "qemu-storage-daemon's FUSE export of the same raw file, the host's page cache below",
    (DIRECTORY, BARE): "a raw file on the same file system, used by fio itself past the page cache",
    (RBD, FUSECACHE): "an image of a one-node Ceph cluster through one passthrough layer",
    (RBD, QEMU_RBD): "qemu-storage-daemon's FUSE export of such an image, librbd's cache off",
    (RBD, LIBRBD): "such an image used by fio itself through librbd, its cache off",
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
    """

    name: str
    place: str
    access: str
    block: int
    depth: int
    sync: bool = False


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


def _workload(place: str, direction: str, block: int, depth: int, *, sync: bool = False) -> Workload:
    size, access = ("4k", f"rand{direction}") if block == 4096 else ("1m", direction)
    words = [*([] if place == DIRECTORY else [place]), size, direction, *(["sync"] if sync else []), f"qd{depth}"]
    return Workload("-".join(words), place, access, block, depth, sync)


_SHAPES: Final = ((4096, 16), (4096, 1), (1 << 20, 1), (1 << 20, 4))

WORKLOADS: Final = (
    *(_workload(DIRECTORY, direction, *shape) for direction in ("read", "write") for shape in _SHAPES),
    *(_workload(RBD, direction, *shape) for direction in ("read", "write") for shape in _SHAPES),
    _workload(RBD, "write", 4096, 1, sync=True),
)
"""4 KiB at random, 1 MiB in sequence."""


def _goals(workload: Workload) -> Iterable[Goal]:
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
