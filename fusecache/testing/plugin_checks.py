"""The promises of :mod:`fusecache.api.layer` that a plugin keeps before any of its layers is open.

Owns one check for each. It must not know what the layers do.
"""

import dataclasses
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias

from fusecache.api.identity import Identity
from fusecache.api.layer import API_VERSION, LayerContext, LayerPlugin
from fusecache.testing.context import declared_options, layer_context, validated
from fusecache.testing.harness import Broken, expect, pattern, put
from fusecache.testing.memory import MemoryVolume

Configured: TypeAlias = tuple[LayerPlugin, Mapping[str, Any]]
"""A plugin, and options that it accepts."""

_UNKNOWN_OPTION: Final = "no_layer_has_this_option"


async def the_plugin_declares_itself(configured: Configured) -> None:
    """It has a name, the present ``api_version``, and a ``config_model`` that accepts the options given."""
    plugin, options = configured
    expect(isinstance(plugin, LayerPlugin), f"found {plugin!r}, allowed: an instance of LayerPlugin")
    name = getattr(plugin, "name", None)
    expect(isinstance(name, str) and bool(name), f"found name {name!r}")
    version = getattr(plugin, "api_version", None)
    expect(version == API_VERSION, f"found api_version {version!r}, allowed: {API_VERSION}")
    expect(isinstance(plugin.writes_back, bool), f"found writes_back {plugin.writes_back!r}, allowed: True, False")
    declared_options(plugin.config_model)
    config = validated(plugin, options)
    expect(isinstance(config, plugin.config_model), f"options became {config!r}, not a {plugin.config_model.__name__}")


async def unknown_options_are_refused(configured: Configured) -> None:
    """The ``config_model`` does not collect names that it does not declare."""
    plugin, options = configured
    model_config = getattr(plugin.config_model, "model_config", {})
    expect(model_config.get("extra") != "allow", "config_model has extra='allow'")
    try:
        found = validated(plugin, {**options, _UNKNOWN_OPTION: 1})
    except ValueError:
        return
    raise Broken(f"the option {_UNKNOWN_OPTION!r} was accepted: {found!r}")


async def artifacts_are_named_before_they_are_created(configured: Configured) -> None:
    """``artifacts`` creates nothing, and an open layer has no file that it did not name."""
    plugin, options = configured
    async with _context(plugin, options) as context:
        before = _files([context.state_dir])
        named = set(plugin.artifacts(context))
        expect(_files([context.state_dir]) == before, "artifacts() has created files")
        expect(all(path.is_absolute() for path in named), f"found relative paths in {_shown(named)}")
        places = {context.state_dir, *(path.parent for path in named)}
        before = _files(places)
        try:
            async with plugin.open(context, MemoryVolume(65536)) as layer:
                await put(layer, 0, pattern(layer.size, 1))
                await layer.flush()
                await layer.writeback()
                _expect_named(_files(places) - before, named)
            _expect_named(_files(places) - before, named)
            expect(set(plugin.artifacts(context)) == named, "artifacts() names other files once the layer was open")
        finally:
            for path in named - before:
                path.unlink(missing_ok=True)


async def artifacts_of_two_layers_never_collide(configured: Configured) -> None:
    """Another layer index, or another image, has other files; the same layer of the same image the same."""
    plugin, options = configured
    async with _context(plugin, options) as context, _context(plugin, options) as other:
        mine = set(plugin.artifacts(context))
        expect(set(plugin.artifacts(context)) == mine, "artifacts() changes from call to call")
        above = dataclasses.replace(context, index=context.index + 1)
        shared = mine & set(plugin.artifacts(above))
        expect(not shared, f"index {context.index} and {above.index} share {_shown(shared)}")
        shared = mine & set(plugin.artifacts(other))
        expect(not shared, f"two images share {_shown(shared)}")


@asynccontextmanager
async def _context(plugin: LayerPlugin, options: Mapping[str, Any]) -> AsyncIterator[LayerContext]:
    with TemporaryDirectory(prefix="fusecache-") as temporary:
        identity = Identity(f"memory:{uuid.uuid4()}")
        async with layer_context(validated(plugin, options), identity=identity, state_dir=Path(temporary)) as context:
            yield context


def _expect_named(created: Iterable[Path], named: set[Path]) -> None:
    surprises = [path for path in created if path not in named]
    expect(not surprises, f"found {_shown(surprises)}, named were {_shown(named)}")


def _files(places: Iterable[Path]) -> set[Path]:
    return {path for place in places for path in place.rglob("*") if not path.is_dir()}


def _shown(paths: Iterable[Path]) -> str:
    return ", ".join(sorted(map(str, paths))) or "none"


PLUGIN_CHECKS: Final[Sequence[Callable[[Configured], Awaitable[None]]]] = (
    the_plugin_declares_itself,
    unknown_options_are_refused,
    artifacts_are_named_before_they_are_created,
    artifacts_of_two_layers_never_collide,
)
