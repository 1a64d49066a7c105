"""``fusecache flush``."""

from pathlib import Path

import click

from fusecache.api.errors import ImageBusy
from fusecache.cli import offline
from fusecache.cli.failure import Failure, failure_of
from fusecache.cli.mounted import Mounted
from fusecache.cli.target import holder_of, mount_or_config
from fusecache.config.schema import Config
from fusecache.metrics.text import printable


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
    if image is not None:
        _flush_unmounted(place, image, layer)
    else:
        _flush_all_unmounted(place)


def _flush_all_unmounted(config: Config) -> None:
    failures = []
    for info in offline.dirty_images(config):
        try:
            _flush_unmounted(config, info.name, None)
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                raise
            # The others must not wait for it.
            failures.append(f"{printable(info.name)}: not written back: {failure.message}")
    if failures:
        raise Failure("\n".join(failures))


def _flush_unmounted(config: Config, image: str, layer: int | None) -> None:
    try:
        offline.writeback(config, image, layer)
    except ImageBusy:
        mount = holder_of(config, image)
        if mount is None:
            raise
        mount.flush(image, layer)
