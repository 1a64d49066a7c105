"""What commands print: tables, JSON, progress.

Owns the difference between a terminal and anything else. It must not know what is shown.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fusecache.metrics.text import printable

_LINE_EVERY: Final = 5.0
"""Seconds between two lines of progress where there is no terminal."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: Any) -> None:
    """Print *value* as indented JSON."""
    click.echo(json.dumps(value, indent=2))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows under a heading: framed and coloured on a terminal, aligned columns otherwise."""
    rows = [[printable(cell) for cell in row] for row in rows]
    console = Console()
    if console.is_terminal:
        table = Table(box=box.SIMPLE)
        for title in head:
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        console.print(table)
        return
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in ([title.upper() for title in head], *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Progress:
    """One line on standard error that says how far a command has come."""

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._status = console.status(Text(title)) if console.is_terminal else None
        self._next_line = time.monotonic() + _LINE_EVERY

    def show(self, text: str) -> None:
        """Show *text* after the title; without a terminal as a line of its own now and then."""
        line = f"{self._title}: {printable(text)}"
        if self._status is not None:
            self._status.update(Text(line))
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY
            click.echo(line, err=True)

    @contextmanager
    def shown(self) -> Iterator["Progress"]:
        """Keep the line on the terminal for the length of a block."""
        if self._status is None:
            yield self
            return
        with self._status:
            yield self


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """Show progress for the length of a block."""
    with Progress(title, Console(stderr=True)).shown() as line:
        yield line
