"""Who may open a stack: the claim on its image, the record that the image carries, and layers that write back."""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fusecache.api import (
    BackendImage,
    Claim,
    Identity,
    ImageRecord,
    joined,
)
from fusecache.api.errors import (
    Fenced,
    ImageBusy,
    LayerDirty,
    NotSupported,
    VolumeClosed,
)
from fusecache.state.manifest import Manifest, ManifestLayer, encode
from fusecache.state.store import StateStore
from fusecache.testing.claims import FreeClaim
from fusecache.testing.memory import MemoryBackend, MemoryVolume
from tests.support.stacks import (
    IMAGE,
    Open,
    TellingPlugin,
    backend,
    events,
    layers,
    opener,
    plugin,
    read_manifest,
    store,
    write_manifest,
)

__all__ = ["backend", "events", "opener", "plugin", "store"]


async def test_an_image_that_takes_no_lock_has_no_layers_and_no_state(
    opener: Open, plugin: TellingPlugin, store: StateStore, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def unlocked(name: str, claim: Claim, **options: Any) -> AsyncIterator[BackendImage]:
        yield MemoryVolume(image=backend.images[name], read_only=True)

    monkeypatch.setattr(backend, "open", unlocked)
    async with opener(configured=layers(0)) as stack:
        assert stack.top is stack.base
        assert (stack.layers, stack.missing, stack.epoch) == ((), (), 1)
        assert joined(await stack.top.read(0, 1)) == b"\0"
    assert plugin.told == []
    assert list((store.directory / "images").iterdir()) == []
    with pytest.raises(VolumeClosed):
        await stack.top.read(0, 1)


async def test_the_image_s_record_has_the_epoch(
    opener: Open, plugin: TellingPlugin, store: StateStore, backend: MemoryBackend
) -> None:
    image = backend.images[IMAGE]
    image.record = ImageRecord(epoch=5)
    async with opener(configured=layers(0)) as stack:
        assert (stack.epoch, plugin.contexts[0].epoch) == (5, 5)
    manifest = read_manifest(store, image.identity)
    assert manifest is not None
    assert manifest.epoch == 5
    dirty = ManifestLayer(index=0, plugin="telling", dirty=True)
    write_manifest(store, image.identity, epoch=4, layers=(dirty,))
    with pytest.raises(Fenced, match="dirty at epoch 4, the image is at epoch 5"):
        async with opener(configured=layers(0)):
            raise AssertionError("the stack is not open")


def held_elsewhere(identity: Identity, **layer: bool) -> ImageRecord:
    """Return the record of an image of which another host has dirty data."""
    dirty = ManifestLayer.model_validate({"index": 0, "plugin": "telling", "dirty": True, **layer})
    theirs = Manifest(identity=identity.text, epoch=2, host="f" * 32, layers=(dirty,))
    return ImageRecord(2, theirs.host, "elsewhere", encode(theirs).decode())


async def test_dirty_data_of_another_host_is_taken_over_on_demand_only(
    opener: Open, plugin: TellingPlugin, store: StateStore, backend: MemoryBackend, events: list[tuple[str, str]]
) -> None:
    image = backend.images[IMAGE]
    image.record = held_elsewhere(image.identity)
    with pytest.raises(ImageBusy, match="elsewhere"):
        async with opener():
            raise AssertionError("the stack is not open")
    async with opener(configured=layers(0), take_over=True) as stack:
        assert (stack.epoch, plugin.contexts[0].epoch) == (3, 3)
        assert image.record == ImageRecord(epoch=3)
    manifest = read_manifest(store, image.identity)
    assert manifest is not None
    assert manifest.epoch == 3
    assert [kind for kind, _ in events] == ["taken-over"]
    async with opener(take_over=True) as stack:
        assert stack.epoch == 3


@pytest.mark.parametrize("word", ["torn", "holds_group"])
@pytest.mark.parametrize("when", ["before", "while the backend opens it"])
async def test_what_leaves_a_level_torn_is_not_taken_over(
    opener: Open, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch, word: str, when: str
) -> None:
    """Its host may be alive, so that its lock is not broken, if that can be known before."""
    image = backend.images[IMAGE]
    torn = held_elsewhere(image.identity, **{word: True})
    image.record = torn if when == "before" else held_elsewhere(image.identity)
    open_image, opened = backend.open, []

    def opening(name: str, claim: Claim, **options: Any) -> AbstractAsyncContextManager[BackendImage]:
        image.record = torn
        opened.append(name)
        return open_image(name, claim, **options)

    monkeypatch.setattr(backend, "open", opening)
    with pytest.raises(LayerDirty, match="`fusecache discard CONFIG IMAGE --layer 0 --dirty --torn`"):
        async with opener(take_over=True):
            raise AssertionError("the stack is not open")
    assert image.record == torn
    assert bool(opened) == (when != "before")


async def test_a_fenced_image_is_not_taken_over_before_its_own_dirty_layers_are_dropped(
    opener: Open, store: StateStore, backend: MemoryBackend
) -> None:
    image = backend.images[IMAGE]
    theirs = image.record = held_elsewhere(image.identity)
    write_manifest(store, image.identity, layers=(ManifestLayer(index=0, plugin="telling", dirty=True),))
    with pytest.raises(Fenced):
        async with opener(take_over=True):
            raise AssertionError("the stack is not open")
    assert image.record == theirs


async def test_what_may_keep_dirty_data_asks_for_a_client_of_its_own(
    opener: Open, plugin: TellingPlugin, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    open_image = backend.open

    def opened(
        name: str, claim: Claim, *, dedicated: bool, **options: Any
    ) -> AbstractAsyncContextManager[BackendImage]:
        asked.append(dedicated)
        return open_image(name, claim, **options)

    monkeypatch.setattr(backend, "open", opened)
    for configured in (None, layers(0), layers(0, plugin="gone")):
        async with opener(configured=configured):
            pass
    plugin.writes_back = True  # type: ignore[misc]
    async with opener(configured=layers(1, 0)):
        pass
    assert asked == [False, False, False, True]


async def test_a_layer_that_writes_back_needs_an_image_it_can_find_again(
    opener: Open, plugin: TellingPlugin, store: StateStore, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryVolume, "durable_identity", False)
    async with opener(configured=layers(0)):
        pass
    plugin.writes_back = True  # type: ignore[misc]
    with pytest.raises(NotSupported, match=r"layer 0 \(telling\) keeps dirty data, .* no lasting identity"):
        async with opener(configured=layers(0)):
            raise AssertionError("the stack is not open")


async def test_former_clients_are_forgotten_when_the_backend_s_lock_is_ours(
    opener: Open, store: StateStore, backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, told = backend.images[IMAGE], []
    os.close(store.lock_image(image.identity, name=IMAGE, mountpoint=None, client="F")._fd)
    open_image = backend.open

    @asynccontextmanager
    async def opened(name: str, claim: Claim, *, fails: bool, **options: Any) -> AsyncIterator[BackendImage]:
        told.append(await claim(image.identity, "C"))
        if fails:
            raise OSError("the cluster is away")
        async with open_image(name, FreeClaim(), **options) as volume:
            yield volume

    clients = store.directory / "images" / image.identity.digest / "clients"
    monkeypatch.setattr(backend, "open", partial(opened, fails=True))
    with pytest.raises(OSError, match="the cluster is away"):
        async with opener():
            raise AssertionError("the stack is not open")
    assert clients.read_text() == "F\n"
    monkeypatch.setattr(backend, "open", partial(opened, fails=False))
    async with opener():
        assert clients.read_text() == "C\n"
    assert not clients.exists()
    assert told == [("F",), ("F",)]


async def test_a_lost_manifest_comes_back_from_the_image_s_record(
    opener: Open, plugin: TellingPlugin, store: StateStore, backend: MemoryBackend, tmp_path: Path
) -> None:
    image, file = backend.images[IMAGE], tmp_path / "pool"
    file.touch()
    dirty = ManifestLayer(index=4, plugin="telling", options={"pool": str(file)}, artifacts=(str(file),), dirty=True)
    lost = Manifest(identity=image.identity.text, epoch=3, host=store.host(), layers=(dirty,))
    image.record = ImageRecord(3, store.host(), "here", encode(lost).decode())
    async with opener() as stack:
        assert [layer.index for layer in stack.layers] == [4]
    manifest = read_manifest(store, image.identity)
    assert manifest is not None
    assert manifest.dirty
