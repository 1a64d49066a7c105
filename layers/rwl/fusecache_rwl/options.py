"""The options of an rwl layer.

Owns the layer's keys in the config: what each means, its range and its default, and how text becomes values. It must
not know files or devices: whether a directory exists shows when the pool is opened, as an image whose data lie on a
device that is gone has to say that, and not that its config is wrong.

Sizes, rates and durations are text in the units of :mod:`fusecache.api.units`; sizes and rates may be numbers of bytes.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fusecache.api.units import DURATION_HELP, RATE_HELP, SIZE_HELP, parse_duration, parse_rate, parse_size

MIN_SIZE: Final = 16 << 20
MAX_SIZE: Final = 1 << 50

_PATH_HELP: Final = "the absolute path of a directory"
_POOL_HELP: Final = f"{SIZE_HELP}, 16MiB to 1PiB"
_FRACTION_HELP: Final = 'a fraction of the pool from 0 to 1, such as 0.7 or "70%"'
_DEPTH_HELP: Final = "a whole number from 1 to 1024"
_STALL_HELP: Final = f'{DURATION_HELP}, or "never"'
_SWITCH_HELP: Final = "true or false"
_PERCENT: Final = re.compile(r"(\d{1,3}(?:\.\d{1,9})?) ?%", re.ASCII)


def _wrong(value: object, allowed: str) -> ValueError:
    # As repr: the core shows it as it stands in the file.
    return ValueError(f"found {value!r}, allowed: {allowed}")


def _quantity(
    parse: Callable[[str], float | None],
    allowed: str,
    *,
    least: float = 0,
    most: float = math.inf,
    number: bool = False,
) -> BeforeValidator:
    """Read text with *parse*, and take a whole number for itself where *number* says so; None has no range."""

    def validate(value: object) -> float | None:
        if isinstance(value, str):
            try:
                quantity = parse(value)
            except ValueError:
                raise _wrong(value, allowed) from None
        elif number and isinstance(value, int) and not isinstance(value, bool):
            quantity = value
        else:
            raise _wrong(value, allowed)
        if quantity is not None and not least <= quantity <= most:
            raise _wrong(value, allowed)
        return quantity

    return BeforeValidator(validate)


def _path(value: object) -> Path:
    if not isinstance(value, str | Path) or "\0" in str(value) or not Path(value).is_absolute():
        raise _wrong(str(value) if isinstance(value, Path) else value, _PATH_HELP)
    return Path(value)


def _fraction(value: object) -> float:
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value)):
        fraction = float(match[1]) / 100
    elif isinstance(value, int | float) and not isinstance(value, bool):
        fraction = float(value)
    else:
        raise _wrong(value, _FRACTION_HELP)
    if not 0 <= fraction <= 1:
        raise _wrong(value, _FRACTION_HELP)
    return fraction


def _stall(text: str) -> float:
    return math.inf if text == "never" else parse_duration(text)


Fraction = Annotated[float, BeforeValidator(_fraction), Field(description=_FRACTION_HELP)]


class RwlOptions(BaseModel):
    """An rwl layer's table in the config, less ``index``, ``plugin`` and ``required``. Immutable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: Annotated[Path, BeforeValidator(_path), Field(description=_PATH_HELP)]
    """The directory of the layer's pool files, absolute; it exists. The layer makes one file for each image in it."""

    size: Annotated[
        int,
        _quantity(parse_size, _POOL_HELP, least=MIN_SIZE, most=MAX_SIZE, number=True),
        Field(description=_POOL_HELP),
    ]
    """Bytes of each image's pool file, 16 MiB to 1 PiB. All of it is allocated and written when the file is made."""

    media: Annotated[Literal["pmem", "ssd"], Field(description='"pmem" or "ssd"')] = "ssd"
    """What the directory lies on: ``pmem``, persistent memory, which is written by copying; or ``ssd``, any other
    drive. Where ``pmem`` turns out not to be persistent memory, the file is used as on an SSD, and the daemon's
    messages say so."""

    persist: Annotated[Literal["auto", "write", "flush"], Field(description='"auto", "write" or "flush"')] = "auto"
    """When a change survives loss of power: ``write``, when it is acknowledged; ``flush``, when a later flush is. In
    both it survives the death of the process at once. ``auto`` is ``write`` on pmem and ``flush`` on ssd."""

    order: Annotated[Literal["strict", "grouped"], Field(description='"strict" or "grouped"')] = "strict"
    """In which steps the level below moves on. ``strict``: from flush to flush, so that it is always what a disk could
    be after loss of power. ``grouped``: over several flushes at once, of which only the newest content goes down, so
    that it is such only between those steps; much faster for loads that flush after each write. A layer below takes
    each such step for what lies between two flushes, which goes on down from there in any order."""

    high_water: Fraction = 0.7
    """The part of the pool, 0 to 1 or in per cent, which dirty data may take before write-back begins."""

    low_water: Fraction = 0.3
    """The part down to which write-back then goes; less than *high_water*."""

    max_dirty_age: Annotated[float, _quantity(parse_duration, DURATION_HELP), Field(description=DURATION_HELP)] = 30.0
    """Seconds after which dirty data are written back, however few they are; in the config with a unit."""

    writeback_rate: Annotated[
        int | None, _quantity(parse_rate, RATE_HELP, number=True), Field(description=RATE_HELP)
    ] = None
    """Bytes per second that write-back takes while nobody waits for it; 0 pauses it, None (``max``) is no limit."""

    writeback_depth: Annotated[int, Field(ge=1, le=1024, description=_DEPTH_HELP)] = 64
    """Requests that write-back has under way at once, 1 to 1024, and about 32 MiB of data."""

    stall_timeout: Annotated[float, _quantity(_stall, _STALL_HELP), Field(description=_STALL_HELP)] = 120.0
    """Seconds that a change waits for space in a pool full of dirty data before it fails; in the config with a unit.
    Infinite (``never``): it waits for as long as it takes."""

    stall_errno: Annotated[Literal["EIO", "ENOSPC"], Field(description='"EIO" or "ENOSPC"')] = "EIO"
    """The error it then fails with. A virtual machine can be told to pause at ``ENOSPC``, and loses nothing."""

    keep_clean: Annotated[bool, Field(description=_SWITCH_HELP)] = True
    """Whether data that are written back still serve reads, until their space is needed."""

    @model_validator(mode="after")
    def _low_is_below_high(self) -> "RwlOptions":
        if self.low_water >= self.high_water:
            found, allowed = f"low_water = {self.low_water:g}", f"less than high_water = {self.high_water:g}"
            raise ValueError(f"found {found}, allowed: {allowed}")
        return self

    @property
    def persists_each(self) -> bool:
        """Whether every change is durable when it is acknowledged: :attr:`persist` with ``auto`` resolved."""
        return self.persist == "write" or (self.persist == "auto" and self.media == "pmem")
