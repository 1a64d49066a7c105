"""The conformance checks that this kit ships: three functions for three contracts.

Owns which circumstances each check is run under. It must not know the promises themselves; those are in the modules
``volume_checks``, ``attempt_checks``, ``layer_checks``, ``dirty_checks``, ``backend_checks`` and ``claim_checks``, a
function each, named after what it checks.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from fusecache.api.backend import Backend
from fusecache.api.layer import LayerPlugin
from fusecache.api.volume import Volume
from fusecache.testing.attempt_checks import ATTEMPT_CHECKS
from fusecache.testing.backend_checks import BACKEND_CHECKS
from fusecache.testing.claim_checks import CLAIM_CHECKS
from fusecache.testing.claims import FreeClaim
from fusecache.testing.dirty_checks import DIRTY_CHECKS
from fusecache.testing.harness import keep
from fusecache.testing.layer_checks import LAYER_CHECKS
from fusecache.testing.place import Copy, Fingerprint, Place
from fusecache.testing.plugin_checks import PLUGIN_CHECKS
from fusecache.testing.rig import MEMORY_VOLUMES, MakeVolume, fresh_layer, layer_rig
from fusecache.testing.volume_checks import VOLUME_CHECKS

MakeBackend: TypeAlias = Callable[[], AbstractAsyncContextManager[Backend]]
"""Opens a backend without images."""

T = TypeVar("T")

SIZES: Final = (192 << 10, (64 << 10) + 517, 1)
"""The sizes that volumes are checked at: whole blocks, a last block that is partial and odd, and the smallest."""


async def check_volume(make_volume: MakeVolume, *, sizes: Sequence[int] = SIZES, circumstances: str = "") -> None:
    """Check every promise of :mod:`fusecache.api.volume` that shows from outside.

    Args:
        make_volume: ``make_volume(size)`` opens a fresh volume of that size, which reads as zeroes; called once for
            each check.
        sizes: the sizes to check at.
        circumstances: words for the message of a broken promise.

    Raises:
        AssertionError: a promise is broken; the message begins with the promise.
    """
    for size in sizes:
        for check in (*VOLUME_CHECKS, *ATTEMPT_CHECKS):
            await keep(check, partial(make_volume, size), circumstances=_words(circumstances, size))


async def check_layer(
    plugin: LayerPlugin,
    options: Mapping[str, Any] | None = None,
    *,
    make_below: MakeVolume | None = None,
    sizes: Sequence[int] = SIZES,
) -> None:
    """Check every promise of :mod:`fusecache.api.layer`, and of a volume, that shows from outside.

    Args:
        plugin: what the entry point leads to.
        options: the layer's table in the config, less ``index``, ``plugin`` and ``required``.
        make_below: opens a fresh volume to put the layer on; by default volumes in memory, in turn of every kind of
            attempt and of two alignments.
        sizes: the sizes to check at.

    Raises:
        AssertionError: a promise is broken; the message begins with the promise.
    """
    options = options or {}
    for plugin_check in PLUGIN_CHECKS:
        await keep(plugin_check, partial(_given, (plugin, options)))
    for words, below in MEMORY_VOLUMES.items() if make_below is None else [("", make_below)]:
        fresh = partial(fresh_layer, plugin=plugin, options=options, make_below=below)
        await check_volume(fresh, sizes=sizes, circumstances=words)
        for size in sizes:
            make_rig = partial(layer_rig, plugin, options, below, size)
            for layer_check in (*LAYER_CHECKS, *DIRTY_CHECKS):
                await keep(layer_check, make_rig, circumstances=_words(words, size))


async def check_backend(
    make_backend: MakeBackend,
    *,
    copy: Copy | None = None,
    fingerprint: Fingerprint | None = None,
    sizes: Sequence[int] = SIZES,
) -> None:
    """Check every promise of :mod:`fusecache.api.backend`, and of its images as volumes, that shows from outside.

    Args:
        make_backend: opens a backend without images; called once for each check.
        copy: ``copy(backend, old, new)`` copies an image behind the backend's back, attributes and all.
        fingerprint: ``fingerprint(backend)`` returns everything that is stored there, for comparison.
        sizes: the sizes of images to check at.

    Raises:
        AssertionError: a promise is broken; the message begins with the promise.
    """

    @asynccontextmanager
    async def make_place() -> AsyncIterator[Place]:
        async with make_backend() as backend:
            yield Place(backend, copy, fingerprint)

    @asynccontextmanager
    async def make_image(size: int) -> AsyncIterator[Volume]:
        async with make_backend() as backend:
            await backend.create("image", size)
            async with backend.open("image", FreeClaim()) as image:
                yield image

    for check in (*BACKEND_CHECKS, *CLAIM_CHECKS):
        await keep(check, make_place)
    await check_volume(make_image, sizes=sizes, circumstances="an image of the backend")


@asynccontextmanager
async def _given(value: T) -> AsyncIterator[T]:
    yield value


def _words(circumstances: str, size: int) -> str:
    return f"{circumstances}, size {size}" if circumstances else f"size {size}"
