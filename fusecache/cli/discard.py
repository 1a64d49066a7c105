"""``fusecache discard``."""

import sys
from pathlib import Path

import click

from fusecache.api.errors import ImageBusy
from fusecache.cli import offline
from fusecache.cli.mounted import Mounted
from fusecache.cli.target import holder_of, mount_or_config
from fusecache.metrics.text import printable


@click.command("discard")
@click.argument("target", metavar="MOUNTPOINT|CONFIG", type=Path)
@click.argument("image")
@click.option("--layer", type=click.IntRange(min=0), required=True, help="The index of the layer.")
@click.option("--dirty", is_flag=True, help="Drop dirty data too: it is lost.")
@click.option("--torn", is_flag=True, help="With --dirty: even if the level below is left with a part of a group.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(target: Path, image: str, layer: int, dirty: bool, torn: bool, yes: bool) -> None:
    """Drop the content of one layer of IMAGE, mounted or not, with the layer's plugin or without.

    A layer that is dirty is refused with exit code 3, unless --dirty is given; with --dirty, one that lies under
    dirty layers is: discard those first. So is a layer that is in the middle of writing back a group of writes, or
    holds such a group of a layer above it, unless --torn is given: what is below then has some of the group, and file
    systems on it may be beyond repair. While a program has the image open for writing, --dirty is refused.
    """
    if torn and not dirty:
        raise click.UsageError("--torn without --dirty")
    place = mount_or_config(target)
    if dirty and not yes:
        _ask(image, layer)
    if isinstance(place, Mounted):
        place.discard(image, layer, dirty=dirty, torn=torn)
        return
    try:
        offline.drop(place, image, layer, dirty=dirty, torn=torn)
    except ImageBusy:
        mount = holder_of(place, image)
        if mount is None:
            raise
        mount.discard(image, layer, dirty=dirty, torn=torn)


def _ask(image: str, layer: int) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("--dirty without a terminal to ask on needs --yes")
    click.confirm(f"Lose the dirty data of layer {layer} of image {printable(image)}?", abort=True, err=True)
