"""On which CPUs the kernel's threads work for a ring of ours.

Owns their placement. It must not know rings or requests.

Waking a CPU that sleeps takes longer than a short request, so such are best done where the loop is; long ones are best
done beside it. The kernel gives a placement to threads that it starts later (``IORING_REGISTER_IOWQ_AFF`` of
``io_uring_register(2)``) and leaves those that run where they are, so these are moved one by one. Placement is a matter
of speed only: every refusal is passed over.
"""

import os
from collections.abc import Callable, Set
from pathlib import Path
from typing import Final

_TASKS: Final = Path("/proc/self/task")
_WORKERS: Final = "iou-wrk"
"""How the names of the kernel's threads begin."""


class Placement:
    """The placement of the threads that work for the calling thread, which is always the same one.

    Args:
        place_new: has threads started from now on run on a CPU mask, whose lowest bit is CPU 0.
    """

    def __init__(self, place_new: Callable[[bytes], None]) -> None:
        self._place_new = place_new
        self._anywhere = frozenset(os.sched_getaffinity(0))
        self._cpus: Set[int] = frozenset()
        self._known: dict[Path, bool] = {}

    def near(self, cpu: int) -> None:
        """Have all work done on *cpu*."""
        if self._cpus != {cpu}:
            self._place({cpu})

    def anywhere(self) -> None:
        """Have work done on any CPU that the process may use."""
        if self._cpus is not self._anywhere:
            self._place(self._anywhere)

    def _place(self, cpus: Set[int]) -> None:
        self._cpus = cpus
        mask = sum(1 << cpu for cpu in cpus)
        self._place_new(mask.to_bytes(max(cpus) // 64 * 8 + 8, "little"))
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
