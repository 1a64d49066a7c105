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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from bench import fio
from bench.targets import Setup, Target, TargetMissing, fusecache, qemu_export
from bench.workloads import (
    BARE,
    COST,
    DIRECTORY,
    FULL,
    FUSECACHE,
    GROUPED,
    LIBRBD,
    ON_SSD,
    PMEM,
    QEMU,
    QEMU_RBD,
    QEMU_TMPFS,
    RBD,
    SSD,
    STRICT,
    TIMED,
    TIMED_ON_SSD,
    WRITEBACK,
    Before,
)

Start: TypeAlias = Callable[[str], AbstractContextManager[Target]]
"""Starts a contestant, by name."""
StartOnRbd: TypeAlias = Callable[..., AbstractContextManager[Target]]
"""The same; where fusecache is to have a log, takes that as well, and the directories of pools by media."""

_CHUNK: Final = 1 << 20
_POOL: Final = "rbd"
_IMAGE: Final = "disk"
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
            setup = Setup(backend.format(json.dumps(str(shared.parent))), backend.format('"DIR"'))
            return fusecache(directory / name, _IMAGE, setup, settle)
        if name == QEMU:
            node = "driver=file,filename={},cache.direct=off"
            return qemu_export(name, directory / name, node.format(shared), node.format("RAW"), settle)
        return _bare(bare)

    yield start


@dataclass(frozen=True, slots=True)
class Log:
    """An rwl layer under measurement.

    Attributes:
        media: of the layer's config.
        mebibytes: of its pool; 0 is four times the image, so that nothing is written back meanwhile.
        more: further lines of its table.
        pinned, timed: see :class:`Setup`.
    """

    media: str
    mebibytes: int = 0
    more: str = "high_water = 0.95"
    pinned: bool = False
    timed: bool = False


_PAUSED: Final = 'writeback_rate = "0"'
_LOGS: Final[Mapping[tuple[str, str], Log]] = {
    (PMEM, FUSECACHE): Log(PMEM),
    (SSD, FUSECACHE): Log(SSD),
    (FULL, FUSECACHE): Log(SSD, 64, ""),
    (WRITEBACK, FUSECACHE): Log(SSD, 64, f'order = "strict"\n{_PAUSED}'),
    (GROUPED, FUSECACHE): Log(SSD, 64, f'order = "grouped"\n{_PAUSED}'),
    (GROUPED, STRICT): Log(SSD, 64, f'order = "strict"\n{_PAUSED}'),
    (COST, FUSECACHE): Log(PMEM, pinned=True),
    (COST, ON_SSD): Log(SSD, pinned=True),
    (COST, TIMED): Log(PMEM, pinned=True, timed=True),
    (COST, TIMED_ON_SSD): Log(SSD, pinned=True, timed=True),
}
_LAYER: Final = """\
plugin = "rwl"
media = "{media}"
path = {path}
size = "{mebibytes}MiB"
max_dirty_age = "1h"
{more}"""
_TMPFS: Final = Path("/dev/shm")


@contextmanager
def in_log(place: str, directory: Path, mebibytes: int) -> Iterator[Start]:
    """Images of a cluster, under an rwl layer for fusecache, and raw files for those who need none."""
    with in_rbd(directory, mebibytes) as start_on_rbd, tempfile.TemporaryDirectory(dir=_TMPFS) as tmpfs:
        pools = {PMEM: Path(tmpfs), SSD: directory / "pools"}
        pools[SSD].mkdir()

        def start(name: str) -> AbstractContextManager[Target]:
            if (place, name) in _LOGS:
                return start_on_rbd(name, log=_LOGS[place, name], pools=pools)
            if name == LIBRBD:
                return start_on_rbd(name)
            raw = (Path(tmpfs) if name == QEMU_TMPFS else directory) / f"{name}.raw"
            _fill(raw, mebibytes)
            if name == BARE:
                return _bare(raw)
            # On tmpfs the page cache is the medium, and before Linux 6.6 it refuses to go past it.
            node = f"driver=file,filename={{}},cache.direct={'off' if name == QEMU_TMPFS else 'on'}"
            return qemu_export(name, directory / name, node.format(raw), node.format("RAW"))

        yield start


def _layer(log: Log, pools: Mapping[str, Path], mebibytes: int) -> str:
    path = json.dumps(str(pools[log.media]))
    return _LAYER.format(media=log.media, path=path, mebibytes=log.mebibytes or 4 * mebibytes, more=log.more)


def _empty_log(mountpoint: Path, image: str, mebibytes: int, before: Before) -> None:
    """Drop what the layer holds, and write all of the image where it is to be read from there."""
    (mountpoint / ".control" / "images" / image / "discard").write_text("0 dirty")
    if before is Before.IMAGE:
        _fill(mountpoint / image, mebibytes)


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
    directory: Path, raw: Path, conf: Path, name: str, log: Log | None = None, pools: Mapping[str, Path] | None = None
) -> AbstractContextManager[Target]:
    environment = {"CEPH_CONF": str(conf)}
    image = f"{_IMAGE}-{name}"
    words = ["rbd", "import", "--no-progress", str(raw), f"{_POOL}/{image}"]
    subprocess.run(words, check=True, env={**os.environ, **environment})
    if name == QEMU_RBD:
        node = f"driver=rbd,pool={_POOL},image={image},conf={{}},cache.direct=on"
        return qemu_export(name, directory / name, node.format(conf), node.format("CONF"))
    if name == LIBRBD:
        return _librbd(image, environment)
    backend = f'type = "rbd"\npool = "{_POOL}"\nconf = {{}}'
    setup = Setup(backend.format(json.dumps(str(conf))), backend.format('"CONF"'))
    if log is None or pools is None:
        return fusecache(directory / name, image, setup, name=name)
    mebibytes = raw.stat().st_size >> 20
    setup = replace(
        setup,
        layer=_layer(log, pools, mebibytes),
        environment={"PMEM_IS_PMEM_FORCE": "1"},
        pinned=log.pinned,
        timed=log.timed,
    )
    empty = partial(_empty_log, directory / name / "mnt", image, mebibytes)
    return fusecache(directory / name, image, setup, empty, name)


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


def _settle(raw: Path, before: Before) -> None:
    """Write back what is dirty, and bring all of the file into the page cache."""
    with raw.open("rb") as file:
        os.fdatasync(file.fileno())
        while file.read(_CHUNK):
            pass


PLACES: Final[Mapping[str, Callable[[Path, int], AbstractContextManager[Start]]]] = {
    DIRECTORY: in_directory,
    RBD: in_rbd,
    **{place: partial(in_log, place) for place in (PMEM, SSD, FULL, WRITEBACK, GROUPED, COST)},
}
"""What makes images at each place: given an empty directory, and the images' size in MiB."""
