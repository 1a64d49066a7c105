"""Reads through a handle of their own are the image's, whatever happens to it, and need that handle in no case."""

import errno
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from fusecache.api import Backend, joined
from fusecache.backends.files import ImageShrank
from fusecache.backends.rbd.failures import LockLost
from fusecache.backends.rbd.image import RbdImage
from fusecache.backends.rbd.librados import QUICK
from fusecache.backends.rbd.wakeups import gentle_threads
from fusecache.testing.claims import FreeClaim
from tests.support.ceph import Cluster
from tests.support.pools import blocklist, pool_backend

OBJECT = 4 << 20
SIZE = 2 * OBJECT
PATIENCE = 20.0


@pytest.fixture
async def backend(ceph_cluster: Cluster, namespace: str) -> AsyncIterator[Backend]:
    """A backend over that namespace, with an image."""
    # Ceph takes whole seconds only.
    async with pool_backend(ceph_cluster, namespace=namespace, timeout=20.5) as backend:
        await backend.create("image", SIZE)
        yield backend


@asynccontextmanager
async def opened(backend: Backend, name: str = "image") -> AsyncIterator[RbdImage]:
    """An open image that is read from its objects."""
    async with backend.open(name, FreeClaim()) as image:
        assert isinstance(image, RbdImage)
        with trio.fail_after(PATIENCE):
            while not reads_objects(image):
                await trio.lowlevel.checkpoint()
        yield image


def reads_objects(image: RbdImage) -> bool:
    reads = image._reads
    return reads is not None and reads.start(0, 1, lambda result, buffer: None)


async def test_what_was_written_is_read_and_holes_are_zeroes(backend: Backend) -> None:
    async with opened(backend) as image:
        data = bytes(range(256)) * 64
        for offset in (0, OBJECT - 5000, SIZE - len(data)):
            await image.write(offset, memoryview(data))
            assert joined(await image.read(offset, len(data))) == data
        await image.discard(100, 200)
        assert joined(await image.read(0, 400)) == data[:100] + bytes(200) + data[300:400]
        assert joined(await image.read(OBJECT, SIZE - OBJECT - len(data)))[20000:] == bytes(
            SIZE - OBJECT - len(data) - 20000
        )


@pytest.mark.parametrize("written", [(0, 1 << 20), (0, 300_000), (700_000, 100_000)])
async def test_a_large_read_that_is_alone_is_whole(backend: Backend, written: tuple[int, int]) -> None:
    offset, length = written
    async with opened(backend) as image:
        data = os.urandom(length)
        await image.write(offset, memoryview(data))
        expected = bytes(offset) + data + bytes((1 << 20) - offset - length)
        # The second one uses the buffer of the first.
        for _ in range(2):
            assert joined(await image.read(0, 1 << 20)) == expected


@pytest.mark.parametrize("failing", [{1}, {2}, {1, 2}])
async def test_a_half_that_cannot_be_read_is_asked_of_librbd(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    async with opened(backend) as image:
        data = os.urandom(1 << 20)
        await image.write(0, memoryview(data))
        create, pieces = QUICK.rados_aio_create_completion2, []

        def refuse_some(*args: Any) -> int:
            pieces.append(1)
            return -errno.ENOMEM if len(pieces) in failing else create(*args)

        monkeypatch.setattr(QUICK, "rados_aio_create_completion2", refuse_some)
        assert joined(await image.read(0, 1 << 20)) == data
        assert len(pieces) == 2


async def test_many_reads_at_once_each_get_their_own(backend: Backend) -> None:
    async with opened(backend) as image:
        block = 4096
        await image.write(0, memoryview(b"".join(bytes([number]) * block for number in range(200))))
        wrong: list[int] = []

        async def read(number: int) -> None:
            if joined(await image.read(number * block, block)) != bytes([number]) * block:
                wrong.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(read, number)
        assert wrong == []


async def test_after_a_resize_the_new_size_is_read(backend: Backend) -> None:
    async with opened(backend) as image:
        for size in (SIZE + 12345, OBJECT, 3 * OBJECT):
            await image.resize(size)
            await image.write(size - 100, memoryview(b"x" * 100))
            assert joined(await image.read(size - 100, 100)) == b"x" * 100
        # Cut off and grown again: what lay there is gone.
        assert joined(await image.read(OBJECT, 1000)) == bytes(1000)


async def test_a_clone_is_read_through_to_its_parent_and_never_by_a_handle_that_is_not_told_of_changes(
    backend: Backend, rbd: Callable[..., str]
) -> None:
    async with opened(backend) as image:
        await image.write(0, memoryview(b"parent" * 1000))
        await image.write(OBJECT, memoryview(b"parent" * 1000))
    await trio.to_thread.run_sync(rbd, "snap", "create", "--no-progress", "%image@base")
    await trio.to_thread.run_sync(rbd, "clone", "--rbd-default-clone-format", "2", "%image@base", "%clone")
    async with backend.open("clone", FreeClaim()) as clone:
        await clone.write(6, memoryview(b"CHILD!"))
        assert joined(await clone.read(0, 18)) == b"parentCHILD!parent"
        assert joined(await clone.read(OBJECT, 6)) == b"parent"
        await clone.resize(OBJECT)
        await clone.resize(SIZE)
        assert joined(await clone.read(OBJECT, 6)) == bytes(6)


async def test_what_somebody_else_cut_off_is_an_error_once_it_is_noticed(
    backend: Backend, rbd: Callable[..., str]
) -> None:
    async with opened(backend) as image:
        await trio.to_thread.run_sync(rbd, "resize", "--no-progress", "--allow-shrink", "--size", "4M", "%image")
        assert (await image.info()).size == OBJECT
        with pytest.raises(ImageShrank):
            await image.read(OBJECT, 10)


async def test_without_its_lock_nothing_is_read(
    backend: Backend, ceph_cluster: Cluster, rbd: Callable[..., str]
) -> None:
    async with opened(backend) as image:
        (lock,) = json.loads(await trio.to_thread.run_sync(rbd, "lock", "list", "--format", "json", "%image"))
        await trio.to_thread.run_sync(blocklist, ceph_cluster, lock["address"])
        with trio.fail_after(PATIENCE):
            await image.until_lost()
        assert not reads_objects(image)
        with pytest.raises(LockLost):
            await image.read(0, 4)


async def test_a_client_for_reading_that_is_blocklisted_is_replaced_and_no_read_fails(
    backend: Backend, ceph_cluster: Cluster
) -> None:
    data = os.urandom(1 << 20)
    async with opened(backend) as image, trio.open_nursery() as nursery:
        await image.write(0, memoryview(data))
        reader = backend._reads  # type: ignore[attr-defined]
        former, count = reader.address, 0

        async def read_on(block: int) -> None:
            nonlocal count
            while True:
                for at in range(block << 12, len(data), 32 << 12):
                    assert joined(await image.read(at, 4096)) == data[at : at + 4096]
                    count += 1

        for block in range(32):
            nursery.start_soon(read_on, block)
        await trio.to_thread.run_sync(blocklist, ceph_cluster, former)
        with trio.fail_after(PATIENCE):
            while reader.address in (former, ""):
                await trio.lowlevel.checkpoint()
        # It is not librbd that reads from now on.
        image._read_locked = None  # type: ignore[method-assign,assignment]
        before = count
        with trio.fail_after(PATIENCE):
            while count < before + 1000:
                await trio.lowlevel.checkpoint()
        assert not image.read_only
        nursery.cancel_scope.cancel()
        del image._read_locked


async def test_threads_that_read_interrupt_nobody_while_many_reads_are_under_way(backend: Backend) -> None:
    before = gentle_threads()
    async with opened(backend) as image:

        async def gentle_after(reads: int, at_once: int) -> set[str]:
            for _ in range(reads // at_once):
                async with trio.open_nursery() as nursery:
                    for _ in range(at_once):
                        nursery.start_soon(image.read, 0, 4096)
            return {name_of(thread) for thread in gentle_threads() - before}

        for _ in range(2):
            assert await gentle_after(600, at_once=600) >= {"msgr-worker-0", "io_context_pool"}
            assert os.sched_getscheduler(0) == os.SCHED_OTHER
            assert not await gentle_after(300, at_once=1)


def name_of(thread: int) -> str:
    return Path(f"/proc/self/task/{thread}/comm").read_text().strip()


async def test_a_backend_leaves_no_pipe_behind(ceph_cluster: Cluster, namespace: str) -> None:
    before = pipes()
    async with pool_backend(ceph_cluster, namespace=namespace) as backend:
        await backend.create("image", SIZE)
        async with opened(backend) as image:
            await image.read(0, 10)
        assert set(pipes()) > set(before)
    assert pipes() == before


def pipes() -> list[str]:
    """Return the pipes that this process has, an entry for each descriptor."""
    found = (str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink())
    return sorted(target for target in found if target.startswith("pipe:"))


async def test_more_reads_than_the_pipe_can_tell_of_are_librbd_s(backend: Backend) -> None:
    async with opened(backend) as image:
        await image.write(0, memoryview(b"x" * 8192))
        reader = backend._reads  # type: ignore[attr-defined]
        assert reader._most == 65536 // 4
        reader._most = 10
        wrong: list[bytes] = []

        async def read() -> None:
            if (found := joined(await image.read(0, 8192))) != b"x" * 8192:
                wrong.append(found)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(read)
        assert wrong == []


async def test_what_was_read_when_the_lock_was_lost_is_an_error(backend: Backend) -> None:
    async with opened(backend) as image:
        ended: list[BaseException | None] = []
        image.try_read(0, 10, lambda error, buffers: ended.append(error))
        image._failures.lose()
        with trio.fail_after(PATIENCE):
            while not ended:
                await trio.lowlevel.checkpoint()
        assert isinstance(ended[0], LockLost)


async def test_an_image_can_be_closed_while_its_handle_for_reading_is_being_opened(backend: Backend) -> None:
    for _ in range(3):
        async with backend.open("image", FreeClaim()) as image:
            await image.read(0, 10)
    await backend.remove("image")
