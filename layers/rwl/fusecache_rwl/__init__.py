"""The rwl layer: a persistent write-back log of one image, on persistent memory or SSD.

Owns the name under which the layer is found. It imports nothing at once: whoever needs one pure module of the layer
(its format, say) loads that module alone; the plugin's parts are loaded when the plugin is asked for.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusecache_rwl.plugin import plugin as plugin


def __getattr__(name: str) -> object:
    # Called for names that the module does not have, and for "plugin" once: the result is kept.
    if name != "plugin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fusecache_rwl.plugin import plugin  # noqa: PLC0415 - the point of this function

    globals()[name] = plugin
    return plugin
