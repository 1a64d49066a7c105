"""A layer's own options against its plugin's model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, BeforeValidator, Field

from fusecache.api.units import SIZE_HELP, parse_size
from fusecache.config.load import ConfigError, validate_options

WHERE = "stack[0].layer[1]"
FILE = Path("/etc/fusecache.toml")


class Tuning(BaseModel, extra="forbid"):
    depth: int = 1


class PoolModel(BaseModel):
    path: Path = Field(description="a directory on the device")
    size: Annotated[int, BeforeValidator(parse_size)] = 0
    tuning: Tuning = Tuning()


@dataclass
class PoolDataclass:
    path: Path
    size: int = 0


def lines(model: type, options: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate_options(model, options, WHERE, file=FILE)
    return str(caught.value).splitlines()


def test_options_become_an_instance_of_the_plugins_model() -> None:
    pool = validate_options(PoolModel, {"path": "/mnt/pmem", "size": "1MiB", "tuning": {"depth": 3}}, WHERE)
    assert pool == PoolModel.model_construct(path=Path("/mnt/pmem"), size=1 << 20, tuning=Tuning(depth=3))
    assert validate_options(PoolDataclass, {"path": "/mnt/pmem"}, WHERE) == PoolDataclass(Path("/mnt/pmem"))


@pytest.mark.parametrize("model", [PoolModel, PoolDataclass])
def test_an_unknown_option_names_the_nearest_one(model: type) -> None:
    (line,) = lines(model, {"path": "/", "sise": 1})
    assert line.startswith(f'{FILE}: {WHERE}.sise: found unknown key "sise", did you mean "size"?, allowed: ')


def test_a_misspelled_key_of_every_layer_is_recognized() -> None:
    (line,) = lines(PoolModel, {"path": "/", "requird": True})
    assert 'did you mean "required"?' in line


def test_all_wrong_options_are_told_at_once() -> None:
    assert lines(PoolModel, {"size": "1 elephant", "other": 1, "tuning": {"depth": "x", "width": 1}}) == [
        f'{FILE}: {WHERE}.other: found unknown key "other", allowed: index, path, plugin, required, size, tuning',
        f"{FILE}: {WHERE}.path: found nothing, allowed: a directory on the device",
        f'{FILE}: {WHERE}.size: found "1 elephant", allowed: {SIZE_HELP}',
        f'{FILE}: {WHERE}.tuning.depth: found "x", allowed: a valid integer, unable to parse string as an integer',
        f'{FILE}: {WHERE}.tuning.width: found unknown key "width", allowed: no key',
    ]


def test_without_a_file_the_message_begins_with_the_place() -> None:
    with pytest.raises(ConfigError) as caught:
        validate_options(PoolDataclass, {"path": "/", "size": "big"}, "layer 1 of db")
    assert str(caught.value).startswith('layer 1 of db.size: found "big", allowed: ')
