"""Sizes, durations and rates as people write them.

Owns the one grammar that the config, the control files and the command line share. Pure.
"""

import re
from typing import Final

_BINARY_UNITS: Final[dict[str, int]] = {f"{p}iB": 1 << 10 * n for n, p in enumerate("KMGTP", 1)}
_SIZE_UNITS: Final[dict[str, int]] = {
    "": 1,
    "B": 1,
    **_BINARY_UNITS,
    **{f"{p}B": int(1000**n) for n, p in enumerate("KMGTP", 1)},
    "kB": 1000,
}
_DURATION_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY: Final = re.compile(r"(\d{1,30}(?:\.\d{1,30})?)(?: ?([A-Za-z]+))?", re.ASCII)

SIZE_HELP: Final = 'a size such as "4096", "64KiB", "256MiB" or "20GiB"'
DURATION_HELP: Final = 'a duration such as "50us", "5ms", "5s", "2min" or "1h"'
RATE_HELP: Final = 'a rate in bytes per second such as "50MiB", "0" (paused) or "max"'


def parse_size(text: str) -> int:
    """Return the bytes that *text* names; units are B, KiB … PiB (powers of 1024), kB, MB … PB (powers of 1000), or
    none.

    Raises:
        ValueError: the text is not a size, or not a whole number of bytes.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None or (match[2] or "") not in _SIZE_UNITS:
        raise ValueError(f"found {text!r}, allowed: {SIZE_HELP}")
    number, unit = match.groups("")
    if "." not in number:
        return int(number) * _SIZE_UNITS[unit]
    value = float(number) * _SIZE_UNITS[unit]
    if value != int(value):
        raise ValueError(f"found {text!r}, allowed: {SIZE_HELP}")
    return int(value)


def parse_duration(text: str) -> float:
    """Return the seconds that *text* names; a unit (us, ms, s, min, h, d) is required, except for ``0``.

    Raises:
        ValueError: the text is not a duration.
    """
    match = _QUANTITY.fullmatch(text)
    if text == "0":
        return 0.0
    if match is None or match[2] not in _DURATION_UNITS:
        raise ValueError(f"found {text!r}, allowed: {DURATION_HELP}")
    return float(match[1]) * _DURATION_UNITS[match[2]]


def parse_rate(text: str) -> int | None:
    """Return bytes per second; 0 for a pause, None for ``max``.

    Raises:
        ValueError: the text is not a rate.
    """
    if text == "max":
        return None
    try:
        return parse_size(text)
    except ValueError:
        raise ValueError(f"found {text!r}, allowed: {RATE_HELP}") from None


def format_size(size: int) -> str:
    """Return *size* with the largest binary unit that loses nothing: ``parse_size`` gives it back."""
    for unit, scale in reversed(_BINARY_UNITS.items()):
        if size and size % scale == 0:
            return f"{size // scale}{unit}"
    return str(size)


def readable_size(size: int) -> str:
    """Return *size* for people, not below 0: rounded to one place behind the point, with none where it is exact."""
    if size < 1024:
        return f"{size}B" if size else "0"
    units = list(_BINARY_UNITS.items())
    unit, scale = next((pair for pair in units if size < 1023.95 * pair[1]), units[-1])
    return f"{size // scale}{unit}" if size % scale == 0 else f"{size / scale:.1f}{unit}"


def format_rate(rate: int | None) -> str:
    """Return the text that :func:`parse_rate` reads back."""
    return "max" if rate is None else format_size(rate)
