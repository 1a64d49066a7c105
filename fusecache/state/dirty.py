"""Which images this host left dirty.

Owns the walk over the manifests of a state directory. It must not know whether an image is still there.

Takes no lock: manifests are replaced atomically, so each is read whole, and what is found may change at any time.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fusecache.api.errors import CorruptState
from fusecache.api.identity import Identity
from fusecache.state.manifest import Manifest, decode

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DirtyImage:
    """One image that some process of this host made dirty, and none has made clean yet.

    Attributes:
        name: the image's name when its stack was opened last; it may have another by now, or be gone.
        manifest: says which layers are dirty.
        dirty_bytes: of each layer that had some when it was closed; None where it never was closed, or is open.
    """

    name: str
    manifest: Manifest
    dirty_bytes: Mapping[int, int] | None = None


def dirty_images(state_dir: Path) -> Iterator[DirtyImage]:
    """Yield the images whose manifest says that a layer is dirty, in no order. Blocks for a few system calls each.

    A manifest that cannot be read is logged and passed over: it is for whoever opens the image to refuse.
    """
    for path in (state_dir / "images").glob("*/manifest"):
        try:
            manifest = decode(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, CorruptState) as error:
            log.warning("%s is passed over: %s", path, error)
            continue
        if manifest.dirty:
            yield DirtyImage(_name_beside(path), manifest, _figures_beside(path))


def opened_elsewhere(state_dir: Path, identity: Identity) -> bool:
    """Say whether the process that opened the image's stack last is another one, and alive."""
    lock = state_dir / "images" / identity.digest / "lock"
    pid = _in_lock_file(lock, "pid")
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # As in fusecache.state.store: a later process of the same number began at another time.
    return int(stat.rpartition(")")[2].split()[19]) == _in_lock_file(lock, "start_time")


def _name_beside(manifest: Path) -> str:
    """Return the name that the lock file has; empty where it has none."""
    name = _in_lock_file(manifest.with_name("lock"), "image")
    return name if isinstance(name, str) else ""


def _figures_beside(manifest: Path) -> Mapping[int, int] | None:
    """Return what :meth:`fusecache.state.image_state.ImageState.write_dirty_bytes` noted; None where it did not."""
    try:
        noted = json.loads(manifest.with_name("dirty").read_bytes())
        return {int(index): int(dirty) for index, dirty in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _in_lock_file(path: Path, key: str) -> object:
    """Return what a lock file says; None where it says nothing."""
    try:
        return json.loads(path.read_bytes())[key]
    except (OSError, ValueError, TypeError, KeyError):
        return None
