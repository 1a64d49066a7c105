"""Keeping the idle CPUs of a virtual machine awake while requests follow each other.

Owns the CPU latency request to the kernel, and when it stands. It must not know requests.

In a virtual machine a CPU with nothing to do is halted, which hands it to the hypervisor; to wake it takes tens of
microseconds, of whoever wakes it as well. A request that comes alone is handed from the client to us, perhaps to a
cluster's daemons, and back: each hand-over wakes a CPU, and together they take several times as long as all the work.
While somebody asks for a CPU latency of 0, idle CPUs poll for work instead, and being woken costs next to nothing.

Asked for where the cpuidle driver is ``haltpoll``: Linux has it in virtual machines whose CPUs are their own, or where
their administrator wants it. On other machines an idle CPU that is needed often is kept from deep sleep as it is, and
polling would cost power for little. Nor where it is forbidden: the device is root's.

Idle CPUs are kept awake while the mount is at work for a good part of the time, as one is whose clients wait for it,
and may sleep a moment later. The request belongs to the descriptor, so that it outlives no process, however that ends.

Sources: Documentation/power/pm_qos_interface.rst and Documentation/virt/guest-halt-polling.rst of Linux.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import trio

log = logging.getLogger(__name__)

WINDOW: Final = 0.05
"""Seconds over which the mount's time at work is counted."""
SHARE: Final = 0.3
"""The share of that time from which on idle CPUs are kept awake."""

DEVICE: Final = Path("/dev/cpu_dma_latency")
_DRIVER: Final = Path("/sys/devices/system/cpu/cpuidle/current_driver")
_POLLS: Final = "haltpoll"
_NO_LATENCY: Final = bytes(4)
"""Microseconds, as a signed number of 32 bits."""


def pays() -> bool:
    """Say whether this machine is one where halted CPUs cost more than polling ones."""
    try:
        return _DRIVER.read_text().strip() == _POLLS
    except OSError:
        return False


class Awake:
    """The CPU latency request of one mount; :meth:`run` is its task.

    Attributes:
        held: idle CPUs are kept awake now.

    Args:
        allowed: never ask where False.
    """

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._fd = -1
        self._at_work = 0
        self._since = 0.0
        self._worked = 0.0
        self._begun = trio.Event()

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def begin(self) -> None:
        """Somebody has something to do from now on; each has an :meth:`end`."""
        if not self._at_work:
            self._since = time.monotonic()
            self._begun.set()
        self._at_work += 1

    def end(self) -> None:
        """Somebody has nothing more to do."""
        self._at_work -= 1
        if not self._at_work:
            self._worked += time.monotonic() - self._since

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Somebody is at work in this context, but where it is :meth:`resting`."""
        self.begin()
        try:
            yield
        finally:
            self.end()

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """Who is at work waits in this context for something to do."""
        self.end()
        try:
            yield
        finally:
            self.begin()

    async def run(self) -> None:
        """Keep idle CPUs awake when it pays, until cancelled; then, too, they may sleep."""
        if not self._allowed:
            return
        try:
            while True:
                if not self._at_work and not self.held:
                    self._begun = trio.Event()
                    await self._begun.wait()
                share = await self._share()
                if share < SHARE:
                    self._release()
                elif not self.held and not self._hold():
                    return
        finally:
            self._release()

    async def _share(self) -> float:
        """Return the share of the next moment in which somebody is at work."""
        start, self._worked = time.monotonic(), 0.0
        self._since = start
        await trio.sleep(WINDOW)
        now = time.monotonic()
        worked = self._worked + (now - self._since if self._at_work else 0.0)
        return worked / (now - start)

    def _hold(self) -> bool:
        try:
            self._fd = os.open(DEVICE, os.O_WRONLY | os.O_CLOEXEC)
            os.write(self._fd, _NO_LATENCY)
        except OSError as error:
            log.info("idle CPUs are not kept awake: %s", error)
            self._release()
        return self.held

    def _release(self) -> None:
        if self.held:
            os.close(self._fd)
            self._fd = -1
