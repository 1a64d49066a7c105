"""A mount under load ended because the disk of its state directory was full.

All request slots were taken, and that could not be written to the mount's record.
"""

import logging
import shutil
from pathlib import Path

import pytest

from fusecache.mount import _report_full
from fusecache.state.store import MountRecord, StateStore


@pytest.mark.parametrize("full", [True, False])
def test_a_record_that_cannot_be_written_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, full: bool
) -> None:
    store = StateStore(tmp_path)
    shutil.rmtree(tmp_path / "mounts")
    record = MountRecord("/mnt", pid=1, config="/etc/config.toml", started=0.0, backend="directory:/images")
    with caplog.at_level(logging.WARNING):
        _report_full(store, record, lambda kind, text: None, full)
    assert "the mount's record is not up to date" in caplog.text
