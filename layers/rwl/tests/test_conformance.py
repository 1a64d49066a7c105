"""The layer keeps every promise of the contract with other options than those that all layers are checked with."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusecache.testing import SIZES, check_layer
from fusecache_rwl.plugin import plugin


@pytest.fixture
def pools() -> Iterator[Path]:
    """A directory in memory: the checks make hundreds of pools."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.parametrize("options", [{"persist": "write"}, {"media": "pmem"}], ids=str)
async def test_the_layer_keeps_the_contract(pools: Path, options: dict[str, str]) -> None:
    await check_layer(plugin, {"path": str(pools), "size": "16MiB", **options}, sizes=SIZES[1:2])
