"""The options of an rwl layer: every form that is allowed, and what is said of those that are not."""

import ast
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fusecache_rwl import options as module
from fusecache_rwl.options import RwlOptions

LEAST: dict[str, Any] = {"path": "/pools", "size": "16MiB"}


def made(**changed: Any) -> RwlOptions:
    return RwlOptions.model_validate({**LEAST, **changed})


def refusal(**changed: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        made(**changed)
    (detail,) = caught.value.errors(include_url=False)
    return str(detail["msg"])


def test_all_but_path_and_size_have_defaults() -> None:
    options = made()
    assert options.model_dump() == {
        "path": Path("/pools"),
        "size": 16 << 20,
        "media": "ssd",
        "persist": "auto",
        "order": "strict",
        "high_water": 0.7,
        "low_water": 0.3,
        "max_dirty_age": 30.0,
        "writeback_rate": None,
        "writeback_depth": 64,
        "stall_timeout": 120.0,
        "stall_errno": "EIO",
        "keep_clean": True,
    }
    for missing in LEAST:
        with pytest.raises(ValidationError, match="Field required"):
            RwlOptions.model_validate({key: value for key, value in LEAST.items() if key != missing})


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("size", "256MiB", 256 << 20),
        ("size", 16 << 20, 16 << 20),
        ("high_water", "70%", 0.7),
        ("high_water", "99.5 %", 0.995),
        ("high_water", 1, 1.0),
        ("low_water", 0, 0.0),
        ("max_dirty_age", "2min", 120.0),
        ("max_dirty_age", "0", 0.0),
        ("writeback_rate", "max", None),
        ("writeback_rate", "0", 0),
        ("writeback_rate", 0, 0),
        ("writeback_rate", "10MiB", 10 << 20),
        ("writeback_depth", 1, 1),
        ("stall_timeout", "never", math.inf),
        ("stall_timeout", "500ms", 0.5),
        ("stall_errno", "ENOSPC", "ENOSPC"),
        ("persist", "write", "write"),
        ("media", "pmem", "pmem"),
        ("keep_clean", False, False),
    ],
)
def test_a_value_may_be_written_so(key: str, text: object, value: object) -> None:
    assert getattr(made(**{key: text}), key) == value


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("path", "pools", "the absolute path of a directory"),
        ("path", "", "the absolute path of a directory"),
        ("path", "/a\0b", "the absolute path of a directory"),
        ("path", 7, "the absolute path of a directory"),
        ("size", "15MiB", "16MiB to 1PiB"),
        ("size", "2PiB", "16MiB to 1PiB"),
        ("size", "big", "16MiB to 1PiB"),
        ("size", -1, "16MiB to 1PiB"),
        ("size", True, "16MiB to 1PiB"),
        ("size", 2.5e7, "16MiB to 1PiB"),
        ("high_water", "101%", "a fraction of the pool from 0 to 1"),
        ("high_water", "0.7", "a fraction of the pool from 0 to 1"),
        ("high_water", 70, "a fraction of the pool from 0 to 1"),
        ("low_water", -0.1, "a fraction of the pool from 0 to 1"),
        ("low_water", math.nan, "a fraction of the pool from 0 to 1"),
        ("low_water", False, "a fraction of the pool from 0 to 1"),
        ("max_dirty_age", 30, "a duration such as"),
        ("max_dirty_age", "30", "a duration such as"),
        ("max_dirty_age", "never", "a duration such as"),
        ("writeback_rate", "fast", "a rate in bytes per second"),
        ("writeback_rate", -1, "a rate in bytes per second"),
        ("writeback_rate", None, "a rate in bytes per second"),
        ("stall_timeout", 120, '"never"'),
        ("stall_timeout", "soon", '"never"'),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(key: str, value: object, allowed: str) -> None:
    message = refusal(**{key: value})
    assert f"found {value!r}, allowed: " in message
    assert allowed in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("media", "tape"),
        ("persist", "never"),
        ("order", "none"),
        ("stall_errno", "EBUSY"),
        ("writeback_depth", 0),
        ("writeback_depth", 1025),
        ("writeback_depth", "16"),
        ("keep_clean", "yes"),
        ("replicas", []),
    ],
)
def test_nothing_else_is_allowed(key: str, value: object) -> None:
    assert refusal(**{key: value})


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.3), ("80%", 0.5), (0.7, 0.7)])
def test_write_back_ends_below_where_it_begins(low: object, high: object) -> None:
    assert "allowed: less than high_water" in refusal(low_water=low, high_water=high)
    assert "found low_water = 0.3, allowed: less than high_water = 0.2" in refusal(high_water=0.2)


@pytest.mark.parametrize(
    ("media", "persist", "each"),
    [
        ("pmem", "auto", True),
        ("ssd", "auto", False),
        ("pmem", "flush", False),
        ("ssd", "write", True),
    ],
)
def test_auto_persists_each_write_on_persistent_memory_only(media: str, persist: str, each: bool) -> None:
    assert made(media=media, persist=persist).persists_each is each


def test_options_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        made().size = 1


def test_every_option_is_documented() -> None:
    (model,) = [node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)]
    documented = [
        field.target.id
        for field, text in zip(model.body, model.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    ]
    assert documented == list(RwlOptions.model_fields)
    assert all(field.description for field in RwlOptions.model_fields.values())
