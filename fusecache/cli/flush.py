"""``fusecache flush``."""

from pathlib import Path

import click

from fusecache.api.errors import ImageBusy
from fusecache.cli import offline
from fusecache.cli.mounted import Mounted
from fusecache.cli.target import holder_of, mount_or_config
from fusecache.config.schema import Config


@click.command("flush")
@click.argument("target", metavar="MOUNTPOINT|CONFIG", type=Path)
@click.argument("image", required=False)
@click.option("--layer", type=click.IntRange(min=0), help="Only this layer's data, to the level below.")
def command(target: Path, image: str | None, layer: int | None) -> None:
    """Write back what is dirty: everything, or one image, or one layer of it."""
    if layer is not None and image is None:
        raise click.UsageError("--layer needs an IMAGE")
    place = mount_or_config(target)
    if isinstance(place, Mounted):
        place.flush(image, layer)
        return
    for name in [image] if image is not None else [info.name for info in offline.list_images(place)]:
        _flush_unmounted(place, name, layer)


def _flush_unmounted(config: Config, image: str, layer: int | None) -> None:
    try:
        offline.writeback(config, image, layer)
    except ImageBusy:
        mount = holder_of(config, image)
        if mount is None:
            raise
        mount.flush(image, layer)
