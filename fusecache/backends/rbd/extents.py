"""Which parts of an image hold data, as the cluster's object map tells.

Owns how much effort that may cost. It must not know requests or locks. All functions block: they run on a thread.

The object map (feature fast-diff) says of every object whether it exists: 0.25 microseconds for each. Without it, or
where librbd has marked it invalid, every object would have to be asked, so everything is DATA then. The map of a
clone's parent may be missing too, which shows only in the time that an answer takes.
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any, Final

import rbd

from fusecache.api import Extent, ExtentKind, Span
from fusecache.api.ranges import merge_extents

_FIRST_PASS: Final = 256
_LARGEST_PASS: Final = 16384
"""Objects of one pass. librbd calls back for each that exists, and each call takes the interpreter's lock."""

_QUICK: Final = 0.05
"""A pass that took less is followed by a larger one, in seconds."""

_EFFORT: Final = 0.5
"""No pass begins this many seconds after the first; the rest is DATA."""

_INVALID: Final = rbd.RBD_FLAG_OBJECT_MAP_INVALID | rbd.RBD_FLAG_FAST_DIFF_INVALID


def survey(handle: Any, object_size: int, offset: int, length: int) -> list[Extent]:
    """Describe ``[offset, offset + length)`` of an open image or snapshot: extents in order that cover it exactly.

    Holes are whole objects that neither the image nor, under a clone, its parents have.

    Args:
        handle: an open ``rbd.Image``.
        object_size: bytes per object.
    """
    if not _is_cheap(handle):
        return [Extent(offset, length, ExtentKind.DATA)]
    at, end = offset, offset + length
    found: list[Extent] = []
    objects = _FIRST_PASS
    now = time.monotonic()
    deadline = now + _EFFORT
    while at < end and now < deadline:
        began, piece = now, min(objects * object_size, end - at)
        found += covering(Span(at, at + piece), _existing(handle, at, piece))
        at += piece
        now = time.monotonic()
        if now - began < _QUICK:
            objects = min(2 * objects, _LARGEST_PASS)
    found.append(Extent(at, end - at, ExtentKind.DATA))
    return list(merge_extents(found))


def covering(whole: Span, data: Iterable[Span]) -> Iterator[Extent]:
    """Yield extents that cover *whole*: *data*, in any order and cut at its ends, and holes between. Pure."""
    at = whole.start
    for part in sorted(data):
        start, end = max(part.start, at), min(part.end, whole.end)
        if start < end:
            yield Extent(at, start - at, ExtentKind.HOLE)
            yield Extent(start, end - start, ExtentKind.DATA)
            at = end
    yield Extent(at, whole.end - at, ExtentKind.HOLE)


def _is_cheap(handle: Any) -> bool:
    return bool(handle.features() & rbd.RBD_FEATURE_FAST_DIFF) and not handle.flags() & _INVALID


def _existing(handle: Any, offset: int, length: int) -> list[Span]:
    found: list[Span] = []

    def note(start: int, size: int, exists: bool) -> None:
        if exists:
            found.append(Span(start, start + size))

    handle.diff_iterate(offset, length, None, note, include_parent=True, whole_object=True)
    return found
