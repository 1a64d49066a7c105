"""The world that a layer is opened in, outside the core.

Owns a layer's context and its lifetime. It must not know any layer.
"""

import re
import tempfile
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import trio
from pydantic import BaseModel, TypeAdapter

from fusecache.api.completions import Completions
from fusecache.api.identity import Identity
from fusecache.api.layer import DirtyMark, Emit, LayerContext, LayerPlugin
from fusecache.testing.file_sync import ThreadFileSync
from fusecache.testing.marks import RecordingMark

_EVENT_KIND: Final = re.compile(r"[a-z]+(-[a-z]+)*")


def declared_options(model: type[Any]) -> frozenset[str]:
    """Return the names that a plugin's ``config_model`` knows.

    Raises:
        TypeError: the model is neither a dataclass nor a pydantic model.
    """
    if is_dataclass(model):
        return frozenset(field.name for field in fields(model))
    if isinstance(model, type) and issubclass(model, BaseModel):
        return frozenset(field.alias or name for name, field in model.model_fields.items())
    raise TypeError(f"found config_model {model!r}, allowed: a dataclass or a pydantic model")


def validated(plugin: LayerPlugin, options: Mapping[str, Any]) -> Any:
    """Return *options* as an instance of the plugin's ``config_model``, as the core does.

    Raises:
        ValueError: an option that the model does not know, or a value that it refuses.
    """
    known = declared_options(plugin.config_model)
    if unknown := sorted(set(options) - known):
        raise ValueError(f"found the options {unknown}, allowed: {sorted(known)}")
    return TypeAdapter(plugin.config_model).validate_python(dict(options))


def record_event(kind: str, text: str) -> None:
    """Take an event and forget it.

    Raises:
        AssertionError: it is not one lower-case word with hyphens and one line.
    """
    if not _EVENT_KIND.fullmatch(kind) or "\n" in text or not text:
        raise AssertionError(f"found event {kind!r}, {text!r}, allowed: one lower-case word with hyphens, and one line")


@asynccontextmanager
async def layer_context(
    config: Any = None,
    *,
    image: str = "image",
    identity: Identity | None = None,
    index: int = 0,
    epoch: int = 1,
    state_dir: Path | None = None,
    emit: Emit = record_event,
    dirty: DirtyMark | None = None,
) -> AsyncIterator[LayerContext]:
    """Make what a layer is opened with; leaving ends the tasks that the layer left in the nursery.

    Args:
        config: an instance of the plugin's ``config_model``; see :func:`validated`.
        identity: by default one that nothing else has.
        state_dir: by default a directory that goes away in the end.
        dirty: by default a mark that is not set.
    """
    completions = Completions()
    try:
        made = nullcontext(state_dir) if state_dir else tempfile.TemporaryDirectory(prefix="fusecache-")
        with made as directory:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(completions.run)
                yield LayerContext(
                    image=image,
                    identity=identity or Identity(f"memory:{uuid.uuid4()}"),
                    index=index,
                    config=config,
                    state_dir=Path(directory),
                    epoch=epoch,
                    nursery=nursery,
                    completions=completions,
                    file_sync=ThreadFileSync(completions),
                    emit=emit,
                    dirty=dirty or RecordingMark(),
                )
                nursery.cancel_scope.cancel()
    finally:
        completions.close()
