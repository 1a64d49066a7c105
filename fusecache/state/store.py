"""The state directory: who has an image's stack open, its manifest, and which mounts there are.

Owns the layout below ``state_dir``, the lock of each image, and the atomic replacement of durable files. It must not
know what a manifest means.

Layout, every directory 0700 and every file 0600::

    state_dir/machine-id                    only where the system has none
    state_dir/images/<identity digest>/     private to the image; layers keep small state here too
        lock                                flock'ed by whoever has the stack open
        manifest                            see fusecache.state.manifest
    state_dir/mounts/<digest>.json          one record for each mount

All functions block, for no longer than a few system calls; only those that write something durable wait for a device.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from fusecache.api.errors import CorruptState, ImageBusy
from fusecache.api.identity import Identity
from fusecache.state.manifest import Manifest, decode, encode

log = logging.getLogger(__name__)

Record = TypeVar("Record")

_SYSTEM_MACHINE_ID: Final = Path("/etc/machine-id")
_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")
_TEMPORARY: Final = ".new"


@dataclass(frozen=True, slots=True)
class LockRecord:
    """Who holds an image's lock; as JSON in the lock file. It means nothing once the lock is free.

    Attributes:
        pid: the process.
        start_time: when the process began, in clock ticks since the boot; with *boot_id* it tells a process from a
            later one of the same number.
        boot_id: the kernel's id of this boot.
        mountpoint: where the image is mounted; None for an offline command.
        identity: the image's identity text.
        image: the image's name.
    """

    pid: int
    start_time: int
    boot_id: str
    mountpoint: str | None
    identity: str
    image: str


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One mount of this host; as JSON in ``mounts/``.

    Attributes:
        mountpoint: absolute path.
        pid: the serving process.
        config: absolute path of the configuration.
        started: seconds since the epoch.
        backend: the backend's description.
        slots_full: all request slots are taken; the mount reads no requests until one is answered.
    """

    mountpoint: str
    pid: int
    config: str
    started: float
    backend: str
    slots_full: bool = False


class ImageState:
    """The durable state of one image; valid only while its lock is held.

    Attributes:
        identity: the image's.
        directory: the image's private directory.
    """

    def __init__(self, identity: Identity, directory: Path) -> None:
        self.identity = identity
        self.directory = directory
        self._manifest = directory / "manifest"

    def read_manifest(self) -> Manifest | None:
        """Return the manifest; None where there is none.

        Raises:
            CorruptState: it does not parse, or is another image's.
        """
        try:
            data = self._manifest.read_bytes()
        except FileNotFoundError:
            return None
        try:
            manifest = decode(data)
        except CorruptState as error:
            raise CorruptState(f"{self._manifest}: {error}") from error
        if manifest.identity != self.identity.text:
            raise CorruptState(f"{self._manifest}: found the identity {manifest.identity}, allowed: {self.identity}")
        return manifest

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest, atomically; it is durable when this returns.

        A crash leaves the old manifest, or the new one, whole: see :func:`replace_file`. After an error either may be
        there, and the new one may not be durable.
        """
        assert manifest.identity == self.identity.text, "a manifest is written for its own image only"
        replace_file(self._manifest, encode(manifest))
        # The directory itself may be as new as the file.
        _sync_directory(self.directory.parent)

    def remove_leftovers(self) -> None:
        """Remove what a crash left of a manifest that was being written."""
        _temporary(self._manifest).unlink(missing_ok=True)


class StateStore:
    """One host's state directory, shared by all its mounts; created where missing.

    Args:
        state_dir: its path.

    Raises:
        OSError: it cannot be created.
    """

    def __init__(self, state_dir: Path) -> None:
        self.directory = state_dir
        self._images = state_dir / "images"
        self._mounts = state_dir / "mounts"
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self._images, self._mounts):
            directory.mkdir(mode=0o700, exist_ok=True)
        _sync_directory(state_dir)

    def host(self) -> str:
        """Return what names this host in durable records: its machine-id, 32 lower-case hexadecimal digits.

        Where the system has none (``/etc/machine-id`` is missing, empty or ``uninitialized``) one is made and kept in
        the state directory; it then stays in force.

        Raises:
            CorruptState: the kept one is not a machine-id.
        """
        own = self.directory / "machine-id"
        if not own.exists():
            system = _read_text(_SYSTEM_MACHINE_ID)
            if _MACHINE_ID.fullmatch(system):
                return system
            _create_file(own, f"{uuid.uuid4().hex}\n".encode())
        kept = _read_text(own)
        if not _MACHINE_ID.fullmatch(kept):
            raise CorruptState(f"{own}: found {kept!r}, allowed: 32 lower-case hexadecimal digits")
        return kept

    @contextmanager
    def lock_image(self, identity: Identity, *, name: str, mountpoint: str | None) -> Iterator[ImageState]:
        """Hold the right to open the stack of one image, against every process of this host.

        Neither taking nor releasing the lock waits for anything. The kernel releases it when the process ends, however
        it ends, so a free lock is the proof that the process which held it is gone. It does not pass to programs that
        the process starts.

        Args:
            identity: the image's.
            name: the image's, for messages.
            mountpoint: where it is mounted; None for an offline command.

        Raises:
            ImageBusy: another holder has it; the message names its process and mountpoint.
        """
        directory = self._images / identity.digest
        directory.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ImageBusy(f"image {name!r} is open in {_describe_holder(fd)}") from None
            os.ftruncate(fd, 0)
            record = LockRecord(os.getpid(), process_start_time(), boot_id(), mountpoint, identity.text, name)
            os.pwrite(fd, _to_json(record), 0)
            state = ImageState(identity, directory)
            state.remove_leftovers()
            yield state
        finally:
            os.close(fd)

    def mount_record_path(self, mountpoint: str) -> Path:
        """Return where the record of the mount at *mountpoint*, an absolute path, is kept."""
        return self._mounts / f"{hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]}.json"

    def write_mount_record(self, record: MountRecord) -> None:
        """Keep *record*, in place of an earlier one of the same mountpoint; atomic and durable."""
        replace_file(self.mount_record_path(record.mountpoint), _to_json(record))

    def remove_mount_record(self, mountpoint: str) -> None:
        """Forget the mount at *mountpoint*; nothing happens where there is no record."""
        self.mount_record_path(mountpoint).unlink(missing_ok=True)

    def mount_records(self) -> Sequence[MountRecord]:
        """Return the records of all mounts, whether they still serve or not; unreadable ones are logged and skipped."""
        records = []
        for path in sorted(self._mounts.glob("*.json")):
            try:
                records.append(_from_json(MountRecord, path.read_bytes()))
            except (OSError, ValueError) as error:
                log.warning("%s is skipped: %s", path, error)
        return records


def replace_file(path: Path, data: bytes) -> None:
    """Replace or create the file at *path*, atomically; it is durable when this returns. One writer at a time.

    Steps, and what a crash after each leaves at *path*:

    1. create or empty the temporary file beside it: the old content;
    2. write the new content there: the old content;
    3. fsync it: the old content;
    4. rename it to *path*: the new content, or after loss of power perhaps the old;
    5. fsync the directory: the new content.

    A crash after steps 1 to 3 leaves the temporary file; the next call overwrites it.

    Raises:
        OSError: of the step that failed, which leaves what a crash before it leaves.
    """
    temporary = _temporary(path)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    temporary.rename(path)
    _sync_directory(path.parent)


def process_start_time() -> int:
    """Return when this process began, in clock ticks since the boot (proc(5), ``/proc/pid/stat`` field 22)."""
    # The second field, the program's name in parentheses, may hold blanks and parentheses itself.
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


def boot_id() -> str:
    """Return the kernel's id of this boot (random(4))."""
    return _read_text(Path("/proc/sys/kernel/random/boot_id"))


def _describe_holder(fd: int) -> str:
    try:
        holder = _from_json(LockRecord, os.pread(fd, 1 << 16, 0))
    except ValueError:
        # The holder has the lock, and has not yet written who it is.
        return "another process, which is just opening it"
    return f"process {holder.pid}, {f'mounted at {holder.mountpoint}' if holder.mountpoint else 'without a mount'}"


def _to_json(record: Any) -> bytes:
    return json.dumps(asdict(record)).encode() + b"\n"


def _from_json(kind: type[Record], data: bytes) -> Record:
    """Raises ValueError where *data* is no record of that kind."""
    try:
        return kind(**json.loads(data))
    except TypeError as error:
        raise ValueError(f"no {kind.__name__}: {error}") from error


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + _TEMPORARY)


def _create_file(path: Path, data: bytes) -> None:
    """Create the file at *path*, durably; of several who do so at once, one wins and the others change nothing."""
    temporary = path.with_name(f"{path.name}.{threading.get_native_id()}{_TEMPORARY}")
    replace_file(temporary, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        log.info("%s was made by another process at the same time", path)
    finally:
        temporary.unlink()
    _sync_directory(path.parent)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read_text(path: Path) -> str:
    """Return a small file's text without surrounding blanks; empty where there is no such file."""
    try:
        return path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""
