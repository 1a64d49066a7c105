"""An open image of librbd's is closed when nobody uses it any more, and not before."""

import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from fusecache.api.errors import VolumeClosed
from fusecache.backends.rbd import handle as handles
from fusecache.backends.rbd.client import Client
from fusecache.backends.rbd.handle import OpenHandle
from tests.support.ceph import Cluster
from tests.support.rbd import create, opened, rbd, running_client

PATIENCE = 20.0


@pytest.fixture
async def client(ceph_cluster: Cluster) -> AsyncIterator[Client]:
    """A client of the shared cluster."""
    async with running_client(ceph_cluster) as client:
        yield client


class Kept:
    """Counts who keeps the connection up."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> Any:
        self.count += 1
        return self.release

    def release(self) -> None:
        """Let go."""
        self.count -= 1


async def opened_handle(client: Client, name: str, kept: Kept) -> OpenHandle:
    """Open an image, without its lock."""
    handle: OpenHandle = await client.call(lambda: OpenHandle(rbd.Image(client.ioctx, name), kept))
    return handle


async def test_closing_waits_for_the_call_that_runs_on_a_thread(client: Client, image_name: str) -> None:
    kept, closed, begun, go_on = Kept(), threading.Event(), threading.Event(), threading.Event()
    await client.call(create, client, image_name, 1 << 20)
    handle = await opened_handle(client, image_name, kept)
    assert (handle.name, handle.size, handle.object_size, kept.count) == (image_name, 1 << 20, 4 << 20, 1)

    def work(image: Any, answer: str) -> tuple[str, int]:
        begun.set()
        assert go_on.wait(PATIENCE)
        return answer, image.size()

    answers = []

    async def use() -> None:
        answers.append(await client.call(handle.use, work, "size"))

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await trio.to_thread.run_sync(begun.wait, PATIENCE)
            handle.close(closed.set)
            with pytest.raises(VolumeClosed, match=image_name):
                handle.use(work, "size")
            assert not closed.is_set()
            assert kept.count == 1
            assert handle in handles._closing
            go_on.set()
        assert await trio.to_thread.run_sync(closed.wait, PATIENCE)
    assert answers == [("size", 1 << 20)]
    assert kept.count == 0
    assert handle not in handles._closing


async def test_an_image_that_does_not_answer_is_closed_and_owned_by_nobody(client: Client, image_name: str) -> None:
    kept = Kept()
    await client.call(create, client, image_name, 1 << 20)

    def open_it() -> Any:
        image = rbd.Image(client.ioctx, image_name)
        image.close()
        with pytest.raises(rbd.Error):
            OpenHandle(image, kept)

    await client.call(open_it)
    assert kept.count == 0


async def test_an_image_closes_while_extents_that_nobody_waits_for_are_told(client: Client, image_name: str) -> None:
    await client.call(create, client, image_name, 16 << 40)
    for _ in range(5):
        async with opened(client, image_name) as image:
            with trio.move_on_after(0.05) as scope:
                await image.extents(0, image.size)
            assert scope.cancelled_caught
    assert client.completions.outstanding <= 3
