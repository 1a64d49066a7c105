"""The layers of a configuration against the plugins that are installed.

Owns what can be told of them without opening an image. It must not know verbs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fusecache.api.errors import PluginMissing
from fusecache.config.load import ConfigError, Mistake, validate_options
from fusecache.config.schema import Config, LayerConfig
from fusecache.stack import discover


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One configured layer.

    Attributes:
        missing: why its plugin does not load; empty where it does.
        mistakes: in the layer's own options; none where the plugin does not load.
    """

    layer: LayerConfig
    missing: str = ""
    mistakes: Sequence[Mistake] = ()


def examine_layers(config: Config) -> list[list[LayerReport]]:
    """Return a report of each layer of each stack, in the order of the file."""
    return [
        [_examine(config, layer, f"stack[{number}].layer[{place}]") for place, layer in enumerate(stack.layers)]
        for number, stack in enumerate(config.stacks)
    ]


def check_options(config: Config) -> None:
    """Check the layers' own options where their plugins load.

    Raises:
        ConfigError: with the mistakes of all layers.
    """
    mistakes = [mistake for stack in examine_layers(config) for report in stack for mistake in report.mistakes]
    if mistakes:
        raise ConfigError(mistakes)


def _examine(config: Config, layer: LayerConfig, where: str) -> LayerReport:
    try:
        plugin = discover.load(layer.plugin)
        validate_options(plugin.config_model, layer.options, where, file=config.path)
    except PluginMissing as error:
        return LayerReport(layer, missing=str(error))
    except ConfigError as error:
        return LayerReport(layer, mistakes=error.mistakes)
    return LayerReport(layer)
