"""The command ``fusecache``.

Owns the list of verbs and the options before them. It must not know what a verb does: each is the ``command`` of the
module of its name, imported when it is used.
"""

import importlib
import logging
from typing import Final

import click

from fusecache.cli.failure import Group

VERBS: Final = ("check", "discard", "events", "flush", "inspect", "layers", "mount", "status", "unmount")

_LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Verbs(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command = importlib.import_module(f"fusecache.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command


def set_up_logging(verbose: int) -> None:
    """Log to standard error: warnings, with *verbose* of 1 what happens, of 2 or more every detail."""
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)]
    logging.basicConfig(level=level, format=_LOG_FORMAT)


@click.group(cls=_Verbs)
@click.option("-v", "--verbose", count=True, help="Log what happens; twice: every detail.")
def main(verbose: int) -> None:
    """Disk images of a Ceph pool or a directory as files, through a stack of cache layers.

    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused because data would be lost.
    """
    set_up_logging(verbose)
