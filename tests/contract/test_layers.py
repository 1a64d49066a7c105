"""Every installed layer keeps the contract: alone, over every other, and over a real image."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest

from fusecache.stack.discover import installed, load
from fusecache.testing import SIZES, check_layer, memory_volume
from fusecache.testing.rig import fresh_layer
from tests.support.places import directory_image

LAYERS: Final = sorted({plugin.name for plugin in installed()})


OptionsOf: TypeAlias = Callable[[str], Mapping[str, Any]]


@pytest.fixture
def options_of() -> Iterator[OptionsOf]:
    """The options that each layer is checked with; one that is not named here is opened without any."""
    # In memory: the checks make hundreds of pools.
    with tempfile.TemporaryDirectory(dir="/dev/shm") as pools:
        options: Mapping[str, Mapping[str, Any]] = {"rwl": {"path": pools, "size": "16MiB"}}
        yield lambda name: options.get(name, {})


def test_the_layer_that_ships_with_the_core_is_installed() -> None:
    assert "passthrough" in LAYERS


@pytest.mark.parametrize("name", LAYERS)
async def test_a_layer_keeps_the_contract(name: str, options_of: OptionsOf) -> None:
    await check_layer(load(name), options_of(name))


@pytest.mark.parametrize(("upper", "lower"), list(product(LAYERS, repeat=2)))
async def test_a_layer_over_a_layer_keeps_the_contract(upper: str, lower: str, options_of: OptionsOf) -> None:
    for below in (partial(memory_volume, attempts="done"), partial(memory_volume, attempts="pending", alignment=512)):
        make_below = partial(fresh_layer, plugin=load(lower), options=options_of(lower), make_below=below)
        await check_layer(load(upper), options_of(upper), make_below=make_below)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
async def test_a_layer_over_a_directory_image_keeps_the_contract(
    name: str, direct: bool, tmp_path: Path, options_of: OptionsOf
) -> None:
    make_below = partial(directory_image, parent=tmp_path, direct=direct)
    await check_layer(load(name), options_of(name), make_below=make_below, sizes=SIZES[1:2])
