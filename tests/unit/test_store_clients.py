"""The record of clients: it names whoever of this host may hold a backend's lock, and whoever it names is gone."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fusecache.api.errors import ImageBusy
from fusecache.api.identity import Identity
from fusecache.state import files as files_module
from fusecache.state.image_state import ImageState
from fusecache.state.store import StateStore

IDENTITY = Identity("rbd:fsid:1::abc")

HOLDER = """
import sys
from pathlib import Path
from fusecache.api.identity import Identity
from fusecache.state.store import StateStore
store = StateStore(Path(sys.argv[1]))
state = store.lock_image(Identity(sys.argv[2]), name="disk", mountpoint=None, client=sys.argv[3])
if sys.argv[4] == "settled":
    state.settle()
print(*state.former, flush=True)
sys.stdin.read()
"""


class Crash(BaseException):
    """Ends a call where a kill would: nothing handles it."""


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path)


def lock(store: StateStore, client: str) -> ImageState:
    return store.lock_image(IDENTITY, name="disk", mountpoint=None, client=client)


def kill(state: ImageState) -> None:
    """Leave what a killed process leaves: its files as they are, and the lock free."""
    os.close(state._fd)
    state._fd = -1


def noted(store: StateStore) -> list[str]:
    path = store.directory / "images" / IDENTITY.digest / "clients"
    return path.read_text().splitlines() if path.exists() else []


def test_the_first_holder_has_nobody_before_it(store: StateStore) -> None:
    with lock(store, "10.0.0.1:0/1") as state:
        assert state.former == ()
        assert (state.directory / "clients").read_bytes() == b"10.0.0.1:0/1\n"
        assert (state.directory / "clients").stat().st_mode & 0o777 == 0o600
        state.settle()
    assert noted(store) == []


def test_where_there_are_no_clients_nothing_is_written(store: StateStore) -> None:
    with lock(store, "") as state:
        state.settle()
        assert [path.name for path in state.directory.iterdir()] == ["lock"]


def settled_and_released(state: ImageState) -> None:
    state.settle()
    state.release()


# What each step of the table in ImageState leaves, after a process that was killed as client F.
STEPS: list[tuple[str, Callable[[ImageState], None], list[str]]] = [
    ("noted", lambda state: None, ["F", "C"]),
    ("settled", ImageState.settle, ["C"]),
    ("released", settled_and_released, []),
    ("given up", ImageState.release, ["F"]),
]


@pytest.mark.parametrize(("step", "left"), [step[1:] for step in STEPS], ids=[step[0] for step in STEPS])
def test_a_kill_after_any_step_leaves_all_that_may_hold_the_lock(
    store: StateStore, step: Callable[[ImageState], None], left: list[str]
) -> None:
    kill(lock(store, "F"))
    state = lock(store, "C")
    assert state.former == ("F",)
    step(state)
    if state._fd >= 0:
        kill(state)
    assert noted(store) == left
    with lock(store, "D") as state:
        assert list(state.former) == left
        assert noted(store) == [*left, "D"]
        state.settle()
        assert noted(store) == ["D"]
    assert noted(store) == []


@pytest.mark.parametrize(("step", "left"), [("os.open", ["F"]), ("os.write", ["F"]), ("os.fsync", ["F"])])
def test_a_kill_in_the_middle_of_noting_leaves_the_former_clients(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, step: str, left: list[str]
) -> None:
    def crash(*args: object, **kwargs: object) -> None:
        raise Crash

    kill(lock(store, "F"))
    state = store.lock_image(IDENTITY, name="disk", mountpoint=None)
    with monkeypatch.context() as patch:
        patch.setattr(f"{files_module.__name__}.{step}", crash)
        with pytest.raises(Crash):
            state.note_client("C")
    kill(state)
    assert noted(store) == left


def test_a_note_is_durable_before_the_lock_is_handed_out(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def recorded(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        sync(fd)

    monkeypatch.setattr(os, "fsync", recorded)
    with lock(store, "C"):
        assert synced == ["clients.new", IDENTITY.digest, "images"]


def test_a_failed_note_is_taken_back(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(lock(store, "F"))
    failures = [OSError("no room")]
    sync = files_module.sync_directory

    def fail_once(path: Path) -> None:
        if failures:
            raise failures.pop()
        sync(path)

    monkeypatch.setattr(files_module, "sync_directory", fail_once)
    with pytest.raises(OSError, match="no room"):
        lock(store, "C")
    assert noted(store) == ["F"]
    with lock(store, "D") as state:
        assert state.former == ("F",)


def test_an_image_stays_locked_whose_living_client_stays_on_record(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = lock(store, "C")
    fd = state._fd

    def fail(path: Path, missing_ok: bool) -> None:
        raise OSError("read-only")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        state.release()
    try:
        assert "'disk' stays locked" in caplog.text
        with pytest.raises(ImageBusy):
            lock(store, "D")
    finally:
        os.close(fd)
    with lock(store, "D") as state:
        assert state.former == ("C",)


def test_a_client_is_never_its_own_predecessor(store: StateStore) -> None:
    kill(lock(store, "C"))
    with lock(store, "C") as state:
        assert state.former == ()


def test_a_damaged_record_proves_nothing(store: StateStore) -> None:
    kill(lock(store, "10.0.0.1:0/1"))
    (store.directory / "images" / IDENTITY.digest / "clients").write_bytes(b"10.0.\xff.1:0/1\n\0")
    with lock(store, "C") as state:
        assert state.former == ()


@pytest.mark.parametrize(("how", "left"), [("noted", ["F", "C"]), ("settled", ["C"])])
def test_a_killed_process_is_proven_gone(store: StateStore, how: str, left: list[str]) -> None:
    kill(lock(store, "F"))
    command = [sys.executable, "-c", HOLDER, str(store.directory), IDENTITY.text, "C", how]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == (b"\n" if how == "settled" else b"F\n")
        with pytest.raises(ImageBusy, match=f"process {holder.pid}"):
            lock(store, "D")
        assert noted(store) == left
        holder.kill()
        holder.wait()
    with lock(store, "D") as state:
        assert list(state.former) == left
