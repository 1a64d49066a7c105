"""``fusecache inspect``."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from fusecache.api.inspection import Fact, Inspection
from fusecache.cli.failure import EXIT_FAILED, Failure
from fusecache.cli.output import json_option, print_json
from fusecache.metrics.text import printable
from fusecache.stack import discover


@click.command("inspect")
@click.argument("pool_file", metavar="POOLFILE", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--verify", is_flag=True, help="Check every checksum.")
@json_option
@click.pass_context
def command(context: click.Context, pool_file: Path, verify: bool, as_json: bool) -> None:
    """Show what POOLFILE holds: superblock, log, records, a picture of what is dirty. Never changes the file.

    The file's name begins with the name of the plugin whose it is. Exit code 1 where something in it is damaged.
    """
    inspection = discover.load(_owner(pool_file)).inspect(pool_file, verify=verify)
    if as_json:
        print_json(
            {
                "title": inspection.title,
                "facts": inspection.facts,
                "picture": list(inspection.picture),
                "problems": list(inspection.problems),
            }
        )
    else:
        for line in _lines(inspection):
            click.echo(printable(line))
    if inspection.problems:
        context.exit(EXIT_FAILED)


def _owner(pool_file: Path) -> str:
    """Return the name of the plugin whose file it is."""
    plugin, dot, _rest = pool_file.name.partition(".")
    if not (plugin and dot):
        raise Failure(f"{pool_file}: found {pool_file.name!r}, allowed: a pool file, whose name is PLUGIN.….pool")
    return plugin


def _lines(inspection: Inspection) -> Iterator[str]:
    yield inspection.title
    yield from _facts(inspection.facts, "  ")
    if inspection.picture:
        yield ""
        yield from inspection.picture
    for problem in inspection.problems:
        yield f"problem: {problem}"


def _facts(facts: Mapping[str, Fact], indent: str) -> Iterator[str]:
    width = max((len(key) for key in facts), default=0) + 1
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _facts(value, indent + "  ")
        else:
            yield f"{indent}{f'{key}:'.ljust(width)} {_text(value)}"


def _text(value: str | float | bool | None) -> str:
    match value:
        case None:
            return "-"
        case True | False:
            return "yes" if value else "no"
    return str(value)
