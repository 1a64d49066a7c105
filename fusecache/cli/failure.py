"""How a command fails: the message and the exit code.

Owns the exit codes. It must not know any verb.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import click

from fusecache.api.errors import FusecacheError, LayerDirty, unwrapped
from fusecache.config.load import ConfigError

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_DATA_LOSS: Final = 3
"""Refused because data would be lost."""


class Failure(click.ClickException):
    """Ends the command with a message on standard error and an exit code."""

    def __init__(self, message: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click asks the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message, each line with the program's name."""
        for line in self.message.splitlines():
            click.echo(f"fusecache: {line}", file=file, err=True)


def failure_of(error: BaseException) -> Failure | None:
    """Return how an expected error ends the command; None for one that nobody expects."""
    error = unwrapped(error)
    if isinstance(error, Failure):
        return error
    if isinstance(error, FusecacheError):
        code = EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
        return Failure(str(error), EXIT_DATA_LOSS if isinstance(error, LayerDirty) else code)
    # A closed pipe on standard output is click's to handle.
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        return Failure(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    return None


@contextmanager
def _failures_told() -> Iterator[None]:
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        raise failure from error


class Command(click.Command):
    """A command on its own whose expected errors become a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _failures_told():
            return super().invoke(ctx)


class Group(click.Group):
    """Commands whose expected errors become a message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        with _failures_told():
            return super().invoke(ctx)
