"""Keeping the serving process out of memory reclaim's way.

Owns two requests to the kernel, made once at start. A loop device or swap over our own mount makes the kernel write
to us in order to free memory; if serving that write needs memory to be freed first, both wait for ever.
"""

import ctypes
import logging
import os
import resource
from typing import Final

log = logging.getLogger(__name__)

_PR_SET_IO_FLUSHER: Final = 57
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4


def make_resident() -> None:
    """Ask to be treated as an I/O flusher, and keep the memory in use resident. A refusal is one log line."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0):
        log.info("not marked as an I/O flusher: %s", os.strerror(ctypes.get_errno()))
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if os.geteuid() != 0 and limit != resource.RLIM_INFINITY:
        # With a limit, a later allocation above it would fail instead of being paged.
        log.info("memory is not kept resident: the limit of locked memory is %d bytes", limit)
    elif libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT):
        log.info("memory is not kept resident: %s", os.strerror(ctypes.get_errno()))
