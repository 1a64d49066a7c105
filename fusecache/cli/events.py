"""``fusecache events``."""

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click

from fusecache.cli.failure import Failure
from fusecache.cli.mounted import Mounted, NotAnswering, appended
from fusecache.cli.output import json_option
from fusecache.cli.target import mount_at
from fusecache.fuse import mounting

_POLL_EVERY: Final = 0.5


@click.command("events")
@click.argument("mountpoint", type=Path)
@click.option("--follow", is_flag=True, help="Go on with new events until Ctrl-C or the end of the mount.")
@json_option
def command(mountpoint: Path, follow: bool, as_json: bool) -> None:
    """Print what happened to a mount, a line each; with --json an object a line."""
    mount = mount_at(mountpoint)
    seen = mount.events()
    _print(seen, as_json)
    try:
        while follow:
            time.sleep(_POLL_EVERY)
            events = _events_or_end(mount)
            if events is None:
                break
            _print(appended(seen, events), as_json)
            seen = events
    except KeyboardInterrupt:
        pass


def _events_or_end(mount: Mounted) -> list[str] | None:
    """Return the retained events, or None once the mount is gone."""
    try:
        return mount.events()
    except NotAnswering:
        raise
    except Failure:
        if mounting.find_mount(mount.mountpoint) is None or mounting.is_stale(mount.mountpoint):
            return None
        raise


def _print(events: Iterable[str], as_json: bool) -> None:
    for event in events:
        click.echo(
            json.dumps(dict(zip(("time", "kind", "text"), event.split(" ", 2), strict=False))) if as_json else event
        )
