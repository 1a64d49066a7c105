"""Which layer plugins are installed, and how one is loaded.

Owns the entry-point group ``fusecache.layers`` and every reason to refuse a plugin. It must not know stacks.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass
from importlib.metadata import EntryPoint, entry_points

from pydantic import BaseModel

from fusecache.api.errors import PluginMissing
from fusecache.api.layer import API_VERSION, ENTRY_POINT_GROUP, LayerPlugin


@dataclass(frozen=True, slots=True)
class InstalledPlugin:
    """A plugin that some installed distribution offers; whether it loads is another question.

    Attributes:
        name: what the config calls it.
        distribution: the name of the distribution that offers it.
        version: that distribution's.
    """

    name: str
    distribution: str
    version: str


def installed() -> Sequence[InstalledPlugin]:
    """Return the plugins of all installed distributions, sorted by name. Imports none of them.

    A name that two distributions claim is listed twice.
    """
    plugins = [InstalledPlugin(point.name, *_origin(point)) for point in _points()]
    return sorted(plugins, key=lambda plugin: (plugin.name, plugin.distribution))


@functools.cache
def load(name: str) -> LayerPlugin:
    """Import one plugin and check that it fits; once per process. A failure is tried again at the next call.

    Raises:
        PluginMissing: not installed, claimed by two distributions, not importable (the reason is the cause), or not
            written for this core. The message names the plugin and the mismatch.
    """
    points = _points(name)
    if not points:
        others = ", ".join(sorted({point.name for point in _points()})) or "none"
        raise PluginMissing(f"layer plugin {name!r} is not installed; installed are: {others}")
    if len(points) > 1:
        claims = " and ".join(sorted(" ".join(_origin(point)) for point in points))
        raise PluginMissing(f"layer plugin {name!r} is claimed by {claims}: one of them must be removed")
    try:
        plugin = points[0].load()
    except (Exception, SystemExit) as error:
        raise PluginMissing(f"layer plugin {name!r} does not load: {type(error).__name__}: {error}") from error
    if mismatch := _mismatch(name, plugin):
        raise PluginMissing(f"layer plugin {name!r} of {' '.join(_origin(points[0]))} does not fit: {mismatch}")
    assert isinstance(plugin, LayerPlugin)
    return plugin


def _points(name: str | None = None) -> Sequence[EntryPoint]:
    found = entry_points(group=ENTRY_POINT_GROUP)
    return tuple(found if name is None else found.select(name=name))


def _origin(point: EntryPoint) -> tuple[str, str]:
    assert point.dist is not None, "entry_points() gives every point its distribution"
    return point.dist.name, point.dist.version


def _mismatch(name: str, plugin: object) -> str | None:
    """Say why an imported object is not the plugin *name*; None where it is."""
    if not isinstance(plugin, LayerPlugin):
        return f"found {plugin!r}, allowed: an instance of LayerPlugin"
    # A subclass may have left out any of the declarations: the base class only announces them.
    version = getattr(plugin, "api_version", None)
    if version != API_VERSION:
        return f"found api_version {version}, allowed: {API_VERSION}"
    own_name = getattr(plugin, "name", None)
    if own_name != name:
        return f"found the name {own_name!r}, allowed: the entry point's, {name!r}"
    model = getattr(plugin, "config_model", None)
    if not isinstance(model, type) or not (is_dataclass(model) or issubclass(model, BaseModel)):
        return f"found config_model {model!r}, allowed: a dataclass or a pydantic model"
    return None
