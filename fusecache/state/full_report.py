"""Whether all request slots of a mount are taken, for commands that cannot ask the mount then.

Owns that part of the mount's record, from the mount's beginning to its end. It must not know what a slot is.
"""

import logging
from dataclasses import replace

import trio

from fusecache.api.layer import Emit
from fusecache.state.store import MountRecord, StateStore

log = logging.getLogger(__name__)


class FullReport:
    """Call it with whether all request slots are taken.

    Args:
        nursery: of the mount; the record is written by a thread, the latest state only.
    """

    def __init__(self, store: StateStore, record: MountRecord, emit: Emit, nursery: trio.Nursery) -> None:
        self._store = store
        self._record = record
        self._emit = emit
        self._nursery = nursery
        self._full = False
        self._writing = False
        self._removed = False

    def __call__(self, full: bool) -> None:
        self._full = full
        if full:
            self._emit("slots-full", "all request slots are taken; reading no further requests until one is answered")
        if not self._writing and not self._removed:
            self._writing = True
            self._nursery.start_soon(self._write)

    def remove(self) -> None:
        """Remove the record; once a thread that is writing it has ended, where there is one."""
        self._removed = True
        if not self._writing:
            self._store.remove_mount_record(self._record.mountpoint)

    async def _write(self) -> None:
        written: bool | None = None
        write = self._store.write_mount_record
        try:
            while written is not self._full and not self._removed:
                written = self._full
                try:
                    await trio.to_thread.run_sync(write, replace(self._record, slots_full=written))
                except OSError as error:
                    # A full disk under the state directory is no reason to stop serving.
                    log.warning("the mount's record is not up to date: %s", error)
        finally:
            self._writing = False
            if self._removed:
                self.remove()
