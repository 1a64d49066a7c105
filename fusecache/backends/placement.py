"""On which CPUs the kernel's threads work for the rings of a thread of ours.

Owns their placement. It must not know rings or requests.

Waking a CPU that sleeps takes longer than a short request, so such are best done where the loop is; long ones, and all
while idle CPUs are kept awake, are best done beside it. The kernel gives a placement to threads that it starts later
(``IORING_REGISTER_IOWQ_AFF`` of ``io_uring_register(2)``) and leaves those that run where they are, so these are moved
one by one. Placement is a matter of speed only: every refusal is passed over.
"""

import os
import threading
from collections.abc import Callable, Set
from pathlib import Path
from typing import Final

_TASKS: Final = Path("/proc/self/task")
_WORKERS: Final = "iou-wrk"
"""How the names of the kernel's threads begin."""


PlaceNew = Callable[[bytes], None]
"""Has threads started from now on run on a CPU mask, whose lowest bit is CPU 0."""

_local = threading.local()


def placement_of_this_thread() -> "Placement":
    """Return the placement of the threads that work for the calling thread; one, however many rings it has."""
    placement: Placement | None = getattr(_local, "placement", None)
    if placement is None:
        placement = _local.placement = Placement()
    return placement


class Placement:
    """See :func:`placement_of_this_thread`; to be used by that thread only."""

    def __init__(self) -> None:
        self._anywhere = frozenset(os.sched_getaffinity(0))
        self._cpus: Set[int] = frozenset()
        self._known: dict[Path, bool] = {}

    def near(self, cpu: int, place_new: PlaceNew) -> None:
        """Have all work done on *cpu*."""
        if self._cpus != {cpu}:
            self._place({cpu}, place_new)

    def anywhere(self, place_new: PlaceNew) -> None:
        """Have work done on any CPU that the process may use."""
        if self._cpus is not self._anywhere:
            self._place(self._anywhere, place_new)

    def _place(self, cpus: Set[int], place_new: PlaceNew) -> None:
        self._cpus = cpus
        mask = sum(1 << cpu for cpu in cpus)
        place_new(mask.to_bytes(max(cpus) // 64 * 8 + 8, "little"))
        for thread in self._workers():
            try:
                os.sched_setaffinity(thread, cpus)
            except OSError:
                continue

    def _workers(self) -> list[int]:
        known = self._known
        # Only threads that are new are asked for their names, and those that have ended are forgotten.
        self._known = {task: known[task] if task in known else _is_worker(task) for task in _TASKS.iterdir()}
        return [int(task.name) for task, worker in self._known.items() if worker]


def _is_worker(task: Path) -> bool:
    try:
        return (task / "comm").read_text().startswith(_WORKERS)
    except OSError:
        return False
