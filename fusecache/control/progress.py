"""How far a write-back has come.

Owns how bytes left, rate and time left are computed from the layers' figures, and the line that says so. It must
not know which command asked for the write-back.
"""

import math
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from fusecache.control.service import OpenImage
from fusecache.control.view import status_of

IDLE = "idle"
"""The line where nothing is being written back."""

Written: TypeAlias = Mapping[tuple[str, int], int]
"""Bytes written back so far, by image key and layer index."""


def written_by(images: Iterable[OpenImage]) -> Written:
    """Return what each layer of *images* has written back since it was opened."""
    return {
        (image.info.key, layer.index): status_of(layer).writeback_bytes for image in images for layer in image.layers
    }


def progress_line(images: Iterable[OpenImage], layer: int | None, before: Written, elapsed: float) -> str:
    """Return how far the write-back has come, as :func:`progress_text` says it.

    Args:
        images: whose write-back it is.
        layer: the layer index it is limited to, None for all.
        before: :func:`written_by` when the command began, *elapsed* seconds ago.
    """
    left = written = 0
    for image in images:
        for each in image.layers:
            if layer in (None, each.index):
                status = status_of(each)
                left += status.dirty_bytes
                # A layer that was reopened meanwhile counts from zero again.
                written += max(0, status.writeback_bytes - before.get((image.info.key, each.index), 0))
    return progress_text(left, written, elapsed)


def progress_text(left: int, written: int, elapsed: float) -> str:
    """Return ``LEFT bytes left, RATE bytes/s, SECONDS s left``; the seconds are ``?`` while nothing moves.

    Args:
        left: bytes that are dirty still.
        written: bytes written back since the command began, *elapsed* seconds ago.
    """
    rate = int(written / elapsed) if elapsed > 0 else 0
    seconds = str(math.ceil(left / rate)) if rate else "?" if left else "0"
    return f"{left} bytes left, {rate} bytes/s, {seconds} s left"
