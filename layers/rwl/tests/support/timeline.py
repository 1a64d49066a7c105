"""Every store of a run, on every device, and every ordering point, in one order.

Owns what a loss of power at any instant may leave on the devices. Pure; it must not know what the bytes mean, nor who
stores them.

**What survives.** Of a device, all stores that an ordering point before the instant covers. Of the others, each unit
(512 bytes of an SSD: a sector; 8 bytes of persistent memory) is found as any one of them left it, or as before all of
them, whatever its neighbours are: so any subset of the stores is there, in any order, each torn.

**The death of the process** takes nothing away: what was stored is in the kernel's page cache, or on the medium.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

SECTOR: Final = 512
"""What an SSD writes wholly or not at all."""
WORD: Final = 8
"""What persistent memory stores wholly or not at all."""


@dataclass(frozen=True, slots=True)
class Store:
    """Units of *device* from *offset* on, as they are after the store: with what was stored in them before."""

    device: str
    offset: int
    data: bytes
    number: int


@dataclass(frozen=True, slots=True)
class Ordered:
    """From here on the stores *numbers* of *device* are durable."""

    device: str
    numbers: Sequence[int]


@dataclass(frozen=True, slots=True)
class Resized:
    """*device* has another length from here on; all that was stored is durable."""

    device: str
    size: int


Event: TypeAlias = Store | Ordered | Resized
Choice: TypeAlias = Callable[[random.Random, int], int]
"""Which of so many versions of a unit is found; 0 is the oldest."""


class Timeline:
    """The events of all devices.

    Attributes:
        events: in their order; an *instant* is a place between two of them, ``0 <= instant <= len(events)``.
        initial: of each device, the durable bytes it began with.
        die_at: the instant at which the process dies; None is never.
        lives: how many processes there have been; what one that is dead does has no effect.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.initial: dict[str, bytes] = {}
        self.units: dict[str, int] = {}
        self.die_at: int | None = None
        self.lives = 0

    @property
    def now(self) -> int:
        """The instant after all that has happened."""
        return len(self.events)

    @property
    def dying(self) -> bool:
        """The present process is dead, or would be at the next event."""
        return self.die_at is not None and self.now >= self.die_at

    def begin_life(self) -> int:
        """Begin a process and return its number; the one before it is dead from now on."""
        self.lives += 1
        self.die_at = None
        return self.lives

    def add(self, life: int, event: Event) -> bool:
        """Take an event of the process *life*; False if that is dead, and nothing happens any more."""
        if life != self.lives or self.dying:
            return False
        self.events.append(event)
        return True


class Device:
    """The bytes of one device, as all that was stored so far shows them.

    Args:
        content: durable bytes to begin with.
        unit: :data:`SECTOR` or :data:`WORD`.

    Attributes:
        content: what a reader finds; writable only through the methods.
        unordered: the numbers of the stores that no ordering point covers yet.
        changed: called after every store.
    """

    def __init__(self, timeline: Timeline, name: str, content: bytes, unit: int) -> None:
        if name in timeline.initial:
            raise ValueError(f"found a second device {name!r}, allowed: one of a name")
        timeline.initial[name] = content
        timeline.units[name] = unit
        self.timeline = timeline
        self.name = name
        self.unit = unit
        self.content = bytearray(content)
        self.unordered: list[int] = []
        self.changed: Callable[[], None] = lambda: None
        self._stores = 0

    def store(self, life: int, offset: int, data: bytes) -> int | None:
        """Store *data*; return the store's number, or None if the process is dead and nothing was stored."""
        start = offset - offset % self.unit
        end = min(offset + len(data) + -(offset + len(data)) % self.unit, len(self.content))
        units = self.content[start:end]
        units[offset - start : offset - start + len(data)] = data
        number = self._stores
        if not self.timeline.add(life, Store(self.name, start, bytes(units), number)):
            return None
        self.content[start:end] = units
        self._stores = number + 1
        self.unordered.append(number)
        self.changed()
        return number

    def order(self, life: int, numbers: Sequence[int]) -> bool:
        """Make those stores durable; False if the process is dead and they are not."""
        if not self.timeline.add(life, Ordered(self.name, tuple(numbers))):
            return False
        covered = set(numbers)
        self.unordered = [number for number in self.unordered if number not in covered]
        return True

    def resize(self, life: int, size: int) -> None:
        """Set the length; what is cut off is gone, what is added is zero."""
        if self.timeline.add(life, Resized(self.name, size)):
            self.content = _fitted(self.content, size)
            self.unordered.clear()


def oldest(rng: random.Random, versions: int) -> int:
    """Nothing that was not ordered has arrived."""
    return 0


def newest(rng: random.Random, versions: int) -> int:
    """Everything has arrived."""
    return versions - 1


def any_version(rng: random.Random, versions: int) -> int:
    """Each unit goes its own way."""
    return rng.randrange(versions)


def mostly_new(rng: random.Random, versions: int) -> int:
    """Nearly everything has arrived; a few units have not."""
    return versions - 1 if rng.random() < 0.95 else rng.randrange(versions)


def mostly_old(rng: random.Random, versions: int) -> int:
    """Hardly anything has arrived; a few units have."""
    return 0 if rng.random() < 0.95 else rng.randrange(versions)


CHOICES: Final[Sequence[Choice]] = (oldest, newest, any_version, mostly_new, mostly_old)


def after_power_loss(
    timeline: Timeline, instant: int, rng: random.Random, names: Sequence[str] | None = None
) -> Mapping[str, bytes]:
    """Return what a loss of power at *instant* may leave on each device: one of many ways, as *rng* chooses."""
    return {name: _one_device(timeline, name, instant, rng) for name in names or timeline.initial}


def durable(timeline: Timeline, name: str, instant: int) -> tuple[bytearray, list[Store]]:
    """Return a device's bytes that nothing can take away at *instant*, and the stores that may be there or not."""
    content = bytearray(timeline.initial[name])
    pending: list[Store] = []
    for event in timeline.events[:instant]:
        if event.device != name:
            continue
        if isinstance(event, Store):
            pending.append(event)
            continue
        covered = set(event.numbers) if isinstance(event, Ordered) else {store.number for store in pending}
        for store in pending:
            if store.number in covered:
                content[store.offset : store.offset + len(store.data)] = store.data
        pending = [store for store in pending if store.number not in covered]
        if isinstance(event, Resized):
            content = _fitted(content, event.size)
    return content, pending


def _fitted(content: bytearray, size: int) -> bytearray:
    return content[:size] + bytes(max(0, size - len(content)))


def _one_device(timeline: Timeline, name: str, instant: int, rng: random.Random) -> bytes:
    content, pending = durable(timeline, name, instant)
    if rng.random() < 0.4:
        # Whole stores are missing, as of a drive that writes what it likes first.
        likelihood = rng.choice((0.1, 0.5, 0.9))
        pending = [store for store in pending if rng.random() < likelihood]
    choose = rng.choice(CHOICES)
    for offset, versions in _versions(pending, content, timeline.units[name]):
        chosen = versions[choose(rng, len(versions))]
        content[offset : offset + len(chosen)] = chosen
    return bytes(content)


def _versions(pending: Sequence[Store], content: bytearray, unit: int) -> Iterator[tuple[int, list[bytes]]]:
    """Yield each unit that a store touches, and what it may hold: as it was, then after each store."""
    versions: dict[int, list[bytes]] = {}
    for store in pending:
        for at in range(0, len(store.data), unit):
            place = store.offset + at
            held = versions.setdefault(place, [bytes(content[place : place + unit])])
            held.append(store.data[at : at + unit])
    yield from sorted(versions.items())
