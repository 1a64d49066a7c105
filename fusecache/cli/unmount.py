"""``fusecache unmount``."""

import errno
import os
import select
from pathlib import Path
from typing import Final

import click

from fusecache.cli.failure import Failure
from fusecache.cli.mounted import Mounted, NotAnswering
from fusecache.cli.target import mount_at
from fusecache.fuse import mounting

_GONE_WITHIN: Final = 15.0


@click.command("unmount")
@click.argument("mountpoint", type=Path)
@click.option(
    "--drain/--keep",
    default=True,
    help="Write everything back first (default), or keep dirty data in the persistent layers for the next mount.",
)
def command(mountpoint: Path, drain: bool) -> None:
    """Unmount MOUNTPOINT and wait for its daemon to end.

    While files are open, and where write-back fails, the mount stays.
    """
    mount = mount_at(mountpoint)
    pid = _pid_of(mount)
    if pid is None:
        mounting.unmount(mount.mountpoint, lazy=True)
        click.echo(f"{mount.mountpoint}: its daemon was gone; detached", err=True)
        return
    pidfd = os.pidfd_open(pid)
    try:
        if drain:
            mount.flush(None, None)
        _detach(mount.mountpoint)
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        if not ended.poll(_GONE_WITHIN * 1000):
            raise Failure(f"{mount.mountpoint}: unmounted, but process {pid} did not end in {_GONE_WITHIN:g} s")
    finally:
        os.close(pidfd)


def _pid_of(mount: Mounted) -> int | None:
    """Return the daemon's process id; None where the daemon is gone."""
    try:
        return int(mount.status()["pid"])
    except NotAnswering:
        raise
    except Failure:
        if not mounting.is_stale(mount.mountpoint):
            raise
        return None


def _detach(mountpoint: Path) -> None:
    try:
        mounting.unmount(mountpoint)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Failure(
                f"{mountpoint}: files are open or it is somebody's working directory; still mounted"
            ) from None
        raise
