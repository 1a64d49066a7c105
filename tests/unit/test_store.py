"""The state directory: locks that end with their holder, files that change as a whole."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fusecache.api.errors import CorruptState, ImageBusy
from fusecache.api.identity import Identity
from fusecache.state import files as files_module
from fusecache.state import store as store_module
from fusecache.state.manifest import Manifest, ManifestLayer, encode
from fusecache.state.store import MountRecord, StateStore, boot_id, process_start_time

IDENTITY = Identity("directory:6f1c:12")
OLD = Manifest(identity=IDENTITY.text, epoch=1, host="0" * 32)
NEW = Manifest(identity=IDENTITY.text, epoch=1, host="0" * 32, layers=(ManifestLayer(index=0, plugin="p" * 10_000),))

HOLDER = """
import sys
from pathlib import Path
from fusecache.api.identity import Identity
from fusecache.state.store import StateStore
with StateStore(Path(sys.argv[1])).lock_image(Identity(sys.argv[2]), name="disk.img", mountpoint="/mnt/images"):
    print("locked", flush=True)
    sys.stdin.read()
"""


class Crash(BaseException):
    """Ends a call where a crash would: nothing handles it."""


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return StateStore(tmp_path / "deep" / "state")


def test_the_state_directory_is_made_private(store: StateStore) -> None:
    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None) as state:
        assert state.directory == store.directory / "images" / IDENTITY.digest
        state.write_manifest(OLD)
    paths = {path.relative_to(store.directory): path for path in store.directory.rglob("*")}
    assert {str(path) for path in paths} == {
        "images",
        "mounts",
        f"images/{IDENTITY.digest}",
        f"images/{IDENTITY.digest}/lock",
        f"images/{IDENTITY.digest}/manifest",
    }
    assert store.directory.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o077 for path in paths.values()} == {0}
    StateStore(store.directory)


def test_the_lock_names_its_holder(store: StateStore) -> None:
    with store.lock_image(IDENTITY, name="disk.img", mountpoint="/mnt/images") as state:
        assert json.loads((state.directory / "lock").read_bytes()) == {
            "pid": os.getpid(),
            "start_time": process_start_time(),
            "boot_id": boot_id(),
            "mountpoint": "/mnt/images",
            "identity": IDENTITY.text,
            "image": "disk.img",
        }
        with (
            pytest.raises(ImageBusy, match=rf"'other' is open in process {os.getpid()}, mounted at /mnt/images"),
            store.lock_image(IDENTITY, name="other", mountpoint=None),
        ):
            pass
    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None):  # noqa: SIM117
        with (
            pytest.raises(ImageBusy, match=r"without a mount"),
            store.lock_image(IDENTITY, name="disk.img", mountpoint=None),
        ):
            pass


def test_a_holder_that_has_not_said_who_it_is_holds_the_lock(store: StateStore) -> None:
    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None) as state:
        for content in (b"", b'{"pid": 7', b"[]", b'{"pid": 7}'):
            (state.directory / "lock").write_bytes(content)
            with (
                pytest.raises(ImageBusy, match="another process"),
                store.lock_image(IDENTITY, name="disk.img", mountpoint=None),
            ):
                pass


def test_images_are_locked_apart(store: StateStore) -> None:
    other = Identity("directory:6f1c:13")
    with (
        store.lock_image(IDENTITY, name="a", mountpoint=None) as one,
        store.lock_image(other, name="b", mountpoint=None) as two,
    ):
        assert one.directory != two.directory


def test_a_body_that_fails_gives_the_lock_up(store: StateStore) -> None:
    with pytest.raises(KeyError), store.lock_image(IDENTITY, name="disk.img", mountpoint=None):
        raise KeyError
    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None):
        pass


def test_a_killed_holder_leaves_the_lock_free(store: StateStore) -> None:
    command = [sys.executable, "-c", HOLDER, str(store.directory), IDENTITY.text]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with (
            pytest.raises(ImageBusy, match=rf"process {holder.pid}, mounted at /mnt/images"),
            store.lock_image(IDENTITY, name="disk.img", mountpoint=None),
        ):
            pass
        holder.kill()
        holder.wait()
        with store.lock_image(IDENTITY, name="disk.img", mountpoint=None):
            pass


def test_a_started_program_does_not_inherit_the_lock(store: StateStore) -> None:
    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None) as state:
        sleeper = subprocess.Popen(["sleep", "1000"], close_fds=False)
    try:
        with (state.directory / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_manifest_is_read_as_written(store: StateStore) -> None:
    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None) as state:
        assert state.read_manifest() is None
        for manifest in (OLD, NEW, OLD):
            state.write_manifest(manifest)
            assert state.read_manifest() == manifest


def test_a_manifest_of_another_image_is_refused_with_both_named(store: StateStore) -> None:
    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None) as state:
        (state.directory / "manifest").write_bytes(encode(OLD.model_copy(update={"identity": "directory:other:1"})))
        with pytest.raises(CorruptState, match=r"found the identity directory:other:1, allowed: directory:6f1c:12"):
            state.read_manifest()


def test_a_damaged_manifest_is_refused_with_its_path_and_kept(store: StateStore) -> None:
    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None) as state:
        path = state.directory / "manifest"
        path.write_bytes(b"")
        with pytest.raises(CorruptState, match=str(path)):
            state.read_manifest()
        assert path.read_bytes() == b""


# The calls a replacement is made of, in their order, each with what a crash right before it leaves behind.
STEPS = [("os.open", OLD), ("os.write", OLD), ("os.fsync", OLD), ("Path.rename", OLD), ("sync_directory", NEW)]


@pytest.mark.parametrize(("step", "left"), STEPS)
@pytest.mark.parametrize("failure", [Crash, OSError])
def test_a_crash_at_any_step_leaves_the_old_or_the_new_manifest(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, step: str, left: Manifest, failure: type[BaseException]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise failure

    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None) as state:
        state.write_manifest(OLD)
        with monkeypatch.context() as patch:
            patch.setattr(f"{files_module.__name__}.{step}", fail)
            with pytest.raises(failure):
                state.write_manifest(NEW)
        assert state.read_manifest() == left
    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None) as state:
        assert state.read_manifest() == left
        assert {path.name for path in state.directory.iterdir()} == {"lock", "manifest"}
        state.write_manifest(NEW)
        assert state.read_manifest() == NEW


def test_a_crash_in_mid_write_leaves_the_old_manifest(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def write_some(fd: int, data: memoryview) -> int:
        if len(data) < len(encode(NEW)):
            raise Crash
        return write(fd, data[:100])

    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None) as state:
        state.write_manifest(OLD)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_some)
            with pytest.raises(Crash):
                state.write_manifest(NEW)
        assert state.read_manifest() == OLD
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
        state.write_manifest(NEW)
        assert state.read_manifest() == NEW


def test_the_new_manifest_is_synced_before_it_takes_the_name(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    sync, rename = os.fsync, Path.rename

    def recorded_sync(fd: int) -> None:
        calls.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        sync(fd)

    def recorded_rename(path: Path, target: Path) -> Path:
        calls.append(f"rename {path.name} to {target.name}")
        return rename(path, target)

    with store.lock_image(IDENTITY, name="disk.img", mountpoint=None) as state:
        monkeypatch.setattr(os, "fsync", recorded_sync)
        monkeypatch.setattr(Path, "rename", recorded_rename)
        state.write_manifest(NEW)
    renamed = "rename manifest.new to manifest"
    assert calls == ["sync manifest.new", renamed, f"sync {IDENTITY.digest}", "sync images"]


class TestHost:
    """How the host is named."""

    @pytest.fixture
    def system(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = tmp_path / "system-machine-id"
        monkeypatch.setattr(store_module, "_SYSTEM_MACHINE_ID", path)
        return path

    def test_it_is_the_machine_id(self, store: StateStore, system: Path) -> None:
        system.write_text("0123456789abcdef0123456789abcdef\n")
        assert store.host() == "0123456789abcdef0123456789abcdef"
        assert not (store.directory / "machine-id").exists()

    @pytest.mark.parametrize("content", [None, "", "\n", "uninitialized\n"])
    def test_without_one_it_is_made_and_stays(self, store: StateStore, system: Path, content: str | None) -> None:
        if content is not None:
            system.write_text(content)
        made = store.host()
        assert len(made) == 32
        assert [path.name for path in store.directory.iterdir() if path.is_file()] == ["machine-id"]
        system.write_text("f" * 32)
        assert StateStore(store.directory).host() == made

    def test_of_two_makers_the_first_wins(
        self, store: StateStore, system: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own, link = store.directory / "machine-id", os.link

        def overtaken(source: Path, target: Path) -> None:
            own.write_text("a" * 32)
            link(source, target)

        monkeypatch.setattr(os, "link", overtaken)
        assert store.host() == "a" * 32

    def test_a_damaged_one_is_refused(self, store: StateStore, system: Path) -> None:
        (store.directory / "machine-id").write_text("localhost\n")
        with pytest.raises(CorruptState, match="found 'localhost', allowed: 32"):
            store.host()


class TestMountRecords:
    """The records of this host's mounts."""

    @staticmethod
    def record(mountpoint: str) -> MountRecord:
        return MountRecord(mountpoint, os.getpid(), "/etc/fusecache.toml", 1.5, "directory:/images")

    def test_a_record_is_found_until_it_is_removed(self, store: StateStore) -> None:
        one, two = self.record("/mnt/a"), self.record("/mnt/\udcff")
        for record in (one, two, one):
            store.write_mount_record(record)
        assert {record.mountpoint: record for record in store.mount_records()} == {"/mnt/a": one, "/mnt/\udcff": two}
        assert store.mount_record_path("/mnt/a").name == "f72353b3dcd8f57a.json"
        store.remove_mount_record("/mnt/a")
        store.remove_mount_record("/mnt/a")
        assert store.mount_records() == [two]

    def test_unreadable_ones_are_skipped_and_logged(self, store: StateStore, caplog: pytest.LogCaptureFixture) -> None:
        store.write_mount_record(self.record("/mnt/a"))
        for name, content in (("b", b"{"), ("c", b"[]"), ("d", b"{}"), ("e", b"\xff"), ("f", b'"text"')):
            (store.directory / "mounts" / f"{name}.json").write_bytes(content)
        (store.directory / "mounts" / "g.json").mkdir()
        assert store.mount_records() == [self.record("/mnt/a")]
        assert len(caplog.records) == 6


def test_the_start_time_is_this_process_s() -> None:
    since_boot = process_start_time() / os.sysconf("SC_CLK_TCK")
    assert 0 <= time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot < 24 * 3600
