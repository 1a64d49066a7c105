"""The status objects as text for people.

Owns columns and headings. Pure: it must not know where the figures come from.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from fusecache.api.units import readable_size
from fusecache.control.status import Json
from fusecache.metrics.text import printable

INCOMPLETE = "The backend does not answer: images that are not open may be missing here."

_IMAGE_HEAD = ("IMAGE", "SIZE", "OPEN", "STATE")
_LAYER_HEAD = ("LAYER", "PLUGIN", "STATE", "DIRTY", "USED", "OF", "OLDEST", "HITS", "MISSES", "WRITES", "ERRORS")


def mount_text(mount: Json) -> Iterator[str]:
    """Yield the whole mount's status: what it is, its images, the commands under way; in pieces, some of them empty."""
    head = [(key, printable(str(mount[key]))) for key in ("version", "pid", "mountpoint", "backend")]
    yield from _table(head)
    yield "\n"
    yield from _table(_image_rows(mount["images"]))
    if notes := note_lines(mount["images"]):
        yield "\n"
        yield from (f"{note}\n" for note in notes)
    if not mount["complete"]:
        yield f"\n{INCOMPLETE}\n"
    if mount["commands"]:
        rows = [
            (c["command"], "-" if c["image"] is None else printable(c["image"]), c["since"]) for c in mount["commands"]
        ]
        yield "\n"
        yield from _table([("COMMAND", "IMAGE", "SINCE"), *rows])


def image_text(image: Json) -> Iterator[str]:
    """Yield one image's status, in pieces."""
    yield from _table(_image_rows([image]))
    yield from (f"{note}\n" for note in note_lines([image]))


def note_lines(images: Iterable[Json]) -> list[str]:
    """Return a line for each image of which something is not as usual."""
    return [f"{printable(image['name'])}: {printable(image['note'])}" for image in images if image["note"]]


def _image_rows(images: Iterable[Json]) -> Iterator[Sequence[str]]:
    yield _IMAGE_HEAD + _LAYER_HEAD
    for image in images:
        first = (printable(image["name"]), readable_size(image["size"]), _yes(image["open"]), image["state"])
        layers = [_layer_cells(layer) for layer in image["layers"]] or [("-",) * len(_LAYER_HEAD)]
        yield first + layers[0]
        yield from (("",) * len(first) + layer for layer in layers[1:])


def _layer_cells(layer: Json) -> tuple[str, ...]:
    oldest = layer["oldest_dirty_seconds"]
    return (
        str(layer["index"]),
        layer["plugin"],
        layer["state"],
        "?" if layer["dirty_bytes"] is None else readable_size(layer["dirty_bytes"]),
        *(readable_size(layer[key]) for key in ("used_bytes", "size_bytes")),
        "-" if oldest is None else f"{oldest:.0f}s",
        *(str(layer[key]) for key in ("hits", "misses", "writes", "errors")),
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _table(rows: Iterable[Sequence[str]]) -> Iterator[str]:
    known: list[Sequence[str]] = []
    widths: list[int] = []
    for row in rows:
        known.append(row)
        widths = [max(pair) for pair in zip_longest(widths, map(len, row), fillvalue=0)]
        yield ""
    for row in known:
        yield "  ".join(map(str.ljust, row, widths)).rstrip() + "\n"
