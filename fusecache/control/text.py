"""The status objects as text for people.

Owns columns and headings. Pure: it must not know where the figures come from.
"""

from collections.abc import Iterable, Sequence

from fusecache.api.units import format_size
from fusecache.control.status import Json
from fusecache.metrics.text import printable

_IMAGE_HEAD = ("IMAGE", "SIZE", "OPEN", "STATE")
_LAYER_HEAD = ("LAYER", "PLUGIN", "STATE", "DIRTY", "USED", "OF", "OLDEST", "HITS", "MISSES", "WRITES", "ERRORS")


def mount_text(mount: Json) -> str:
    """Return the whole mount's status: what it is, its images, the commands under way."""
    head = [(key, printable(str(mount[key]))) for key in ("version", "pid", "mountpoint", "backend")]
    parts = [_table(head), _table(_image_rows(mount["images"]))]
    parts += [notes for notes in [note_lines(mount["images"])] if notes]
    if not mount["complete"]:
        parts.append(["The backend does not answer: images that are not open may be missing here."])
    if mount["commands"]:
        rows = [
            (c["command"], "-" if c["image"] is None else printable(c["image"]), c["since"]) for c in mount["commands"]
        ]
        parts.append(_table([("COMMAND", "IMAGE", "SINCE"), *rows]))
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def image_text(image: Json) -> str:
    """Return one image's status."""
    return "\n".join([*_table(_image_rows([image])), *note_lines([image])]) + "\n"


def note_lines(images: Iterable[Json]) -> list[str]:
    """Return a line for each image of which something is not as usual."""
    return [f"{printable(image['name'])}: {printable(image['note'])}" for image in images if image["note"]]


def _image_rows(images: Iterable[Json]) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [_IMAGE_HEAD + _LAYER_HEAD]
    for image in images:
        first = (printable(image["name"]), format_size(image["size"]), _yes(image["open"]), image["state"])
        layers = [_layer_cells(layer) for layer in image["layers"]] or [("-",) * len(_LAYER_HEAD)]
        rows.append(first + layers[0])
        rows += [("",) * len(first) + layer for layer in layers[1:]]
    return rows


def _layer_cells(layer: Json) -> tuple[str, ...]:
    oldest = layer["oldest_dirty_seconds"]
    return (
        str(layer["index"]),
        layer["plugin"],
        layer["state"],
        *(format_size(layer[key]) for key in ("dirty_bytes", "used_bytes", "size_bytes")),
        "-" if oldest is None else f"{oldest:.0f}s",
        *(str(layer[key]) for key in ("hits", "misses", "writes", "errors")),
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
