"""``fusecache layers``."""

import click

from fusecache.api.errors import PluginMissing
from fusecache.cli.output import json_option, print_json, print_table
from fusecache.stack import discover


@click.command("layers")
@json_option
def command(as_json: bool) -> None:
    """List the installed layer plugins, and whether each loads."""
    rows = [(plugin.name, plugin.distribution, plugin.version, _reason(plugin.name)) for plugin in discover.installed()]
    if as_json:
        keys = ("name", "distribution", "version")
        print_json([dict(zip(keys, row, strict=False), loads=not row[3], reason=row[3] or None) for row in rows])
    else:
        head = ("plugin", "distribution", "version", "loads")
        print_table(head, [(*row[:3], f"no: {row[3]}" if row[3] else "yes") for row in rows])


def _reason(name: str) -> str:
    """Return why a plugin does not load; empty where it does."""
    try:
        discover.load(name)
    except PluginMissing as error:
        return str(error)
    return ""
