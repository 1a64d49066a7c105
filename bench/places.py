"""Where the measured images live, and what each contestant gets to serve there.

Owns the images and the exact options of each contestant. It must not know what is measured.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from bench import fio
from bench.targets import PASSTHROUGH, Target, TargetMissing, fusecache, qemu_export
from bench.workloads import BARE, DIRECTORY, FUSECACHE, LIBRBD, PMEM, QEMU, QEMU_RBD, RBD, SSD

Start: TypeAlias = Callable[[str], AbstractContextManager[Target]]
"""Starts a contestant, by name."""
StartOnRbd: TypeAlias = Callable[..., AbstractContextManager[Target]]
"""The same, and takes the lines of fusecache's layer as well."""

_CHUNK: Final = 1 << 20
_POOL: Final = "rbd"
_IMAGE: Final = "disk"
_IMAGE_OF_FUSECACHE: Final = f"{_IMAGE}-{FUSECACHE}"
_CEPH: Final = Path(__file__).parents[1] / "scripts" / "ceph"


@contextmanager
def in_directory(directory: Path, mebibytes: int) -> Iterator[Start]:
    """Raw files: one that fusecache and qemu share, and one of the bare file's own, as O_DIRECT writes drop pages."""
    shared, bare = directory / "images" / _IMAGE, directory / "bare" / _IMAGE
    for raw in (shared, bare):
        raw.parent.mkdir()
        _fill(raw, mebibytes)
    settle = partial(_settle, shared)

    def start(name: str) -> AbstractContextManager[Target]:
        if name == FUSECACHE:
            backend = 'type = "directory"\npath = {}'
            place = json.dumps(str(shared.parent))
            return fusecache(directory / name, _IMAGE, backend.format(place), backend.format('"DIR"'), settle)
        if name == QEMU:
            node = "driver=file,filename={},cache.direct=off"
            return qemu_export(name, directory / name, node.format(shared), node.format("RAW"), settle)
        return _bare(bare)

    yield start


_LAYER: Final = """\
plugin = "rwl"
media = "{media}"
path = {path}
size = "{mebibytes}MiB"
max_dirty_age = "1h"
high_water = 0.95"""
_TMPFS: Final = Path("/dev/shm")


@contextmanager
def in_log(media: str, directory: Path, mebibytes: int) -> Iterator[Start]:
    """An image of a cluster under an rwl layer, and raw files on the disk for the others."""
    with in_rbd(directory, mebibytes) as start_on_rbd, tempfile.TemporaryDirectory(dir=_TMPFS) as tmpfs:
        pools = Path(tmpfs) if media == PMEM else directory / "pools"
        pools.mkdir(exist_ok=True)
        layer = _LAYER.format(media=media, path=json.dumps(str(pools)), mebibytes=4 * mebibytes)

        def start(name: str) -> AbstractContextManager[Target]:
            if name == FUSECACHE:
                return start_on_rbd(name, layer=layer)
            raw = directory / f"{name}.raw"
            _fill(raw, mebibytes)
            if name == QEMU:
                node = "driver=file,filename={},cache.direct=on"
                return qemu_export(name, directory / name, node.format(raw), node.format("RAW"))
            return _bare(raw)

        yield start


def _empty_log(mountpoint: Path, mebibytes: int, filled: bool) -> None:
    """Drop what the layer holds, and write all of the image where it is to be read from there."""
    (mountpoint / ".control" / "images" / _IMAGE_OF_FUSECACHE / "discard").write_text("0 dirty")
    if filled:
        _fill(mountpoint / _IMAGE_OF_FUSECACHE, mebibytes)


@contextmanager
def in_rbd(directory: Path, mebibytes: int) -> Iterator[StartOnRbd]:
    """Images of a one-node cluster that runs as long as the context; each contestant has one of its own.

    Raises:
        TargetMissing: Ceph is not installed, or does not start.
    """
    if shutil.which("ceph-osd") is None:
        raise TargetMissing("Ceph is not installed")
    cluster, raw = directory / "ceph", directory / "raw"
    _fill(raw, mebibytes)
    _ceph("start", cluster)
    try:
        # The cluster's own configuration, and librbd's cache off for those who leave it to that.
        conf = directory / "ceph.conf"
        conf.write_text((cluster / "ceph.conf").read_text() + "\n[client]\nrbd cache = false\n")
        yield partial(_start_on_rbd, directory, raw, conf)
    finally:
        _ceph("stop", cluster)


def _start_on_rbd(
    directory: Path, raw: Path, conf: Path, name: str, layer: str = PASSTHROUGH
) -> AbstractContextManager[Target]:
    environment = {"CEPH_CONF": str(conf)}
    image = f"{_IMAGE}-{name}"
    words = ["rbd", "import", "--no-progress", str(raw), f"{_POOL}/{image}"]
    subprocess.run(words, check=True, env={**os.environ, **environment})
    if name == FUSECACHE:
        backend = f'type = "rbd"\npool = "{_POOL}"\nconf = {{}}'
        own = directory / name
        empty = partial(_empty_log, own / "mnt", raw.stat().st_size >> 20) if layer != PASSTHROUGH else _leave
        environment = {"PMEM_IS_PMEM_FORCE": "1"}
        return fusecache(
            own, image, backend.format(json.dumps(str(conf))), backend.format('"CONF"'), empty, layer, environment
        )
    if name == QEMU_RBD:
        node = f"driver=rbd,pool={_POOL},image={image},conf={{}},cache.direct=on"
        return qemu_export(name, directory / name, node.format(conf), node.format("CONF"))
    return _librbd(image, environment)


@contextmanager
def _bare(raw: Path) -> Iterator[Target]:
    yield Target(BARE, fio.on_file(raw), "nothing is started", settle=partial(_settle, raw))


@contextmanager
def _librbd(image: str, environment: Mapping[str, str]) -> Iterator[Target]:
    yield Target(LIBRBD, fio.on_rbd(_POOL, image), "nothing is started", environment=environment)


def _ceph(verb: str, cluster: Path) -> None:
    done = subprocess.run([sys.executable, _CEPH, verb, cluster], capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetMissing(f"scripts/ceph {verb} ended with {done.returncode}: {done.stderr.strip()}")


def _fill(path: Path, mebibytes: int) -> None:
    chunk = os.urandom(_CHUNK)
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(chunk)
        os.fsync(file.fileno())


def _settle(raw: Path, filled: bool) -> None:
    """Write back what is dirty, and bring all of the file into the page cache."""
    with raw.open("rb") as file:
        os.fdatasync(file.fileno())
        while file.read(_CHUNK):
            pass


def _leave(filled: bool) -> None:
    pass


PLACES: Final[Mapping[str, Callable[[Path, int], AbstractContextManager[Start]]]] = {
    DIRECTORY: in_directory,
    RBD: in_rbd,
    PMEM: partial(in_log, PMEM),
    SSD: partial(in_log, SSD),
}
"""What makes images at each place: given an empty directory, and the images' size in MiB."""
