"""Mounting and unmounting: from a mountpoint to a FUSE descriptor, and back.

Owns mount(2) as root, fusermount3 for everybody else, and what is found at a mountpoint. It must not know what is
served.
"""

import array
import ctypes
import errno
import os
import re
import socket
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FSTYPE: Final = "fuse.fusecache"
SOURCE: Final = "fusecache"
_MS_NOSUID: Final = 2
_MS_NODEV: Final = 4
_UMOUNT_NOFOLLOW: Final = 8
_MNT_DETACH: Final = 2
_MAX_READ: Final = 1 << 20
_MOST_LINKS: Final = 40
"""Links that lead to links; as many as the kernel follows."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of ``/proc/self/mountinfo``."""

    mountpoint: Path
    fstype: str
    source: str


def mounts() -> list[MountEntry]:
    """Return all mounts this process sees, later ones over earlier ones."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())


def parse_mountinfo(content: bytes) -> list[MountEntry]:
    """Return the entries of a file in the format of proc_pid_mountinfo(5)."""
    entries = []
    # Only a newline ends a line: other separators stand in names as they are.
    for line in os.fsdecode(content).removesuffix("\n").split("\n"):
        fields, _, tail = line.partition(" - ")
        fstype, source = tail.split(" ")[:2]
        entries.append(MountEntry(Path(_unescape(fields.split(" ")[4])), fstype, _unescape(source)))
    return entries


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def find_mount(path: Path) -> MountEntry | None:
    """Return what is mounted exactly at *path*, or where that leads as a symbolic link, without touching it; None where
    nothing is."""
    path = _absolute(path)
    found = [entry for entry in mounts() if entry.mountpoint == path]
    return found[-1] if found else None


def _absolute(path: Path) -> Path:
    # The last component may be a mount whose server does not answer: it is only asked whether it is a link, which the
    # kernel knows by itself.
    for _ in range(_MOST_LINKS):
        path = Path(os.path.normpath(Path.cwd() / path))
        path = path.parent.resolve() / path.name
        try:
            path = path.parent / path.readlink()
        except OSError:
            break
    return path


def is_stale(path: Path) -> bool:
    """Say whether *path* is a mount whose server is gone. Waits for a server that is there."""
    try:
        # Not stat(): the kernel may answer that from attributes it keeps.
        os.statvfs(path)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def prepare(path: Path) -> Path:
    """Make sure that *path* can be mounted on, and return it in full; a stale mount of ours there is detached.

    Raises:
        OSError: there is something else, or it is not an empty directory; the message says what was found.
    """
    path = _absolute(path)
    while (entry := find_mount(path)) is not None:
        if entry.fstype != FSTYPE:
            raise OSError(errno.EBUSY, f"{path}: found a mount of type {entry.fstype}, allowed: an empty directory")
        if not is_stale(path):
            raise OSError(
                errno.EBUSY, f"{path}: found a mount of fusecache that is being served, allowed: an empty directory"
            )
        unmount(path, lazy=True)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise OSError(errno.ENOENT, f"{path}: found nothing, allowed: an empty directory") from None
    if not stat.S_ISDIR(mode):
        raise OSError(errno.ENOTDIR, f"{path}: found a file, allowed: an empty directory")
    if any(path.iterdir()):
        raise OSError(errno.ENOTEMPTY, f"{path}: found a directory with files in it, allowed: an empty directory")
    return path


def mount(path: Path, *, allow_other: bool) -> int:
    """Mount at *path* and return the FUSE descriptor, non-blocking and not inherited.

    Raises:
        OSError: the system refused; the message says why.
    """
    fd = _mount_as_root(path, allow_other) if os.geteuid() == 0 else _mount_by_helper(path, allow_other)
    os.set_blocking(fd, False)
    return fd


def _mount_as_root(path: Path, allow_other: bool) -> int:
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={_MAX_READ}"
    if allow_other:
        options += ",allow_other"
    result = _libc.mount(SOURCE.encode(), os.fsencode(path), FSTYPE.encode(), _MS_NOSUID | _MS_NODEV, options.encode())
    if result:
        number = ctypes.get_errno()
        os.close(fd)
        raise OSError(number, f"mount on {path}: {os.strerror(number)}")
    return fd


def _mount_by_helper(path: Path, allow_other: bool) -> int:
    options = f"rw,nosuid,nodev,default_permissions,fsname={SOURCE},subtype=fusecache,max_read={_MAX_READ}"
    if allow_other:
        options += ",allow_other"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        try:
            helper = subprocess.run(
                ["fusermount3", "-o", options, "--", os.fspath(path)],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise OSError(errno.ENOENT, "fusermount3 is not installed; mounting without being root needs it") from None
        if helper.returncode:
            raise OSError(errno.EPERM, f"mount on {path}: {helper.stderr.strip() or 'fusermount3 failed'}")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_LEN(4), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return array.array("i", data)[0]
    raise OSError(errno.EIO, f"mount on {path}: fusermount3 sent no descriptor")


def unmount(path: Path, *, lazy: bool = False) -> None:
    """Unmount what is at *path*; with *lazy*, even while it is used: it disappears from view and ends with its last
    user.

    Raises:
        OSError: EBUSY while it is used; EINVAL where nothing is mounted.
    """
    path = _absolute(path)
    if os.geteuid() == 0:
        if _libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)):
            number = ctypes.get_errno()
            raise OSError(number, f"unmount {path}: {os.strerror(number)}")
        return
    if find_mount(path) is None:
        raise OSError(errno.EINVAL, f"unmount {path}: nothing is mounted there")
    arguments = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fspath(path)]
    helper = subprocess.run(arguments, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if helper.returncode:
        busy = "busy" in helper.stderr
        raise OSError(errno.EBUSY if busy else errno.EPERM, f"unmount {path}: {helper.stderr.strip()}")
