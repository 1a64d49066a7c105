"""A pool file of before, put back in the place of a newer one: it was written back as if its data were current.

Its records were discarded, or are below and overwritten there since. The image's record names the log that counts.
"""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fusecache.api import joined
from fusecache.api.errors import Fenced, unwrapped
from fusecache.config.schema import LayerConfig, StackConfig
from fusecache.mount import running_completions
from fusecache.stack.assemble import Stack, open_stack
from fusecache.stack.drop import drop_layer
from fusecache.state.manifest import decode
from fusecache.state.store import StateStore
from fusecache.testing import ThreadFileSync
from fusecache.testing.memory import MemoryBackend
from tests.support.dirty_stacks import host

pytest.importorskip("fusecache_rwl", reason="the part rwl is left out")

NAME = "disk"
BLOCK = 4096


class Disk:
    """An image in memory under logs that keep what is dirty until they are told to write back.

    Attributes:
        state: the state directory to be used.
    """

    def __init__(self, directory: Path, *indexes: int) -> None:
        self._directory = directory
        self._pools = directory / "pools"
        self._pools.mkdir()
        self._backend = MemoryBackend(names={NAME: 4 * BLOCK})
        self.state = host(directory / "state", "a")
        options = {"path": str(self._pools), "size": "16MiB", "writeback_rate": "0"}
        layers = tuple(LayerConfig(index=index, plugin="rwl", options=options) for index in indexes)
        self._config = StackConfig(images=("*",), layers=layers)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Stack]:
        """Open the stack. What is dirty when it is closed stays so, as when the process is killed."""
        async with (
            running_completions() as completions,
            open_stack(
                backend=self._backend,
                name=NAME,
                configured=self._config,
                store=StateStore(self.state),
                completions=completions,
                file_sync=ThreadFileSync(completions),
                emit=lambda kind, text: None,
            ) as stack,
        ):
            yield stack

    async def drop(self, index: int = 0) -> None:
        """Discard a layer's dirty data while the image is closed; no plugin takes part."""
        await drop_layer(
            backend=self._backend,
            name=NAME,
            configured=self._config,
            store=StateStore(self.state),
            index=index,
            emit=lambda kind, text: None,
            dirty=True,
        )

    def copy(self, name: str = "copy") -> None:
        """Copy the pool files and the state directory."""
        shutil.copytree(self._pools, self._directory / name / "pools")
        shutil.copytree(self.state, self._directory / name / "state")

    def put_back(self, state: str = "same", name: str = "copy") -> None:
        """Put the pool files back, and use the state directory of then (``old``), of now or a new one."""
        shutil.copytree(self._directory / name / "pools", self._pools, dirs_exist_ok=True)
        if state == "old":
            self.state = self._directory / name / "state"
        elif state == "new":
            self.state = host(self._directory / "new", "a")

    def names(self) -> list[str]:
        """Return which files the image's record names, of each layer, bottom up; none where nothing is dirty."""
        record = self._backend.images[NAME].record
        assert record is not None
        return [layer.files_id for layer in decode(record.manifest.encode()).layers] if record.manifest else []

    async def expect(self, data: bytes) -> None:
        """The image begins with *data*."""
        try:
            async with self.open() as stack:
                assert joined(await stack.top.read(0, BLOCK)) == data * BLOCK
        except BaseExceptionGroup as group:
            failure = unwrapped(group)
        else:
            return
        raise failure

    async def expect_refused(self, data: bytes) -> None:
        """The pool file is not opened, and the text says what helps: first the newer file, then a discard."""
        with pytest.raises(Fenced, match=r"copy from before .* `fusecache discard CONFIG IMAGE --layer 0 --dirty`"):
            await self.expect(b"?")
        self.put_back(name="newer")
        await self.expect(data)
        self.put_back()
        with pytest.raises(Fenced):
            await self.expect(b"?")
        await self.drop()


async def write(stack: Stack, data: bytes) -> None:
    await stack.top.write(0, memoryview(data * BLOCK))


STATES = pytest.mark.parametrize("state", ["same", "old", "new"])


@STATES
async def test_a_pool_file_whose_data_was_discarded_is_refused(tmp_path: Path, state: str) -> None:
    disk = Disk(tmp_path, 0)
    async with disk.open() as stack:
        await write(stack, b"1")
    disk.copy()
    await disk.drop()
    async with disk.open() as stack:
        await write(stack, b"2")
    disk.copy("newer")
    disk.put_back(state)
    await disk.expect_refused(b"2")
    await disk.expect(b"\0")


@STATES
async def test_a_pool_file_whose_data_was_discarded_while_the_image_was_open_is_refused(
    tmp_path: Path, state: str
) -> None:
    disk = Disk(tmp_path, 0)
    async with disk.open() as stack:
        await write(stack, b"1")
        disk.copy()
        await stack.invalidate(0, dirty=True)
        assert disk.names() == []
        await write(stack, b"2")
    disk.copy("newer")
    disk.put_back(state)
    await disk.expect_refused(b"2")
    await disk.expect(b"\0")


@STATES
async def test_a_pool_file_whose_data_is_long_below_is_refused(tmp_path: Path, state: str) -> None:
    disk = Disk(tmp_path, 0)
    async with disk.open() as stack:
        await write(stack, b"1")
        disk.copy()
        await write(stack, b"2")
        await stack.writeback()
    assert disk.names() == []
    async with disk.open() as stack:
        await write(stack, b"3")
    disk.copy("newer")
    disk.put_back(state)
    await disk.expect_refused(b"3")
    await disk.expect(b"2")


async def test_what_is_put_back_under_a_clean_layer_is_void(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 0)
    async with disk.open() as stack:
        await write(stack, b"1")
    disk.copy()
    await disk.drop()
    disk.put_back("old")
    await disk.expect(b"\0")


async def test_a_dirty_layer_below_one_that_is_discarded_or_written_back_stays_as_it_is(tmp_path: Path) -> None:
    disk = Disk(tmp_path, 1, 0)
    async with disk.open() as stack:
        await write(stack, b"1")
        await stack.writeback(1)
        await write(stack, b"2")
    lower, upper = disk.names()
    assert lower != upper
    assert lower
    assert upper
    await disk.drop(1)
    assert disk.names() == [lower, ""]
    async with disk.open() as stack:
        await write(stack, b"3")
        assert disk.names()[0] == lower
        assert disk.names()[1] not in ("", upper)
        await stack.writeback(1)
        await stack.invalidate(1, dirty=True)
    assert disk.names()[0] == lower
    await disk.expect(b"3")
