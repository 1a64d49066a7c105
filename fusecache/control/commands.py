"""The grammar of the writable control files.

Owns what may be written to which file, and what it means. Pure: it must not know whether the image or the layer that
a command names exists, nor how a command is carried out.

The grammar is strict, because a misunderstood command may drop data: words are separated by one space, a layer index
is a decimal number without sign or leading zeroes, and nothing but one newline may follow.
"""

import enum
import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from fusecache.api.errors import BadCommand
from fusecache.api.units import format_rate, parse_rate

MAX_COMMAND: Final = 4096
"""Bytes in the longest command, its newline included."""

_LAYER: Final = re.compile(r"0|[1-9][0-9]{0,8}", re.ASCII)
_QUOTED: Final = 100
_LAYER_HELP: Final = "a layer index such as 0"


class CommandFile(enum.Enum):
    """The kinds of control files that take commands. The value is the file's name, after ``images/IMAGE/`` for all
    but the first."""

    FLUSH_ALL = ".control/flush"
    FLUSH = "flush"
    DISCARD = "discard"
    SNAPSHOT = "snapshot"
    WRITEBACK_RATE = "writeback_rate"


@dataclass(frozen=True, slots=True)
class Flush:
    """Write dirty data back: one layer's to the level below, or with ``layer`` None everything into the backend."""

    layer: int | None

    def __str__(self) -> str:
        return f"flush {'all' if self.layer is None else self.layer}"


@dataclass(frozen=True, slots=True)
class Discard:
    """Drop a layer's content.

    Attributes:
        dirty: its dirty data too.
        torn: even where that leaves the level below between two points of its write order.
    """

    layer: int
    dirty: bool = False
    torn: bool = False

    def __str__(self) -> str:
        return f"discard {self.layer}{' dirty' if self.dirty else ''}{' torn' if self.torn else ''}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Write back, then make a snapshot in the backend."""

    name: str

    def __str__(self) -> str:
        return f"snapshot {self.name}"


@dataclass(frozen=True, slots=True)
class SetRate:
    """Set the bytes per second of a layer's background write-back: 0 pauses it, None is no limit."""

    layer: int
    rate: int | None

    def __str__(self) -> str:
        return f"writeback_rate {format_rate(self.rate)}"


Command: TypeAlias = Flush | Discard | Snapshot | SetRate


def parse(file: CommandFile, content: bytes, layer: int | None = None) -> Command:
    """Return the command that *content*, the bytes of one ``write(2)`` to a control file, stands for.

    Args:
        layer: the layer index in the path of a ``writeback_rate``.

    Raises:
        BadCommand: it was not understood; the message says what was found and what is allowed.
    """
    if len(content) > MAX_COMMAND:
        raise BadCommand(f"{file.value}: found {len(content)} bytes, allowed: {MAX_COMMAND}")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise BadCommand(f"{file.value}: found {_quoted(repr(content))}, which is not UTF-8") from None
    text = text.removesuffix("\n")
    match file:
        case CommandFile.FLUSH_ALL:
            return _parse_flush_all(text)
        case CommandFile.FLUSH:
            return _parse_flush(text)
        case CommandFile.DISCARD:
            return _parse_discard(text)
        case CommandFile.SNAPSHOT:
            return _parse_snapshot(text)
        case CommandFile.WRITEBACK_RATE:
            assert layer is not None
            return _parse_rate(text, layer)


def _parse_flush_all(text: str) -> Flush:
    if text != "all":
        raise _bad(CommandFile.FLUSH_ALL, text, '"all"')
    return Flush(None)


def _parse_flush(text: str) -> Flush:
    if text == "all":
        return Flush(None)
    if _LAYER.fullmatch(text) is None:
        raise _bad(CommandFile.FLUSH, text, f'"all", or {_LAYER_HELP}')
    return Flush(int(text))


def _parse_discard(text: str) -> Discard:
    layer, *words = text.split(" ")
    if _LAYER.fullmatch(layer) is None or words not in ([], ["dirty"], ["dirty", "torn"]):
        raise _bad(CommandFile.DISCARD, text, f'{_LAYER_HELP}, alone or followed by "dirty" or "dirty torn"')
    return Discard(int(layer), dirty="dirty" in words, torn="torn" in words)


def _parse_snapshot(text: str) -> Snapshot:
    if not text or not text.isprintable() or any(c in " /@" for c in text) or text in (".", ".."):
        raise _bad(CommandFile.SNAPSHOT, text, 'a name of printable characters without blanks, "/" and "@"')
    return Snapshot(text)


def _parse_rate(text: str, layer: int) -> SetRate:
    try:
        # A blank may stand before the unit, so one at the end may look like one before no unit.
        if not text.endswith(" "):
            return SetRate(layer, parse_rate(text))
    except (ValueError, OverflowError):
        pass
    raise _bad(CommandFile.WRITEBACK_RATE, text, 'bytes per second such as "50MiB", "0" or "max"')


def _bad(file: CommandFile, text: str, allowed: str) -> BadCommand:
    return BadCommand(f"{file.value}: found {_quoted(repr(text))}, allowed: {allowed}")


def _quoted(text: str) -> str:
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"
