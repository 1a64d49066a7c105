"""The kit for authors of layers and backends: test volumes, and conformance checks for every promise of the contract.

It needs no test framework, and a layer's whole conformance test is three lines::

    from fusecache.testing import check_layer
    from fusecache_mine import plugin

    async def test_conforms():
        await check_layer(plugin, {"size": "1MiB"})

The checks are plain async functions that run under trio (``trio.run(check_layer, plugin)`` does as well) and raise
:class:`AssertionError` with the broken promise, the circumstances, and what was found::

    a discard reads as zeroes (attempts below are done, size 66053): byte 512 is 0x5a, expected 0x00

=========================================  ==========================================================================
:func:`check_layer`                        a plugin and its layers, alone or over another (``make_below``)
:func:`check_backend`                      a backend and its images
:func:`check_volume`                       anything that is a volume
:class:`MemoryVolume`, `MemoryBackend`     images in memory; strict with their callers
:class:`GatedVolume`                       holds requests until the test lets them go: for races
:class:`FaultyVolume`                      fails, dawdles or hangs where the test says so
:class:`WatchedVolume`                     records requests and refuses those that break the contract
:class:`FreeClaim`                         what a backend asks before it opens an image; grants everything
:func:`layer_context`                      what a layer is opened with, for tests of its author's own
:class:`RecordingMark`                     the mark of dirty data that such a layer sets: held back, failing, recorded
:class:`ThreadFileSync`                    makes files of such a layer durable
=========================================  ==========================================================================

A test of a race, without sleeping::

    gated = GatedVolume(MemoryVolume(1 << 20), {"read"})
    async with layer_context(config) as context, plugin.open(context, gated) as layer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(layer.read, 0, 4096)
            await gated.wait_held(1)
            await layer.write(0, memoryview(b"new!" * 1024))
            gated.open()
"""

from fusecache.testing.claims import FreeClaim
from fusecache.testing.conformance import SIZES, MakeBackend, check_backend, check_layer, check_volume
from fusecache.testing.context import layer_context, validated
from fusecache.testing.faulty import HANG, Fault, FaultyVolume
from fusecache.testing.file_sync import ThreadFileSync
from fusecache.testing.gated import GatedVolume, Held
from fusecache.testing.marks import RecordingMark
from fusecache.testing.memory import MemoryBackend, MemoryImage, MemoryVolume
from fusecache.testing.requests import AttemptMode, Operation, Request
from fusecache.testing.rig import MEMORY_VOLUMES, MakeVolume, memory_volume
from fusecache.testing.watched import WatchedVolume

__all__ = [
    "HANG",
    "MEMORY_VOLUMES",
    "SIZES",
    "AttemptMode",
    "Fault",
    "FaultyVolume",
    "FreeClaim",
    "GatedVolume",
    "Held",
    "MakeBackend",
    "MakeVolume",
    "MemoryBackend",
    "MemoryImage",
    "MemoryVolume",
    "Operation",
    "RecordingMark",
    "Request",
    "ThreadFileSync",
    "WatchedVolume",
    "check_backend",
    "check_layer",
    "check_volume",
    "layer_context",
    "memory_volume",
    "validated",
]
