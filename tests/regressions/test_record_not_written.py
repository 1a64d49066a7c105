"""A mount under load ended because the disk of its state directory was full, and stood still while that disk was slow.

All request slots were taken, and that could not be written to the mount's record, or not soon.
"""

import logging
import shutil
import threading
from pathlib import Path

import pytest
import trio

from fusecache.state.full_report import FullReport
from fusecache.state.store import MountRecord, StateStore

RECORD = MountRecord("/mnt", pid=1, config="/etc/config.toml", started=0.0, backend="directory:/images")


class SlowStore(StateStore):
    """A store whose disk waits to be let go on.

    Attributes:
        writes: what was begun to be written.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writes: list[bool] = []
        self.begun = trio.Event()
        self.go = threading.Event()

    def write_mount_record(self, record: MountRecord) -> None:
        self.writes.append(record.slots_full)
        trio.from_thread.run_sync(self.begun.set)
        self.go.wait(20)
        super().write_mount_record(record)


@pytest.mark.parametrize("full", [True, False])
async def test_a_record_that_cannot_be_written_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, full: bool
) -> None:
    store = StateStore(tmp_path)
    shutil.rmtree(tmp_path / "mounts")
    with caplog.at_level(logging.WARNING):
        async with trio.open_nursery() as nursery:
            FullReport(store, RECORD, lambda kind, text: None, nursery)(full)
    assert "the mount's record is not up to date" in caplog.text


async def test_nobody_waits_for_a_record_and_only_the_latest_state_is_written(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)
    async with trio.open_nursery() as nursery:
        report = FullReport(store, RECORD, lambda kind, text: None, nursery)
        report(True)
        await store.begun.wait()
        for full in (False, True, False):
            report(full)
        store.go.set()
    assert store.writes == [True, False]
    assert [record.slots_full for record in store.mount_records()] == [False]


async def test_a_record_that_is_still_being_written_when_the_mount_ends_is_not_left_behind(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)
    async with trio.open_nursery() as nursery:
        report = FullReport(store, RECORD, lambda kind, text: None, nursery)
        report(True)
        await store.begun.wait()
        report.remove()
        report(False)
        store.go.set()
        nursery.cancel_scope.cancel()
    assert store.writes == [True]
    assert not store.mount_records()
