"""Stacks of write-back layers over a directory, opened as one host or another, by this process or one that dies.

Owns how such a stack is opened, and a process that ends before a durable step of a command. It must not know what is
tested. As a program (``python -m``): ``IMAGES STATE COMMAND STEP``.
"""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio

from fusecache.api import LayerPlugin
from fusecache.api.errors import unwrapped
from fusecache.backends.directory_image import DirectoryImage
from fusecache.config.schema import LayerConfig, StackConfig
from fusecache.mount import running_completions
from fusecache.stack import assemble, drop
from fusecache.stack.assemble import Stack
from fusecache.stack.discover import load
from fusecache.stack.drop import drop_layer
from fusecache.stack.remove import remove_image
from fusecache.state.image_state import ImageState
from fusecache.state.store import StateStore
from fusecache.testing.file_sync import ThreadFileSync
from tests.support.places import directory_backend
from tests.support.project import ROOT
from tests.support.writeback_layer import WritebackLayer, WritebackPlugin

NAME: Final = "disk"
SIZE: Final = 8192
_KILLED: Final = 9


def stack_config(*indexes: int) -> StackConfig:
    """Return a config of write-back layers."""
    layers = tuple(LayerConfig(index=index, plugin="writeback") for index in indexes)
    return StackConfig(images=("*",), layers=layers)


def host(directory: Path, letter: str) -> Path:
    """Make the state directory of the host whose machine-id is *letter* again and again."""
    directory.mkdir()
    (directory / "machine-id").write_text(32 * letter)
    return directory


@contextmanager
def writeback_installed() -> Iterator[None]:
    """Let stacks load the write-back layer."""

    def load_any(name: str) -> LayerPlugin:
        return WritebackPlugin() if name == "writeback" else load(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "load", load_any)
        yield


@asynccontextmanager
async def _unwrapped() -> AsyncIterator[None]:
    """Raise what is alone in its groups as it is."""
    try:
        yield
    except BaseExceptionGroup as group:
        failure = unwrapped(group)
    else:
        return
    raise failure


@asynccontextmanager
async def stack_open(images: Path, state: Path, *indexes: int, **options: Any) -> AsyncIterator[Stack]:
    """Open the image with write-back layers."""
    async with (
        _unwrapped(),
        running_completions() as completions,
        directory_backend(images) as backend,
        assemble.open_stack(
            backend=backend,
            name=NAME,
            configured=stack_config(*indexes),
            store=StateStore(state),
            completions=completions,
            file_sync=ThreadFileSync(completions),
            emit=lambda kind, text: None,
            **options,
        ) as stack,
    ):
        yield stack


async def dropped(images: Path, state: Path, index: int = 0, **options: Any) -> None:
    """Drop a layer of the image."""
    async with _unwrapped(), directory_backend(images) as backend:
        await drop_layer(
            backend=backend,
            name=NAME,
            configured=stack_config(0),
            store=StateStore(state),
            index=index,
            emit=lambda kind, text: None,
            **options,
        )


async def removed(images: Path, state: Path) -> None:
    """Remove the image."""
    async with _unwrapped(), directory_backend(images) as backend:
        await remove_image(backend=backend, name=NAME, store=StateStore(state))


def pool_of(state: Path, index: int = 0) -> Path:
    """Return where the pool file of the layer of that index is or was."""
    (directory,) = (state / "images").iterdir()
    return directory / f"writeback.{index}.pool"


def layer_of(stack: Stack, index: int = 0) -> WritebackLayer:
    """Return the open layer of that index."""
    (layer,) = [layer.layer for layer in stack.layers if layer.index == index]
    assert isinstance(layer, WritebackLayer)
    return layer


def killed_at(images: Path, state: Path, command: str, step: int) -> bool:
    """Have another process carry out *command*; return whether it died before the durable step of that number."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.dirty_stacks", str(images), str(state), command, str(step)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        timeout=30,
        check=False,
    )
    assert done.returncode in (0, _KILLED)
    return done.returncode == _KILLED


class _Doom:
    """Ends the process before a durable step: a write of the manifest or the record, or the removal of a file."""

    def __init__(self, step: int) -> None:
        self.armed = False
        self._left = step

    def before(self, owner: Any, name: str) -> None:
        """Count calls of the method of that name."""
        method: Callable[..., Any] = getattr(owner, name)

        def counting(*args: Any, **options: Any) -> Any:
            if self.armed:
                if not self._left:
                    os._exit(_KILLED)
                self._left -= 1
            return method(*args, **options)

        setattr(owner, name, counting)


async def _carry_out(images: Path, state: Path, command: str, doom: _Doom) -> None:
    if command.startswith("drop"):
        doom.armed = True
        await dropped(images, state, dirty=True, torn="torn" in command, take_over="elsewhere" in command)
        os._exit(0)
    doom.armed = command == "take over"
    async with stack_open(images, state, 0, take_over=doom.armed) as stack:
        if command == "set":
            doom.armed = True
        if command != "take over":
            await stack.top.write(0, memoryview(b"data"))
        if command == "clear":
            await stack.writeback()
            doom.armed = True
            await layer_of(stack).mark.clear()
        if command in ("tear", "mend"):
            doom.armed = command == "tear"
            await layer_of(stack).mark.tear()
            doom.armed = True
        if command == "mend":
            await layer_of(stack).mark.mend()
        if command == "tear beyond":
            await layer_of(stack).mark.tear()
            doom.armed = True
            await layer_of(stack).mark.tear(beyond=True)
        os._exit(0)


def _main(images: str, state: str, command: str, step: str) -> None:
    doom = _Doom(int(step))
    doom.before(ImageState, "write_manifest")
    doom.before(DirectoryImage, "set_record")
    doom.before(drop, "remove_files")
    with writeback_installed():
        trio.run(_carry_out, Path(images), Path(state), command, doom)


if __name__ == "__main__":
    _main(*sys.argv[1:])
