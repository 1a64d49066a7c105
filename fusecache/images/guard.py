"""The one range guard of an open image: overlapping requests follow each other in the order of their arrival.

Owns which requests are in flight and which wait for which. Pure; it must not know what a request does.

Every hold that must wait counts the earlier holds it overlaps, and each of those lists the later ones it blocks; a
release counts down and starts whatever reaches zero. So there is no queue to search, no later request overtakes an
earlier one it overlaps, and requests that do not overlap never meet. Small holds are found by the megabyte they lie
in, large ones in a list of their own.
"""

from collections.abc import Iterable, Iterator
from typing import Final

EVERYTHING: Final = 1 << 64
"""An end beyond every volume: a hold up to it is a barrier."""
BEYOND: Final = EVERYTHING - 1
"""An offset beyond every volume: a hold from it on meets nothing but barriers."""

_CHUNK_BITS: Final = 20
_NARROW_CHUNKS: Final = 2


class Hold:
    """A range ``[start, end)`` held, or waited for. Holds conflict where they overlap, unless both are shared."""

    __slots__ = ("_blocked", "_blockers", "end", "exclusive", "released", "start")

    def __init__(self, start: int, end: int, *, exclusive: bool) -> None:
        self.start = start
        self.end = end
        self.exclusive = exclusive
        self.released = False
        self._blockers = 0
        self._blocked: list[Hold] = []

    def granted(self) -> None:
        """Called once when a hold that had to wait is held. Must not raise."""
        raise NotImplementedError

    def abandoned(self, error: BaseException) -> None:
        """Called by whoever called :meth:`RangeGuard.abandon`. Must not raise."""
        raise NotImplementedError

    def __repr__(self) -> str:
        kind = "exclusive" if self.exclusive else "shared"
        state = "released" if self.released else f"waits for {self._blockers}" if self._blockers else "held"
        return f"<Hold [{self.start}, {self.end}) {kind}, {state}>"


class RangeGuard:
    """Grants holds.

    Attributes:
        active: how many holds are held or waiting. While it is zero nothing needs to be asked.
    """

    __slots__ = ("_chunks", "_granting", "_ready", "_wide", "active")

    def __init__(self) -> None:
        self.active = 0
        self._chunks: dict[int, list[Hold]] = {}
        self._wide: list[Hold] = []
        self._ready: list[Hold] = []
        self._granting = False

    def acquire(self, hold: Hold) -> bool:
        """Take *hold*; True when it is held at once, False when :meth:`Hold.granted` will tell."""
        first = hold.start >> _CHUNK_BITS
        if first == (hold.end - 1) >> _CHUNK_BITS and not self._wide and first not in self._chunks:
            # Nothing is near it, as for almost every request.
            self._chunks[first] = [hold]
            self.active += 1
            return True
        for other in self._conflicts(hold):
            other._blocked.append(hold)
            hold._blockers += 1
        self.active += 1
        chunks = _chunks_of(hold)
        if chunks is None:
            self._wide.append(hold)
        else:
            for chunk in chunks:
                self._chunks.setdefault(chunk, []).append(hold)
        return not hold._blockers

    def release(self, hold: Hold) -> None:
        """Give *hold* up, held or still waiting, and grant what waited only for it."""
        assert not hold.released
        hold.released = True
        self.active -= 1
        first = hold.start >> _CHUNK_BITS
        if first == (hold.end - 1) >> _CHUNK_BITS:
            self._leave(first, hold)
        else:
            chunks = _chunks_of(hold)
            if chunks is None:
                self._wide.remove(hold)
            else:
                for chunk in chunks:
                    self._leave(chunk, hold)
        if hold._blocked:
            for blocked in hold._blocked:
                blocked._blockers -= 1
                if not blocked._blockers and not blocked.released:
                    self._ready.append(blocked)
            hold._blocked.clear()
            if not self._granting:
                self._grant()

    def abandon(self) -> list[Hold]:
        """Release all holds that wait and grant none of them; not to be called from :meth:`Hold.granted`.

        Returns all holds there were, in no particular order. Those that are not released were held, and still are:
        what holds them may be going on.
        """
        holds = [*self._narrow(), *self._wide]
        for hold in holds:
            hold._blocked.clear()
        for hold in holds:
            if hold._blockers:
                hold._blockers = 0
                self.release(hold)
        return holds

    def _leave(self, chunk: int, hold: Hold) -> None:
        holds = self._chunks[chunk]
        if len(holds) == 1:
            del self._chunks[chunk]
        else:
            holds.remove(hold)

    def _grant(self) -> None:
        # A granted request may end at once and release; a loop instead of recursion keeps a long chain off the stack.
        self._granting = True
        try:
            while self._ready:
                hold = self._ready.pop(0)
                if not hold.released:
                    hold.granted()
        finally:
            self._granting = False

    def _narrow(self) -> Iterable[Hold]:
        return {id(hold): hold for holds in self._chunks.values() for hold in holds}.values()

    def _conflicts(self, hold: Hold) -> Iterator[Hold]:
        chunks = _chunks_of(hold)
        if chunks is None:
            yield from _overlapping(self._narrow(), hold)
        else:
            first = chunks[0]
            for chunk in chunks:
                for other in _overlapping(self._chunks.get(chunk, ()), hold):
                    # One that also lies in the first chunk was met there.
                    if chunk == first or other.start >> _CHUNK_BITS > first:
                        yield other
        yield from _overlapping(self._wide, hold)


def _chunks_of(hold: Hold) -> range | None:
    first, last = hold.start >> _CHUNK_BITS, (hold.end - 1) >> _CHUNK_BITS
    return range(first, last + 1) if last - first < _NARROW_CHUNKS else None


def _overlapping(others: Iterable[Hold], hold: Hold) -> Iterator[Hold]:
    start, end, exclusive = hold.start, hold.end, hold.exclusive
    for other in others:
        if other.start < end and start < other.end and (exclusive or other.exclusive):
            yield other
