"""``fusecache status``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import click

from fusecache.api.units import readable_size
from fusecache.cli.failure import Failure
from fusecache.cli.mounted import Mounted
from fusecache.cli.output import json_option, print_json, print_table
from fusecache.cli.target import all_mounts, mount_at
from fusecache.metrics.text import printable

Json: TypeAlias = Mapping[str, Any]

_HEAD = ("image", "size", "open", "state", "layers", "dirty", "oldest", "hit rate", "replicas")


@click.command("status")
@click.argument("mountpoint", required=False, type=Path)
@click.argument("image", required=False)
@json_option
def command(mountpoint: Path | None, image: str | None, as_json: bool) -> None:
    """Show the images of MOUNTPOINT, or IMAGE alone; without MOUNTPOINT, of all mounts.

    Exits with 1 where the backend does not list its images, so that some that are not open may be missing.
    """
    if mountpoint is None:
        _show_all(as_json)
        return
    mount = mount_at(mountpoint)
    if image is not None:
        status = mount.image_status(image)
        if as_json:
            print_json(status)
        else:
            _print_images([status])
    else:
        _show_mount(mount, as_json)


def _show_mount(mount: Mounted, as_json: bool) -> None:
    status = mount.status()
    if as_json:
        print_json(status)
    else:
        _show(status)
    if not status["complete"]:
        raise Failure(_incomplete(mount.mountpoint))


def _show_all(as_json: bool) -> None:
    found, wrong = [], []
    for mount in all_mounts():
        try:
            found.append(status := mount.status())
        except Failure as failure:
            wrong.append(failure.message)
        else:
            if not status["complete"]:
                wrong.append(_incomplete(mount.mountpoint))
    if as_json:
        print_json(found)
    elif not found and not wrong:
        click.echo("no fusecache mounts")
    else:
        for number, status in enumerate(found):
            click.echo("\n" if number else "", nl=False)
            _show(status)
    if wrong:
        raise Failure("\n".join(wrong))


def _incomplete(mountpoint: Path) -> str:
    return f"{mountpoint}: the backend does not answer: images that are not open may be missing"


def _show(status: Json) -> None:
    click.echo(f"{printable(status['mountpoint'])}: {printable(status['backend'])}, process {status['pid']}")
    _print_images(status["images"])


def _print_images(images: Sequence[Json]) -> None:
    print_table(_HEAD, [image_row(image) for image in images])
    for image in images:
        if image["note"]:
            click.echo(f"{printable(image['name'])}: {printable(image['note'])}")


def image_row(image: Json) -> Sequence[str]:
    """Return the cells of one image's object of ``status.json``."""
    layers: Sequence[Json] = image["layers"]
    ages = [layer["oldest_dirty_seconds"] for layer in layers if layer["oldest_dirty_seconds"] is not None]
    dirty = [layer["dirty_bytes"] for layer in layers]
    replicas = [str(replica.get("state", "?")) for layer in layers for replica in layer["replicas"]]
    return (
        image["name"],
        readable_size(image["size"]),
        "yes" if image["open"] else "no",
        image["state"],
        " ".join(f"{layer['index']}:{layer['plugin']}" for layer in reversed(layers)) or "-",
        "?" if None in dirty else readable_size(sum(dirty)),
        f"{max(ages):.0f}s" if ages else "-",
        _hit_rate(layers),
        ", ".join(replicas) or "-",
    )


def _hit_rate(layers: Sequence[Json]) -> str:
    """Return the share of reads that some layer answered: what the lowest one missed, the backend had to answer."""
    hits = sum(layer["hits"] for layer in layers)
    reads = hits + sum(layer["misses"] for layer in layers if layer["index"] == 0)
    return f"{hits / reads:.0%}" if reads else "-"
