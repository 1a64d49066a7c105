"""The state directory: who has an image's stack open, its manifest, and which mounts there are.

Owns the layout below ``state_dir``, and the lock of each image. It must not know what a manifest means.

Layout, every directory 0700 and every file 0600::

    state_dir/machine-id                    only where the system has none
    state_dir/images/<identity digest>/     private to the image; layers keep small state here too
        lock                                flock'ed by whoever has the stack open
        clients                             who may hold the backend's lock on the image; see ImageState
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
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from fusecache.api.errors import CorruptState, ImageBusy
from fusecache.api.identity import Identity
from fusecache.state.files import create_file, read_text, replace_file, sync_directory
from fusecache.state.image_state import ImageState

log = logging.getLogger(__name__)

Record = TypeVar("Record")

_SYSTEM_MACHINE_ID: Final = Path("/etc/machine-id")
_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")


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
        sync_directory(state_dir)

    def host(self) -> str:
        """Return what names this host in durable records: its machine-id, 32 lower-case hexadecimal digits.

        Where the system has none (``/etc/machine-id`` is missing, empty or ``uninitialized``) one is made and kept in
        the state directory; it then stays in force.

        Raises:
            CorruptState: the kept one is not a machine-id.
        """
        own = self.directory / "machine-id"
        if not own.exists():
            system = read_text(_SYSTEM_MACHINE_ID)
            if _MACHINE_ID.fullmatch(system):
                return system
            create_file(own, f"{uuid.uuid4().hex}\n".encode())
        kept = read_text(own)
        if not _MACHINE_ID.fullmatch(kept):
            raise CorruptState(f"{own}: found {kept!r}, allowed: 32 lower-case hexadecimal digits")
        return kept

    def lock_image(self, identity: Identity, *, name: str, mountpoint: str | None, client: str = "") -> ImageState:
        """Take the right to open the stack of one image, against every process of this host.

        Taking the lock waits for nobody. The kernel frees it when the process ends, however it ends, so a free lock
        is the proof that the process which held it is gone. It does not pass to programs that the process starts.

        Args:
            identity: the image's.
            name: the image's, for messages.
            mountpoint: where it is mounted; None for an offline command.
            client: see :meth:`ImageState.note_client`.

        Returns:
            What is held until :meth:`ImageState.release`; also a context manager that releases it in the end.

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
            state = ImageState(identity, directory, fd, name)
            state.remove_leftovers()
        except BaseException:
            os.close(fd)
            raise
        try:
            state.note_client(client)
        except BaseException:
            state.release()
            raise
        return state

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


def process_start_time() -> int:
    """Return when this process began, in clock ticks since the boot (proc(5), ``/proc/pid/stat`` field 22)."""
    # The second field, the program's name in parentheses, may hold blanks and parentheses itself.
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


def boot_id() -> str:
    """Return the kernel's id of this boot (random(4))."""
    return read_text(Path("/proc/sys/kernel/random/boot_id"))


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
