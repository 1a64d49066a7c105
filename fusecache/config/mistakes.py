"""Mistakes in a configuration, and how they are told to people.

Owns the form of a mistake (file, key path, what was found, what is allowed) and the translation of pydantic's errors
into it. It must not know what a fusecache configuration contains.
"""

import dataclasses
import difflib
import errno
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fusecache.api.errors import FusecacheError

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_FOUND_AND_ALLOWED: Final = re.compile(r"found (?P<found>.+), allowed: (?P<allowed>.+)", re.DOTALL)
_LONGEST_SHOWN: Final = 80

Tables = Mapping[tuple[str, ...], type[Any]]
"""The model of each table, by the names that lead to it in pydantic's error locations."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong.

    Attributes:
        file: where it was found; None where it came from no file.
        key: the path to the key, for example ``stack[0].layer[1].size``; empty for the file as a whole.
        found, allowed: phrases for people.
    """

    file: Path | None
    key: str
    found: str
    allowed: str

    def __str__(self) -> str:
        where = "".join(f"{part}: " for part in (self.file, self.key) if part)
        return f"{where}found {self.found}, allowed: {self.allowed}"


class ConfigError(FusecacheError):
    """A configuration is wrong (EINVAL). The message has one line for each mistake.

    Attributes:
        mistakes: all of them; at least one.
    """

    errno = errno.EINVAL

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = list(mistakes)


def shown(value: object) -> str:
    """Return *value* as it would stand in TOML, on one line and not too long; tables and arrays by their kind."""
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "an array" if value else "an empty array"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def key_path(parts: Iterable[str | int]) -> str:
    """Return the parts in TOML's notation, array positions in brackets: ``stack[0].layer[1].size``."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += ("." if path else "") + (part if _BARE_KEY.fullmatch(part) else json.dumps(part))
    return path


def known_keys(model: type[Any]) -> dict[str, str | None]:
    """Return the keys that a pydantic model or a dataclass takes, each with its description where it has one."""
    if issubclass(model, BaseModel):
        return {
            field.validation_alias if isinstance(field.validation_alias, str) else name: field.description
            for name, field in model.model_fields.items()
        }
    return {field.name: None for field in dataclasses.fields(model) if field.init}


def unknown_key(file: Path | None, path: str, name: str, known: Iterable[str]) -> Mistake:
    """Return the mistake of a key that nobody knows, naming the nearest one that is known."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f", did you mean {shown(nearest[0])}?" if nearest else ""
    return Mistake(file, path, f"unknown key {shown(name)}{hint}", ", ".join(names) or "no key")


def mistakes_of(
    error: ValidationError, tables: Tables, *, file: Path | None, tagged: Sequence[str] = (), prefix: str = ""
) -> list[Mistake]:
    """Translate pydantic's errors, one mistake for each place.

    Args:
        tables: the models, for what is allowed at a key and for the keys that are known.
        tagged: top-level keys whose model a tag decides; pydantic puts the tag behind them in its locations.
        prefix: key path of what was validated.
    """
    mistakes: dict[str, Mistake] = {}
    for detail in error.errors(include_url=False):
        location = detail["loc"]
        *table, name = [part for part in location if isinstance(part, str)] or [""]
        known = known_keys(tables[tuple(table)]) if tuple(table) in tables else {}
        if len(location) > 1 and location[0] in tagged:
            location = (location[0], *location[2:])
        if detail["type"].startswith("union_tag"):
            location = (*location, detail["ctx"]["discriminator"].strip("'"))
        path = prefix + ("." if prefix and location else "") + key_path(location)
        # A wrong item makes pydantic count the array as too short as well.
        if path in mistakes or any(told.startswith(f"{path}[") for told in mistakes):
            continue
        if detail["type"] == "extra_forbidden":
            mistakes[path] = unknown_key(file, path, name, known)
        else:
            mistakes[path] = Mistake(file, path, *_phrases(detail, known.get(name)))
    return list(mistakes.values())


def _phrases(detail: ErrorDetails, description: str | None) -> tuple[str, str]:
    """Return what was found and what is allowed: by the key's description, else as far as pydantic tells."""
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind in ("missing", "union_tag_not_found"):
        return "nothing", description or "a value"
    if kind == "union_tag_invalid":
        return shown(value[context["discriminator"].strip("'")]), context["expected_tags"].replace("'", '"')
    stated = _FOUND_AND_ALLOWED.fullmatch(str(context.get("error", "")))
    if stated is not None:
        found = shown(value) if stated["found"] == repr(value) else stated["found"]
        return found, description or stated["allowed"]
    allowed = detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return shown(value), description or allowed
