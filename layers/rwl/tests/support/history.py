"""What each block of an image may hold, known from what its writer was told.

Owns the writer's log and the rules that any content found later is held against. Pure; it must not know layers, or how
the content was come by.

All rules go by sectors of 512 bytes and by the *instants* of a timeline: what is found after a crash at one is judged
by what was acknowledged before it.

- **After the death of the process** all that was acknowledged is there, and any of the changes that were under way.
- **After a loss of power** all that a flush covers is there that was acknowledged (with ``persist = "write"``, all that
  was acknowledged), and of the others a prefix of the order in which they were appended. Where changes ran beside each
  other that order is not known, but a change that was acknowledged before another one began comes first. So some set of
  changes must explain the content that has no change without those before it.
- **At every instant the level below** equals all changes of the generations before one generation, and any of that
  generation's. A flush ends a generation; the layer may end more, which only promises more.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

SECTOR: Final = 512
_NEVER: Final = 1 << 62


class NotAllowed(AssertionError):
    """The content is none that the history allows."""


@dataclass(eq=False)
class Change:
    """One write, zeroing or discard.

    Attributes:
        number: from 0, in the order in which they began.
        offset, length: of the image.
        began, ended: ticks of the history's own clock; not acknowledged: never ended.
        began_at, ended_at: instants of the timeline.
        below_at: the instant from which on the level below has it.
    """

    number: int
    offset: int
    length: int
    began: int
    began_at: int
    ended: int = _NEVER
    ended_at: int = _NEVER
    below_at: int = _NEVER

    def __str__(self) -> str:
        end = "not acknowledged" if self.ended == _NEVER else f"acknowledged at {self.ended_at}"
        return f"change {self.number} [{self.offset}, {self.offset + self.length}), begun at {self.began_at}, {end}"


@dataclass(eq=False)
class Flush:
    """One flush; ticks and instants as of a change."""

    called: int
    ended: int = _NEVER
    ended_at: int = _NEVER


@dataclass(frozen=True, slots=True)
class _Link:
    """A sector's content after a change; the first of a chain has none before it."""

    change: Change | None
    content: bytes


class History:
    """What one writer did to an image, and was told.

    Changes that overlap must not run beside each other.

    Args:
        base: the content in the beginning.
    """

    def __init__(self, base: bytes) -> None:
        self.size = len(base)
        self.changes: list[Change] = []
        self.flushes: list[Flush] = []
        self._chains = [[_Link(None, content)] for content in _sectors(base)]
        self._tick = 0

    # ---- the log ----

    def begin(self, offset: int, data: bytes, instant: int) -> Change:
        """Note that *data* is about to be written at *offset*; zeroes stand for what is zeroed or discarded."""
        change = Change(len(self.changes), offset, len(data), self._next(), instant)
        self.changes.append(change)
        first = offset // SECTOR
        for number, content in enumerate(_sectors(data)):
            self._chains[first + number].append(_Link(change, content))
        return change

    def end(self, change: Change, instant: int) -> None:
        """Note that *change* was acknowledged."""
        change.ended, change.ended_at = self._next(), instant

    def begin_flush(self) -> Flush:
        """Note that a flush is about to be asked for."""
        self.flushes.append(Flush(self._next()))
        return self.flushes[-1]

    def end_flush(self, flush: Flush, instant: int) -> None:
        """Note that *flush* was acknowledged."""
        flush.ended, flush.ended_at = self._next(), instant

    def acknowledged(self) -> Sequence[Change]:
        """Return what is acknowledged by now: what a write-back that begins now is about."""
        return [change for change in self.changes if change.ended != _NEVER]

    def written_back(self, changes: Iterable[Change], instant: int) -> None:
        """Note that a write-back of *changes* was acknowledged."""
        for change in changes:
            change.below_at = min(change.below_at, instant)

    def resize(self, size: int) -> None:
        """Note that the image has another size; nothing else was under way."""
        self.size = size
        count = -(-size // SECTOR)
        del self._chains[count:]
        if size % SECTOR and len(self._chains) == count:
            kept = size % SECTOR
            self._chains[-1] = [
                _Link(link.change, link.content[:kept] + bytes(SECTOR - kept)) for link in self._chains[-1]
            ]
        self._chains += [[_Link(None, bytes(SECTOR))] for _ in range(count - len(self._chains))]

    def current(self) -> bytes:
        """Return the content with all changes, acknowledged or not."""
        return b"".join(chain[-1].content for chain in self._chains)[: self.size]

    # ---- the rules ----

    def expect_prefix(self, content: bytes, instant: int, *, flushed_only: bool) -> set[Change]:
        """Check the content after a crash at *instant*; return the fewest changes that explain it.

        Args:
            flushed_only: only what a flush covers must be there; else all that was acknowledged.

        Raises:
            NotAllowed: no set of changes explains it that has all that must be there, and none without those before it.
        """
        self._expect_size(content)
        there = {change for change in self.changes if self._must(change, instant, flushed_only)}
        found = list(enumerate(_sectors(content)))
        before = -1
        while len(there) != before:
            before = len(there)
            latest = max((change.began for change in there), default=-1)
            there.update(change for change in self.changes if change.ended < latest)
            for number, value in found:
                self._explain(number, value, there, instant)
        return there

    def _explain(self, number: int, value: bytes, there: set[Change], instant: int) -> None:
        """Add to *there* the fewest changes of a sector with which it holds *value*."""
        chain = self._chains[number]
        least = max((at for at, link in enumerate(chain) if link.change in there), default=0)
        for link in chain[1 : least + 1]:
            assert link.change is not None
            there.add(link.change)
        for link in chain[least:]:
            if link.change is not None:
                if link.change.began_at > instant:
                    break
                there.add(link.change)
            if link.content == value:
                return
        raise NotAllowed(self._explanation(number, value, chain, least, instant))

    def _must(self, change: Change, instant: int, flushed_only: bool) -> bool:
        if change.ended_at > instant:
            return False
        return not flushed_only or any(
            flush.ended_at <= instant and change.ended < flush.called for flush in self.flushes
        )

    def resolve(self, there: set[Change], instant: int) -> None:
        """Go on after a crash: those changes are there, and all others never were."""
        tick = self._next()
        for change in there:
            if change.ended == _NEVER:
                change.ended, change.ended_at = tick, instant
        self.changes = [change for change in self.changes if change in there]
        self.flushes = [flush for flush in self.flushes if flush.ended != _NEVER]
        self._chains = [
            [link for link in chain if link.change is None or link.change in there] for chain in self._chains
        ]

    def expect_generation(self, content: bytes, instant: int, *, flushed: bool) -> int:
        """Check what the level below held at *instant*; return the oldest generation that it may have been at.

        Args:
            flushed: all that a flush covers must be there as well: for the content of the whole stack after a loss of
                power.

        Raises:
            NotAllowed: for no generation does it hold all before it, nothing after it, and what must be there.
        """
        self._expect_size(content)
        spans = {change: self._generations(change) for change in self.changes}
        found = list(enumerate(_sectors(content)))
        worst = ""
        for generation in range(len(self.flushes) + 1):
            for number, value in found:
                allowed, least = self._allowed(number, generation, spans, instant, flushed)
                if value not in allowed:
                    chain = self._chains[number]
                    explanation = self._explanation(number, value, chain, least, instant)
                    worst += f"\n  not generation {generation}: {explanation}"
                    break
            else:
                return generation
        raise NotAllowed(f"the content is of no one generation:{worst}")

    def _allowed(
        self, number: int, generation: int, spans: dict[Change, tuple[int, int]], instant: int, flushed: bool
    ) -> tuple[list[bytes], int]:
        """What a sector may hold at *generation*, and how much of its chain must be there."""
        chain = self._chains[number]
        least, end = 0, len(chain)
        for at, link in enumerate(chain):
            change = link.change
            if change is None:
                continue
            first, last = spans[change]
            if first > generation or change.began_at > instant:
                end = min(end, at)
            must = flushed and self._must(change, instant, True)
            if last < generation or change.below_at <= instant or must:
                least = at
        return [link.content for link in chain[least:end]], least

    def _generations(self, change: Change) -> tuple[int, int]:
        """The first and the last generation that a change can be of; flushes count from 0 as they were called."""
        first = sum(flush.ended < change.began for flush in self.flushes)
        last = sum(flush.called < change.ended for flush in self.flushes)
        return first, last

    # ---- messages ----

    def _expect_size(self, content: bytes) -> None:
        if len(content) != self.size:
            raise NotAllowed(f"found {len(content)} bytes, expected {self.size}")

    def _explanation(self, number: int, value: bytes, chain: Sequence[_Link], least: int, instant: int) -> str:
        seen = next((str(link.change or "the base") for link in reversed(chain) if link.content == value), "none of it")
        lines = [str(link.change or "the base") for link in chain]
        lines[least] += "  <- at least this must be there"
        listed = "\n    ".join(lines)
        return f"at instant {instant} the sector at {number * SECTOR} holds {seen}; its history:\n    {listed}"

    def _next(self) -> int:
        self._tick += 1
        return self._tick


def _sectors(content: bytes) -> Iterator[bytes]:
    for at in range(0, len(content), SECTOR):
        yield content[at : at + SECTOR].ljust(SECTOR, b"\0")
