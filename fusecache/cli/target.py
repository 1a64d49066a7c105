"""What a command is about: a mount, or the images of a configuration.

Owns how the two are told apart, and how mounts are found. It must not know what is done to them.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

from fusecache.cli.failure import Failure
from fusecache.cli.mounted import Mounted
from fusecache.config.load import load_config
from fusecache.config.schema import Config
from fusecache.fuse.mounting import FSTYPE, find_mount, mounts

log = logging.getLogger(__name__)


def all_mounts() -> list[Mounted]:
    """Return the fusecache mounts that this process sees."""
    return [Mounted(path) for path in dict.fromkeys(entry.mountpoint for entry in mounts() if entry.fstype == FSTYPE)]


def mount_at(mountpoint: Path) -> Mounted:
    """Return the fusecache mount at *mountpoint*, without touching it.

    Raises:
        Failure: there is none.
    """
    entry = find_mount(mountpoint)
    if entry is None or entry.fstype != FSTYPE:
        found = "nothing mounted" if entry is None else f"a mount of type {entry.fstype}"
        raise Failure(f"{mountpoint}: found {found}, allowed: the mountpoint of a fusecache mount")
    return Mounted(entry.mountpoint)


def mount_or_config(target: Path) -> Mounted | Config:
    """Return the mount at *target*, or else the configuration in the file of that name.

    Raises:
        Failure: it is a directory that is not a mount.
        ConfigError: it is not a valid configuration.
    """
    if find_mount(target) is not None or target.is_dir():
        return mount_at(target)
    return load_config(target)


def holder_of(config: Config, image: str) -> Mounted | None:
    """Return the running mount of the same state directory that has the image open."""
    for mountpoint in _recorded_mountpoints(config.mount.state_dir):
        try:
            mount = mount_at(mountpoint)
            if mount.image_status(image)["open"]:
                return mount
        except Failure as failure:
            log.info("%s does not hold image %r: %s", mountpoint, image, failure.message)
    return None


def _recorded_mountpoints(state_dir: Path) -> Iterator[Path]:
    for record in sorted((state_dir / "mounts").glob("*.json")):
        try:
            yield Path(json.loads(record.read_bytes())["mountpoint"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s is passed over: %r", record, error)
