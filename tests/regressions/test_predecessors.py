"""What earlier write-back caches did wrong between hosts, clients and files: one test for each mistake.

With the write-back log itself, in stacks as the daemon opens them. What concerns its pool and its requests alone is
tested beside the layer.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from fusecache.api import joined
from fusecache.api.errors import CorruptState, ImageBusy, PoolMissing, unwrapped
from fusecache.config.schema import LayerConfig, StackConfig
from fusecache.mount import running_completions
from fusecache.stack.assemble import Stack, open_stack
from fusecache.stack.drop import drop_layer
from fusecache.state.store import StateStore
from fusecache.testing.file_sync import ThreadFileSync
from tests.support.images import Call, opened, write
from tests.support.places import directory_backend

pytest.importorskip("fusecache_rwl", reason="the part rwl is left out")

NAME = "disk"
SIZE = 1 << 20
BLOCK = 4096
SUPERBLOCKS = 8192
"""Bytes at the beginning of a pool file which say what it is."""


class Host:
    """A host with its state and its pools; all hosts of a test share the images, and this machine's name.

    Args:
        machine: its machine-id.
        layers: how many write-back logs its config has.
    """

    def __init__(self, root: Path, machine: str, *, layers: int = 1) -> None:
        self.images = root / "images"
        self.state = root / machine / "state"
        self.pools = root / machine / "pools"
        self.state.mkdir(parents=True)
        self.pools.mkdir()
        (self.state / "machine-id").write_text(machine)
        options = {"path": str(self.pools), "size": "16MiB", "writeback_rate": "0", "stall_timeout": "never"}
        indexes = reversed(range(layers))
        logs = tuple(LayerConfig(index=index, plugin="rwl", options=options) for index in indexes)
        self.config: StackConfig | None = StackConfig(images=("*",), layers=logs) if layers else None

    @asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[Stack]:
        """Open the image as this host is configured."""
        try:
            async with (
                running_completions() as completions,
                directory_backend(self.images) as backend,
                open_stack(
                    backend=backend,
                    name=NAME,
                    configured=self.config,
                    store=StateStore(self.state),
                    completions=completions,
                    file_sync=ThreadFileSync(completions),
                    emit=lambda kind, text: None,
                    **options,
                ) as stack,
            ):
                yield stack
                return
        except BaseExceptionGroup as group:
            failure = unwrapped(group)
        raise failure

    async def refused(self, error: type[Exception], match: str) -> None:
        """See that the image is not opened."""
        with pytest.raises(error, match=match):
            async with self.open():
                raise AssertionError("the image is open")

    def pool(self, index: int = 0) -> Path:
        """Return the pool file of a layer."""
        (path,) = self.pools.glob(f"*.{index}.pool")
        return path

    async def drop(self, index: int) -> None:
        """Give up a dirty layer."""
        async with directory_backend(self.images) as backend:
            await drop_layer(
                backend=backend,
                name=NAME,
                configured=self.config,
                store=StateStore(self.state),
                index=index,
                emit=lambda kind, text: None,
                dirty=True,
            )


async def put(stack: Stack, data: bytes, offset: int = 0) -> None:
    """Write to the image."""
    await stack.top.write(offset, memoryview(data))


async def fetch(stack: Stack, offset: int = 0, length: int = BLOCK) -> bytes:
    """Read the image."""
    return joined(await stack.top.read(offset, length))


@pytest.fixture
async def root() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        root = Path(name)
        (root / "images").mkdir()
        async with directory_backend(root / "images") as backend:
            await backend.create(NAME, SIZE)
        yield root


@pytest.fixture
def here(root: Path) -> Host:
    return Host(root, 32 * "a")


@pytest.fixture
def bare(root: Path) -> Host:
    """A host that is not configured for any cache."""
    return Host(root, 32 * "c", layers=0)


async def test_no_second_client_has_the_image_open_or_reads_what_is_stale(root: Path, here: Host, bare: Host) -> None:
    """One has it at a time; and a clean log answers nothing that others may have changed since."""
    there = Host(root, 32 * "b")
    async with here.open() as stack:
        await put(stack, b"1" * BLOCK)
        await there.refused(ImageBusy, "disk")
        await bare.refused(ImageBusy, "disk")
        await here.refused(ImageBusy, "disk")
        await stack.writeback()
        assert await fetch(stack) == b"1" * BLOCK
        assert stack.layers[0].layer.status().hits
    for number, host in enumerate([there, bare, here, there, bare, here], start=1):
        async with host.open() as stack:
            assert await fetch(stack) == b"%d" % number * BLOCK
            await put(stack, b"%d" % (number + 1) * BLOCK)
            await stack.writeback()
            assert await fetch(stack) == b"%d" % (number + 1) * BLOCK


async def test_a_dirty_image_is_closed_to_clients_without_the_cache(root: Path, here: Host, bare: Host) -> None:
    """On other hosts; and on this one it is opened with its log, whatever the config says by now.

    That Ceph keeps its own clients out as well is in ``tests/ceph/test_rbd_rwl.py``.
    """
    async with here.open() as stack:
        await put(stack, b"1" * BLOCK)
    await bare.refused(ImageBusy, r"dirty data on host \S+ \(a{32}\)")
    assert (root / "images" / NAME).read_bytes() == bytes(SIZE)
    here.config = None
    async with here.open() as stack:
        assert [layer.plugin for layer in stack.layers] == ["rwl"]
        assert await fetch(stack) == b"1" * BLOCK
        await stack.writeback()
    async with bare.open() as stack:
        assert await fetch(stack) == b"1" * BLOCK
    async with here.open() as stack:
        assert not stack.layers
        assert await fetch(stack) == b"1" * BLOCK


@pytest.mark.parametrize("other", [31 * "a" + "b", "b" + 31 * "a"])
async def test_hosts_are_told_apart_by_the_whole_of_their_identity(root: Path, here: Host, other: str) -> None:
    """The hosts have the same name, and all but one digit of their machine-id."""
    async with here.open() as stack:
        await put(stack, b"1" * BLOCK)
    await Host(root, other).refused(ImageBusy, rf"dirty data on host \S+ \(a{{32}}\), this is host {other}")
    async with here.open() as stack:
        assert await fetch(stack) == b"1" * BLOCK


async def test_a_lost_pool_of_a_dirty_image_costs_recent_writes_and_not_the_image(root: Path, here: Host) -> None:
    """Nobody opens it unawares; once the layer is given up, the image is as it was at the last write-back."""
    async with here.open() as stack:
        await put(stack, b"1" * BLOCK)
        await stack.writeback()
        await put(stack, b"2" * BLOCK)
        await put(stack, b"2" * BLOCK, BLOCK)
    pool = here.pool()
    pool.unlink()
    for _ in range(2):
        await here.refused(PoolMissing, f"layer 0 .* is dirty and {pool} is gone: bring it back, or .*--dirty")
    await here.drop(0)
    async with here.open() as stack:
        assert await fetch(stack) == b"1" * BLOCK
        assert await fetch(stack, BLOCK) == bytes(BLOCK)
        await put(stack, b"3" * BLOCK)
    async with here.open() as stack:
        assert await fetch(stack) == b"3" * BLOCK


async def test_a_lost_pool_of_a_clean_image_costs_nothing(root: Path, here: Host) -> None:
    async with here.open() as stack:
        await put(stack, b"1" * BLOCK)
        await stack.writeback()
    here.pool().unlink()
    async with here.open() as stack:
        assert await fetch(stack) == b"1" * BLOCK
        await put(stack, b"2" * BLOCK)
        assert await fetch(stack) == b"2" * BLOCK


async def test_a_start_that_fails_in_the_middle_leaves_everything_closed(root: Path) -> None:
    """The log below is open already when the one above is found to be damaged."""
    here = Host(root, 32 * "a", layers=2)
    async with here.open() as stack:
        await put(stack, b"1" * BLOCK)
        await stack.writeback(1)
        await put(stack, b"2" * BLOCK)
    pool = here.pool(1)
    content = pool.read_bytes()
    pool.write_bytes(bytes(SUPERBLOCKS) + content[SUPERBLOCKS:])
    with trio.fail_after(20):
        for _ in range(3):
            await here.refused(CorruptState, "no superblock")
    pool.write_bytes(content)
    async with here.open() as stack:
        assert await fetch(stack) == b"2" * BLOCK
    pool.write_bytes(bytes(SUPERBLOCKS) + content[SUPERBLOCKS:])
    await here.drop(1)
    async with here.open() as stack:
        assert await fetch(stack) == b"1" * BLOCK


async def test_requests_that_wait_for_space_and_flushes_between_them_all_end(here: Host) -> None:
    """A flush stands between writes that find the log full, with those before it and after it waiting."""
    async with here.open() as stack:
        size = 16 << 20
        await stack.top.resize(2 * size)
        piece = b"x" * SIZE
        async with opened(stack.top) as image:
            calls = []
            with trio.fail_after(60):
                for at in range(0, 2 * size, SIZE):
                    calls.append(write(image, at, piece))
                    calls.append(Call(image.flush))
                assert not all(call.at_once for call in calls)
                for call in calls:
                    await call.result()
        for at in range(0, 2 * size, SIZE):
            assert await fetch(stack, at, SIZE) == piece
