"""Which images were left dirty, by the manifests of this host and the records of the images."""

import json
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fusecache.api import ImageInfo, ImageRecord, LayerState
from fusecache.api.errors import CorruptState, Fenced
from fusecache.control.left import LeftDirty, standing
from fusecache.state.dirty import DirtyImage, dirty_images, opened_elsewhere
from fusecache.state.manifest import Manifest, ManifestLayer, encode
from fusecache.state.store import StateStore
from fusecache.testing.memory import MemoryBackend

HOST = "1" * 32
OTHER = "2" * 32


def manifest(identity: str, **changes: Any) -> Manifest:
    layer = ManifestLayer(index=0, plugin="kept", dirty=changes.pop("dirty", True))
    return Manifest(**{"identity": identity, "epoch": 1, "host": HOST, "layers": (layer,), **changes})


def record(of: Manifest, **changes: Any) -> ImageRecord:
    return ImageRecord(**{"epoch": of.epoch, "holder": of.host, "manifest": encode(of).decode(), **changes})


MINE = manifest("memory:mine")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, None),
        (record(MINE), LayerState.DIRTY),
        (record(manifest("memory:other")), None),
        (record(MINE, holder=None, manifest=""), None),
        (record(MINE, holder=OTHER), None),
        (record(MINE, manifest="no manifest"), None),
        (record(MINE, epoch=2, holder=None, manifest=""), LayerState.FENCED),
        (record(MINE, epoch=2, holder=OTHER), LayerState.FENCED),
    ],
    ids=["none", "same", "other image", "clean", "other host", "no manifest", "discarded elsewhere", "taken over"],
)
def test_the_images_record_decides_what_a_dirty_manifest_is_worth(
    found: ImageRecord | None, expected: LayerState | None
) -> None:
    assert standing(DirtyImage("disk", MINE), found, HOST) is expected


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend(names={"a": 4096, "b": 4096})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateStore:
    made = StateStore(tmp_path)
    monkeypatch.setattr(made, "host", lambda: HOST)
    return made


def write(store: StateStore, backend: MemoryBackend, name: str, *, held: bool = True, **changes: Any) -> None:
    """Leave the image as a mount does, with the record that says so or without."""
    image = backend.images[name]
    written = manifest(image.identity.text, **changes)
    with store.lock_image(image.identity, name=name, mountpoint=None) as state:
        state.write_manifest(written)
    image.record = record(written) if held else None


async def test_a_look_finds_what_was_left_dirty(store: StateStore, backend: MemoryBackend) -> None:
    left = LeftDirty(backend, store)
    write(store, backend, "a")
    write(store, backend, "b", dirty=False, held=False)
    a, b = await backend.lookup("a"), await backend.lookup("b")
    assert left.of(a) is None
    await left.look()
    found = left.of(a)
    assert found is not None
    assert (found.state, found.manifest.dirty) == (LayerState.DIRTY, True)
    assert left.of(b) is None


async def test_a_look_passes_over_images_of_other_backends_and_those_that_are_gone(
    store: StateStore, backend: MemoryBackend
) -> None:
    left = LeftDirty(backend, store)
    elsewhere = MemoryBackend(names={"a": 4096, "elsewhere": 4096})
    for name in elsewhere.images:
        write(store, elsewhere, name)
    await left.look()
    assert left.of(await backend.lookup("a")) is None


async def test_what_was_known_stays_where_nothing_can_be_found_out(
    store: StateStore, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = LeftDirty(backend, store)
    write(store, backend, "a")
    await left.look()

    def fail() -> str:
        raise CorruptState("no machine-id")

    monkeypatch.setattr(store, "host", fail)
    with caplog.at_level(logging.WARNING):
        await left.look()
    assert "no machine-id" in caplog.text
    assert left.of(await backend.lookup("a")) is not None


async def test_who_is_held_here_is_told_by_the_records_alone(
    store: StateStore, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = MemoryBackend(names=dict.fromkeys("abcd", 4096))
    left = LeftDirty(backend, store)
    infos = await backend.list()
    write(store, backend, "d", held=False)

    async def images() -> Sequence[ImageInfo]:
        return infos

    for name, holder in (("b", HOST), ("a", HOST), ("c", OTHER)):
        backend.images[name].record = ImageRecord(1, holder)
    assert [info.name for info in await left.held(images)] == ["a", "b"]
    del backend.images["a"]
    assert [info.name for info in await left.held(images)] == ["b"]

    async def copied(name: str) -> ImageRecord | None:
        raise Fenced("a copy of another image")

    monkeypatch.setattr(backend, "read_record", copied)
    assert await left.held(images) == []

    async def away(name: str) -> ImageRecord | None:
        raise OSError("the backend is away")

    monkeypatch.setattr(backend, "read_record", away)
    with pytest.raises(OSError, match="the backend is away"):
        await left.held(images)


async def test_the_backend_is_not_asked_who_is_held_here_where_nothing_is_dirty(
    store: StateStore, backend: MemoryBackend
) -> None:
    write(store, backend, "a", dirty=False)

    async def images() -> Sequence[ImageInfo]:
        raise OSError("the backend is away")

    left = LeftDirty(backend, store)
    assert await left.held(images) == ()
    write(store, backend, "a")
    with pytest.raises(OSError, match="the backend is away"):
        await left.held(images)


def test_damaged_manifests_are_passed_over(
    store: StateStore, backend: MemoryBackend, caplog: pytest.LogCaptureFixture
) -> None:
    write(store, backend, "a")
    write(store, backend, "b")
    path = store.directory / "images" / backend.images["a"].identity.digest / "manifest"
    path.write_bytes(path.read_bytes()[:-3])
    (store.directory / "images" / "empty").mkdir()
    with caplog.at_level(logging.WARNING):
        assert [found.name for found in dirty_images(store.directory)] == ["b"]
    assert str(path) in caplog.text


def test_whoever_opened_an_image_last_is_told_from_us_and_from_the_dead(
    store: StateStore, backend: MemoryBackend
) -> None:
    identity = backend.images["a"].identity
    assert not opened_elsewhere(store.directory, identity)
    write(store, backend, "a")
    assert not opened_elsewhere(store.directory, identity)
    lock = store.directory / "images" / identity.digest / "lock"
    with subprocess.Popen(["sleep", "60"]) as other:
        start_time = int(Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19])
        for began, expected in ((start_time, True), (start_time - 1, False)):
            lock.write_text(json.dumps({"pid": other.pid, "start_time": began, "image": "a"}))
            assert opened_elsewhere(store.directory, identity) is expected
        other.kill()
    lock.write_text(json.dumps({"pid": other.pid, "start_time": start_time, "image": "a"}))
    assert not opened_elsewhere(store.directory, identity)


def test_a_manifest_beside_a_lock_file_that_says_nothing_has_no_name(store: StateStore, backend: MemoryBackend) -> None:
    write(store, backend, "a")
    lock = store.directory / "images" / backend.images["a"].identity.digest / "lock"
    for content in (b"", b"[]", b'{"image": 7}', b"\xff"):
        lock.write_bytes(content)
        assert [found.name for found in dirty_images(store.directory)] == [""]
