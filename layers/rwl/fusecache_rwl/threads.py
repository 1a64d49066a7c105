"""The end of a medium's threads.

Owns how long they are waited for. It must not know what they do.
"""

import logging
import threading
import time
from collections.abc import Sequence

import trio

log = logging.getLogger(__name__)

PATIENCE = 3.0
"""Seconds that a thread, or a sync, has to end; one that takes longer hangs in the kernel."""


async def join_all(threads: Sequence[threading.Thread]) -> None:
    """Wait for threads that were told to end, for :data:`PATIENCE` in all, even when cancelled.

    Those that have not ended are logged and left behind; they are daemons, and never keep the process from exiting.
    """
    if threads:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_join, threads)


def _join(threads: Sequence[threading.Thread]) -> None:
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if hanging := [thread.name for thread in threads if thread.is_alive()]:
        log.warning("left behind, waiting for the kernel: %s", ", ".join(hanging))
