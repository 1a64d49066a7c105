"""While a layer is dirty nobody else opens an image of a cluster; once it is clean anybody does."""

import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from fusecache.api import Backend, joined
from fusecache.api.errors import Fenced, ImageBusy, ImageNotFound, LayerDirty, NotSupported, VolumeReadOnly
from fusecache.mount import running_completions
from fusecache.stack.assemble import Stack, open_stack
from fusecache.stack.drop import drop_layer
from fusecache.stack.remove import remove_image
from fusecache.state.store import StateStore
from fusecache.testing.file_sync import ThreadFileSync
from tests.support.ceph import Cluster
from tests.support.dirty_stacks import host, layer_of, pool_of, stack_config, writeback_installed
from tests.support.pools import pool_backend

pytest.importorskip("rbd")

from tests.support.rbd import take_lock

SIZE = 8 << 20
Open = Callable[..., AbstractAsyncContextManager[Stack]]


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    with writeback_installed():
        yield


@pytest.fixture
def image(ceph_cluster: Cluster, image_name: str) -> str:
    ceph_cluster.rbd("create", "--size", f"{SIZE}B", image_name)
    return image_name


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return host(tmp_path / "here", "a")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    return host(tmp_path / "elsewhere", "b")


@pytest.fixture
async def backend(ceph_cluster: Cluster) -> AsyncIterator[Backend]:
    async with pool_backend(ceph_cluster, namespace="") as backend:
        yield backend


@pytest.fixture
async def opener(backend: Backend, image: str) -> AsyncIterator[Open]:
    async with running_completions() as completions:

        @asynccontextmanager
        async def opened(state: Path, *indexes: int, **options: Any) -> AsyncIterator[Stack]:
            async with open_stack(
                backend=backend,
                name=image,
                configured=stack_config(*indexes),
                store=StateStore(state),
                completions=completions,
                file_sync=ThreadFileSync(completions),
                emit=lambda kind, text: None,
                **options,
            ) as stack:
                yield stack

        yield opened


async def stranger(cluster: Cluster, *command: str) -> subprocess.CompletedProcess[str]:
    """Let a program that knows nothing of us do something with the image."""
    return await trio.to_thread.run_sync(cluster.attempt, "rbd", *command)


async def test_a_dirty_image_is_refused_to_every_other_program(
    ceph_cluster: Cluster, opener: Open, image: str, here: Path, tmp_path: Path
) -> None:
    await trio.to_thread.run_sync(ceph_cluster.rbd, "snap", "create", f"{image}@before")
    async with opener(here, 0) as stack:
        assert (await stranger(ceph_cluster, "info", image)).returncode == 0
        await stack.top.write(0, memoryview(b"data"))
        for command in (("info", image), ("export", f"{image}@before", str(tmp_path / "out"))):
            refused = await stranger(ceph_cluster, *command)
            assert refused.returncode != 0
            assert "fusecache_dirty_on_" in refused.stderr
    # Closed dirty: it stays so, also over an open that leaves it dirty.
    assert (await stranger(ceph_cluster, "info", image)).returncode != 0
    async with opener(here) as stack:
        assert joined(await stack.top.read(0, 4)) == b"data"
        assert (await stranger(ceph_cluster, "info", image)).returncode != 0
        await stack.writeback()
        await layer_of(stack).mark.clear()
        assert (await stranger(ceph_cluster, "info", image)).returncode == 0
        await stack.top.write(4, memoryview(b"more"))
        assert (await stranger(ceph_cluster, "info", image)).returncode != 0
        await stack.writeback()
    exported = await stranger(ceph_cluster, "export", image, str(tmp_path / "clean"))
    assert exported.returncode == 0
    assert await trio.Path(tmp_path / "clean").read_bytes() == b"datamore" + bytes(SIZE - 8)


async def test_without_the_guard_other_programs_open_a_dirty_image(
    ceph_cluster: Cluster, opener: Open, image: str, here: Path, elsewhere: Path
) -> None:
    async with opener(here, 0, guard=False) as stack:
        await stack.top.write(0, memoryview(b"data"))
        assert (await stranger(ceph_cluster, "info", image)).returncode == 0
    with pytest.raises(ImageBusy, match="dirty data"):
        async with opener(elsewhere, 0):
            raise AssertionError("the stack is open")


async def test_a_change_that_cannot_be_marked_because_the_lock_was_taken_is_refused(
    ceph_cluster: Cluster, opener: Open, image: str, here: Path
) -> None:
    async with opener(here, 0) as stack:
        await trio.to_thread.run_sync(take_lock, ceph_cluster, image)
        with pytest.raises(VolumeReadOnly):
            await stack.top.write(0, memoryview(b"data"))
        assert not layer_of(stack).dirty_bytes
    # What was not marked holds nobody up.
    assert (await stranger(ceph_cluster, "info", image)).returncode == 0
    async with opener(here, 0) as stack:
        assert joined(await stack.top.read(0, 4)) == bytes(4)


async def test_an_image_that_is_taken_over_is_free_and_its_former_host_fenced(
    ceph_cluster: Cluster, opener: Open, image: str, here: Path, elsewhere: Path
) -> None:
    async with opener(here, 0) as stack:
        await stack.top.write(0, memoryview(b"lost"))
    with pytest.raises(ImageBusy, match=f"`fusecache discard CONFIG {image} --layer N --dirty`"):
        async with opener(elsewhere, 0):
            raise AssertionError("the stack is open")
    async with opener(elsewhere, 0, take_over=True) as stack:
        assert stack.epoch == 2
        assert (await stranger(ceph_cluster, "info", image)).returncode == 0
        assert joined(await stack.top.read(0, 4)) == bytes(4)
        await stack.top.write(0, memoryview(b"new!"))
        await stack.writeback()
    with pytest.raises(Fenced, match="dirty at epoch 1, the image is at epoch 2"):
        async with opener(here, 0):
            raise AssertionError("the stack is open")


@pytest.mark.parametrize("locked", [True, False])
async def test_a_removed_image_takes_the_files_of_its_layers_with_it_also_where_it_has_lost_the_lock_feature(
    ceph_cluster: Cluster, backend: Backend, opener: Open, image: str, here: Path, locked: bool
) -> None:
    async with opener(here, 0, 1):
        pass
    if not locked:
        ceph_cluster.rbd("feature", "disable", image, "object-map", "exclusive-lock")
    pools = [pool_of(here, index) for index in range(2)]
    assert all(path.exists() for path in pools)
    await remove_image(backend=backend, name=image, store=StateStore(here))
    assert not any(path.exists() for path in pools)
    with pytest.raises(ImageNotFound):
        await backend.lookup(image)


async def test_dropping_a_dirty_layer_lifts_the_guard(
    ceph_cluster: Cluster, backend: Backend, opener: Open, image: str, here: Path, elsewhere: Path
) -> None:
    async def drop(state: Path, **options: Any) -> None:
        await drop_layer(
            backend=backend,
            name=image,
            configured=stack_config(0),
            store=StateStore(state),
            index=0,
            emit=lambda kind, text: None,
            **options,
        )

    for state, options in ((here, {"dirty": True}), (elsewhere, {"dirty": True, "take_over": True})):
        async with opener(here, 0) as stack:
            await stack.top.write(0, memoryview(b"data"))
        assert (await stranger(ceph_cluster, "info", image)).returncode != 0
        with pytest.raises(LayerDirty):
            await drop(state)
        await drop(state, **options)
        assert (await stranger(ceph_cluster, "info", image)).returncode == 0
    with pytest.raises(Fenced):
        async with opener(here, 0):
            raise AssertionError("the stack is open")
    await drop(here, dirty=True)
    async with opener(here, 0) as stack:
        assert (stack.epoch, joined(await stack.top.read(0, 4))) == (3, bytes(4))


async def test_an_image_with_clones_gets_no_layer_that_writes_back_unless_the_guard_is_off(
    ceph_cluster: Cluster, image: str, opener: Open, here: Path
) -> None:
    ceph_cluster.rbd("snap", "create", "--no-progress", f"{image}@base")
    ceph_cluster.rbd("snap", "protect", f"{image}@base")
    clone = f"{image}-clone"
    ceph_cluster.rbd("clone", f"{image}@base", clone)
    with pytest.raises(NotSupported, match=rf"{clone} could not be opened.*guard = false"):
        async with opener(here, 0):
            raise AssertionError("the image is open")
    async with opener(here, guard=True) as stack:
        assert not stack.layers
    async with opener(here, 0, guard=False) as stack:
        await stack.top.write(0, memoryview(b"data"))
        ceph_cluster.rbd("info", clone)
        await stack.writeback()
    ceph_cluster.rbd("rm", "--no-progress", clone)
