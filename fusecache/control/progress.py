"""How far a write-back has come.

Owns how bytes left, rate and time left are computed from the layers' figures, and the line that says so. It must
not know which command asked for the write-back.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from fusecache.api.units import readable_size
from fusecache.control.service import OpenImage
from fusecache.control.view import status_of

IDLE = "idle"
"""The line where nothing is being written back."""

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at how much is written back."""
_LATELY: Final = 10.0
"""Seconds of which a rate tells."""
_STILL: Final = 5.0
"""Seconds without a byte after which that is told instead of a rate."""

Figures: TypeAlias = Mapping[tuple[str, int], int]
"""Bytes by image key and layer index."""


def written_by(images: Iterable[OpenImage]) -> Figures:
    """Return what each layer of *images* has written back since it was opened."""
    return {
        (image.info.key, layer.index): status_of(layer).writeback_bytes for image in images for layer in image.layers
    }


def left_of(images: Iterable[OpenImage], layer: int | None) -> Figures:
    """Return what is dirty still in each layer of *images*, or in the one of that index alone."""
    return {
        (image.info.key, each.index): status_of(each).dirty_bytes
        for image in images
        for each in image.layers
        if layer in (None, each.index)
    }


class Pace:
    """What one write-back has done lately. Every :meth:`look` is a moment; those of the last ten seconds count.

    Args:
        now: when it began, in seconds of any clock.
        written: what had been written back by then since any time before.
    """

    def __init__(self, now: float, written: Figures) -> None:
        self._began = now
        self._seen = deque([(now, written)])
        self._moved: dict[tuple[str, int], float] = {}

    def look(self, now: float, written: Figures) -> None:
        """Take note of what is written back by now."""
        before = self._seen[-1][1]
        for key, count in written.items():
            if count != before.get(key, 0):
                self._moved[key] = now
        # However often somebody asks.
        if len(self._seen) > 1 and self._seen[-1][0] - self._seen[-2][0] < LOOK_EVERY / 2:
            self._seen.pop()
        self._seen.append((now, written))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _LATELY:
            self._seen.popleft()

    def text(self, left: Figures) -> str:
        """Return, as of the last look, ``LEFT left, RATE/s, SECONDS s left``, the seconds ``?`` while they are not
        known; or ``LEFT left, nothing has moved for SECONDS s``, where that is so for five seconds.

        Args:
            left: bytes that are dirty still, of the layers that are meant.
        """
        (since, before), (now, after) = self._seen[0], self._seen[-1]
        total = sum(left.values())
        still = now - max((self._moved.get(key, self._began) for key in left), default=now)
        if total and still >= _STILL:
            return f"{readable_size(total)} left, nothing has moved for {still:.0f} s"
        # A layer that was reopened meanwhile counts from zero again.
        written = sum(max(0, after.get(key, 0) - before.get(key, 0)) for key in left)
        rate = int(written / (now - since)) if now > since else 0
        seconds = str(math.ceil(total / rate)) if rate else "?" if total else "0"
        return f"{readable_size(total)} left, {readable_size(rate)}/s, {seconds} s left"
