"""The kit's own volumes and backend keep the contract that they stand in for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from fusecache.api import Backend, Volume
from fusecache.testing import (
    MEMORY_VOLUMES,
    AttemptMode,
    FaultyVolume,
    GatedVolume,
    MakeVolume,
    MemoryBackend,
    MemoryVolume,
    WatchedVolume,
    check_backend,
    check_volume,
)


@pytest.mark.parametrize("make_volume", MEMORY_VOLUMES.values(), ids=MEMORY_VOLUMES.keys())
async def test_a_memory_volume_keeps_the_contract(make_volume: MakeVolume) -> None:
    await check_volume(make_volume)


@pytest.mark.parametrize("attempts", ["done", "pending", "declined"])
@pytest.mark.parametrize("interposed", [GatedVolume, FaultyVolume, WatchedVolume])
async def test_an_interposed_volume_keeps_the_contract(
    interposed: type[GatedVolume | FaultyVolume | WatchedVolume], attempts: AttemptMode
) -> None:
    @asynccontextmanager
    async def make_volume(size: int) -> AsyncIterator[Volume]:
        volume = interposed(MemoryVolume(size, attempts=attempts))
        if isinstance(volume, GatedVolume):
            volume.open()
        yield volume

    await check_volume(make_volume)


@pytest.mark.parametrize("attempts", ["done", "pending", "declined"])
async def test_a_memory_backend_keeps_the_contract(attempts: AttemptMode) -> None:
    @asynccontextmanager
    async def make_backend() -> AsyncIterator[Backend]:
        yield MemoryBackend(attempts=attempts)

    await check_backend(make_backend)
