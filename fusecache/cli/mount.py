"""``fusecache mount``, and ``mount.fusecache`` for mount(8).

Owns the mount options. It must not know how a mount is served.
"""

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from fusecache import mount
from fusecache.cli import daemon
from fusecache.cli.failure import Command, failure_of
from fusecache.cli.main import set_up_logging
from fusecache.cli.plugins import check_options
from fusecache.config.load import load_config
from fusecache.config.schema import Config
from fusecache.fuse.mounting import prepare
from fusecache.state.store import StateStore

_IGNORED: Final = re.compile(r"defaults|rw|(no)?auto|nofail|_netdev|(no)?user|users|(no)?dev|(no)?suid|(no)?exec|x-.*|")
_ALLOWED: Final = (
    "allow_other, and of the generic ones rw, [no]auto, nofail, _netdev, user[s], [no]dev, [no]suid, [no]exec, x-*"
)

options_option = click.option(
    "-o", "options", metavar="OPTS", multiple=True, help="Mount options, separated by commas: allow_other."
)
"""The option -o, as mount(8) has it."""


def allows_other(options: Sequence[str]) -> bool:
    """Return whether ``allow_other`` is among the mount options.

    Raises:
        click.BadParameter: there is one that is neither known nor one of mount(8)'s generic ones without meaning here.
    """
    found = False
    for option in ",".join(options).split(","):
        if option == "allow_other":
            found = True
        elif _IGNORED.fullmatch(option) is None:
            raise click.BadParameter(f"found {option!r}, allowed: {_ALLOWED}", param_hint="-o")
    return found


@click.command("mount")
@click.argument("config", type=Path)
@click.argument("mountpoint", type=Path)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground and log to standard error.")
@options_option
@click.option("--ready-fd", type=int, hidden=True)
@click.pass_context
def command(
    context: click.Context,
    config: Path,
    mountpoint: Path,
    foreground: bool,
    options: tuple[str, ...],
    ready_fd: int | None,
) -> None:
    """Mount the images of CONFIG at MOUNTPOINT. Returns when they can be used."""
    allow_other = allows_other(options)
    if foreground:
        _serve(config, mountpoint, allow_other, daemon.Readiness(ready_fd))
    else:
        _start(config, mountpoint, allow_other, context.find_root().params.get("verbose", 0))


@click.command("mount.fusecache", cls=Command)
@click.argument("config", type=Path)
@click.argument("mountpoint", type=Path)
@click.option("-s", "sloppy", is_flag=True, help="Accepted, without effect.")
@click.option("-f", "fake", is_flag=True, help="Check the configuration and mount nothing.")
@click.option("-n", "no_mtab", is_flag=True, help="Accepted, without effect.")
@click.option("-v", "--verbose", count=True, help="Log what happens.")
@options_option
def mount_helper(mountpoint: Path, config: Path, fake: bool, verbose: int, options: tuple[str, ...], **_: Any) -> None:
    """Mount the images of CONFIG at MOUNTPOINT, called by mount(8)."""
    set_up_logging(verbose)
    allow_other = allows_other(options)
    if fake:
        _checked(config, allow_other)
    else:
        _start(config, mountpoint, allow_other, verbose)


def _checked(path: Path, allow_other: bool) -> Config:
    config = load_config(path)
    check_options(config)
    if not allow_other:
        return config
    return dataclasses.replace(config, mount=config.mount.model_copy(update={"allow_other": True}))


def _serve(path: Path, mountpoint: Path, allow_other: bool, ready: daemon.Readiness) -> None:
    root = logging.getLogger()
    root.setLevel(min(root.level, logging.INFO))
    try:
        mount.run(_checked(path, allow_other), mountpoint, ready=ready.serving)
    except Exception as error:
        failure = failure_of(error)
        # Of an error that nobody expects the traceback says most: it is in the log.
        if failure is not None:
            ready.failed(failure)
        raise


def _start(path: Path, mountpoint: Path, allow_other: bool, verbose: int) -> None:
    config = _checked(path, allow_other)
    mountpoint = prepare(mountpoint)
    StateStore(config.mount.state_dir)
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    arguments = ["-v"] * verbose + ["mount", "-f", *(["-o", "allow_other"] if allow_other else [])]
    daemon.start([*arguments, str(config.path), str(mountpoint)], config.mount.state_dir / "mounts" / f"{digest}.log")
