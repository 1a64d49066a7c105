"""What is measured, and what fusecache should reach there.

Owns the workloads and the goals, and which of them a run takes. Pure.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

FUSECACHE: Final = "fusecache"
QEMU: Final = "Q"
BARE: Final = "B"

MEANING: Final = {
    FUSECACHE: "a directory through one passthrough layer, the host's page cache below",
    QEMU: "qemu-storage-daemon's FUSE export of the same raw file, the host's page cache below",
    BARE: "a raw file on the same file system, used by fio itself past the page cache",
}
"""What each contestant is."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load.

    Attributes:
        access: fio's ``rw``.
        block: bytes of a request.
        depth: requests in flight.
    """

    name: str
    access: str
    block: int
    depth: int


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


def _workload(direction: str, block: int, depth: int) -> Workload:
    size, access = ("4k", f"rand{direction}") if block == 4096 else ("1m", direction)
    return Workload(f"{size}-{direction}-qd{depth}", access, block, depth)


_SHAPES: Final = ((4096, 16), (4096, 1), (1 << 20, 1), (1 << 20, 4))

WORKLOADS: Final = tuple(_workload(direction, *shape) for direction in ("read", "write") for shape in _SHAPES)
"""4 KiB at random, 1 MiB in sequence."""

GOALS: Final = tuple(
    Goal(
        f"passthrough-directory-{direction}",
        QEMU,
        _workload(direction, *shape).name,
        1.2 if (direction, *shape) == ("read", 4096, 16) else 1.0,
    )
    for direction in ("read", "write")
    for shape in _SHAPES
)

NAMES: Final = tuple(dict.fromkeys(goal.name for goal in GOALS))


def chosen(only: str | None) -> tuple[Sequence[Goal], Sequence[Workload]]:
    """Return the goals of the name *only*, and their workloads; all where it is None."""
    goals = [goal for goal in GOALS if only in (None, goal.name)]
    return goals, _named(goal.workload for goal in goals)


def _named(names: Iterable[str]) -> Sequence[Workload]:
    wanted = set(names)
    return [workload for workload in WORKLOADS if workload.name in wanted]
