"""Images opened at once on a machine without a machine-id made one each, over each other's temporary file: ENOENT."""

import threading
from pathlib import Path

import pytest

from fusecache.state import store
from fusecache.state.store import StateStore

THREADS = 8
ROUNDS = 20


def test_threads_that_make_the_machine_id_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_SYSTEM_MACHINE_ID", tmp_path / "none")
    for number in range(ROUNDS):
        state = StateStore(tmp_path / f"state-{number}")
        start = threading.Barrier(THREADS)
        found: list[str | OSError] = []

        def ask(
            state: StateStore = state, start: threading.Barrier = start, found: list[str | OSError] = found
        ) -> None:
            start.wait()
            try:
                found.append(state.host())
            except OSError as error:
                found.append(error)

        threads = [threading.Thread(target=ask) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == THREADS
        assert set(found) == {state.host()}
