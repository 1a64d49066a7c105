"""Whatever a file says, it is a valid configuration or a ConfigError."""

import contextlib
import datetime
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fusecache.config.load import ConfigError, Mistake, load_config, validate_options
from fusecache.config.schema import TABLES, MountConfig

KEYS = sorted({key for model in TABLES.values() for key in model.model_fields} | {"layer", "stack"})
WORDS = ["directory", "rbd", ".", "*", "0600", "5s", "0", "root"]

text = st.sampled_from(WORDS) | st.text()
scalars = (
    st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats()
    | text
    | st.dates()
    | st.datetimes(min_value=datetime.datetime(1, 1, 1))
)
keys = st.sampled_from(KEYS) | st.text(max_size=4)
junk = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4))
tables = st.dictionaries(keys, junk, max_size=4)
layer_tables = st.fixed_dictionaries({}, optional={"index": junk, "plugin": junk, "required": junk, "size": junk})
stack_tables = st.fixed_dictionaries({}, optional={"images": junk, "layer": st.lists(layer_tables, max_size=3) | junk})
mount_tables = st.fixed_dictionaries({}, optional=dict.fromkeys(MountConfig.model_fields, junk))
backend_tables = st.fixed_dictionaries({"type": junk}, optional={"path": junk, "direct": junk, "directory": junk})
files = st.fixed_dictionaries(
    {},
    optional={
        "mount": mount_tables | junk,
        "backend": backend_tables | junk,
        "stack": st.lists(stack_tables | junk, max_size=3),
        "other": junk,
    },
)


def toml(value: object) -> str:
    """Return *value* as inline TOML."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, datetime.date):
        return value.isoformat()
    return str(value)


def mistakes_in(content: bytes) -> list[Mistake]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "junk.toml"
        file.write_bytes(content)
        try:
            load_config(file)
        except ConfigError as error:
            return error.mistakes
        return []


@given(files)
def test_junk_in_the_right_places_is_refused_with_mistakes_or_valid(data: dict[str, object]) -> None:
    content = "".join(f"{toml(key)} = {toml(value)}\n" for key, value in data.items()).encode()
    mistakes = mistakes_in(content)
    assert not any("not TOML" in mistake.found for mistake in mistakes)
    assert len({mistake.key for mistake in mistakes}) == len(mistakes)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_refused_or_valid(content: bytes) -> None:
    mistakes_in(content)


@given(tables)
def test_any_options_are_refused_or_valid(options: dict[str, object]) -> None:
    with contextlib.suppress(ConfigError):
        validate_options(MountConfig, options, "stack[0].layer[0]")
