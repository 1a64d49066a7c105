"""Reading a configuration from its file, and plugins' options from their part of it.

Owns the way from bytes to models with every mistake told at once. It must not know what the tables mean.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fusecache.config.mistakes import ConfigError, Mistake, key_path, known_keys, mistakes_of, shown, unknown_key
from fusecache.config.schema import LAYER_KEYS, TABLES, Config, Root

__all__ = ["ConfigError", "Mistake", "load_config", "validate_options"]

Options = TypeVar("Options")


def load_config(path: Path) -> Config:
    """Read and check the configuration at *path*. Changes nothing.

    Relative paths in it start from the file's directory. The options of layers are not checked: see
    :func:`validate_options`.

    Raises:
        ConfigError: with all mistakes, also where the file cannot be read or is not TOML.
    """
    path = path.absolute()
    data = _read(path)
    root, mistakes = None, []
    try:
        root = Root.model_validate(data, context=path.parent, by_alias=True, by_name=False)
    except ValidationError as error:
        mistakes = mistakes_of(error, TABLES, file=path, tagged=("backend",))
    mistakes += _misplaced_indexes(data, path)
    if root is None or mistakes:
        raise ConfigError(mistakes)
    return Config(path=path, mount=root.mount, backend=root.backend, stacks=root.stacks)


def validate_options(
    config_model: type[Options], options: Mapping[str, object], where: str, *, file: Path | None = None
) -> Options:
    """Return a layer's own options as an instance of its plugin's ``config_model``.

    Args:
        config_model: a pydantic model or a dataclass.
        options: what the configuration says, as TOML gives it.
        where: the key path of the layer's table, or another name for it; begins the key paths of mistakes.
        file: where the options come from, for the messages.

    Raises:
        ConfigError: with all mistakes; a key that the model does not have is one.
    """
    known = known_keys(config_model)
    spelled = [*LAYER_KEYS, *known]
    unknown = [name for name in options if name not in known]
    mistakes = [unknown_key(file, f"{where}.{key_path([name])}", name, spelled) for name in unknown]
    adapter: TypeAdapter[Options] = TypeAdapter(config_model)
    try:
        instance = adapter.validate_python({name: value for name, value in options.items() if name in known})
    except ValidationError as error:
        raise ConfigError(mistakes + mistakes_of(error, {(): config_model}, file=file, prefix=where)) from None
    if mistakes:
        raise ConfigError(mistakes)
    return instance


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        problem = Mistake(path, "", f"a file that cannot be read ({error.strerror})", "a readable TOML file")
    except UnicodeDecodeError as error:
        problem = Mistake(path, "", f"a byte that is not UTF-8 at offset {error.start}", "TOML in UTF-8")
    except (ValueError, RecursionError) as error:
        # Besides its own errors tomllib lets through those of int() and, on deep nesting, of the interpreter.
        problem = Mistake(path, "", f"text that is not TOML ({error})", "TOML")
    raise ConfigError([problem]) from None


def _misplaced_indexes(data: Mapping[str, Any], file: Path) -> Iterator[Mistake]:
    """Tell of layers that are not listed top first. Whatever is not of the right shape is told of elsewhere."""
    for stack_number, stack in enumerate(_tables(data.get("stack"))):
        seen: list[int] = []
        for layer_number, layer in enumerate(_tables(stack.get("layer"))):
            index = layer.get("index")
            if type(index) is not int or index < 0:
                continue
            key = key_path(["stack", stack_number, "layer", layer_number, "index"])
            if index in seen:
                yield Mistake(file, key, f"{shown(index)} a second time", "an index that no other layer has")
            elif seen and index > seen[-1]:
                allowed = f"an index less than {seen[-1]}: layers are listed top first"
                yield Mistake(file, key, f"{index} below {seen[-1]}", allowed)
            seen.append(index)


def _tables(value: object) -> list[Mapping[str, Any]]:
    """Return the tables of an array; what is no table keeps its place as an empty one."""
    return [item if isinstance(item, Mapping) else {} for item in value] if isinstance(value, list) else []
