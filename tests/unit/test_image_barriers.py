"""A barrier stands between all requests before and all after it: resize and invalidation."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import Identity, ImageInfo, Volume
from fusecache.api.errors import BadCommand, LayerDirty, OutOfRange
from fusecache.images.image import Image
from fusecache.stack.assemble import Stack, StackLayer
from fusecache.stack.link import Link
from fusecache.testing.faulty import Fault, FaultyVolume
from fusecache.testing.gated import GatedVolume
from fusecache.testing.memory import MemoryVolume
from fusecache.testing.requests import Operation
from fusecache.testing.watched import WatchedVolume
from tests.support.controlled import HeldLayer
from tests.support.images import Call, is_idle, opened, read, write

SIZE = 10_000


async def test_a_barrier_waits_for_everything_before_and_blocks_everything_after() -> None:
    gate = GatedVolume(MemoryVolume(SIZE), {"read", "write"})
    order: list[str] = []
    async with opened(WatchedVolume(gate)) as image, trio.open_nursery() as nursery:
        write(image, 0, b"a", lambda: order.append("write"))
        read(image, 100, 10, lambda: order.append("read"))

        async def stand() -> None:
            async with image.barrier():
                await wait_all_tasks_blocked()
                order.append("barrier")

        nursery.start_soon(stand)
        await wait_all_tasks_blocked()
        after = [write(image, 5000, b"b", lambda: order.append("after")), read(image, 200, 10)]
        gate.held[0].let_go()
        await wait_all_tasks_blocked()
        assert order == ["write"]
        gate.open()
        for call in after:
            await call.result()
    assert order == ["write", "read", "barrier", "after"]
    assert is_idle(image.guard)


async def test_barriers_follow_each_other() -> None:
    order: list[str] = []
    async with opened(MemoryVolume(SIZE)) as image, trio.open_nursery() as nursery:

        async def stand() -> None:
            async with image.barrier():
                order.append("in")
                await wait_all_tasks_blocked()
                order.append("out")

        for _ in range(3):
            nursery.start_soon(stand)
    assert order == ["in", "out"] * 3


async def test_a_barrier_that_is_cancelled_while_it_waits_holds_nobody_up() -> None:
    gate = GatedVolume(MemoryVolume(SIZE))
    async with opened(WatchedVolume(gate)) as image, trio.open_nursery() as nursery:
        first = write(image, 0, b"a")
        nursery.start_soon(image.resize, 0)
        await wait_all_tasks_blocked()
        behind = read(image, 5000, 10)
        assert not behind.replies
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            assert await behind.result() == bytes(10)
            gate.open()
            await first.result()
    assert image.size == SIZE
    assert is_idle(image.guard)


async def test_a_barrier_is_taken_down_when_its_work_fails() -> None:
    async with opened(MemoryVolume(SIZE, attempts="done")) as image:
        with pytest.raises(ZeroDivisionError):
            async with image.barrier():
                raise ZeroDivisionError
        assert write(image, 0, b"a").at_once


async def test_a_resize_tells_that_the_content_changed_before_anybody_sees_it() -> None:
    seen: list[tuple[int, int]] = []
    volume = MemoryVolume(SIZE, attempts="done")
    async with opened(volume, lambda image: seen.append((image.size, image.guard.active))) as image:
        await image.resize(5000)
        assert seen == [(5000, 1)]
        assert image.mtime_ns > 0
        with pytest.raises(OutOfRange):
            await image.resize(-1)
        assert len(seen) == 1
        assert is_idle(image.guard)


async def test_a_failed_resize_leaves_the_image_usable() -> None:
    faulty = FaultyVolume(MemoryVolume(SIZE))
    faulty.inject(Fault({"resize"}))
    changed: list[Image] = []
    async with opened(faulty, changed.append) as image:
        with pytest.raises(OSError, match="Input/output"):
            await image.resize(0)
        assert (image.size, changed) == (SIZE, [])
        await write(image, 0, b"a").result()


async def test_a_request_that_waited_and_now_lies_past_the_end_is_refused() -> None:
    async with opened(WatchedVolume(MemoryVolume(SIZE))) as image, trio.open_nursery() as nursery:
        async with image.barrier():
            nursery.start_soon(image.resize, 100)
            await wait_all_tasks_blocked()
            calls = [read(image, 90, 100), write(image, 500, b"a"), write(image, 99, b"a")]
        for call in calls[:2]:
            with pytest.raises(OutOfRange):
                await call.result()
        await calls[2].result()
    assert is_idle(image.guard)


async def test_an_image_grows_once_for_those_who_ask_together() -> None:
    watched = WatchedVolume(MemoryVolume(SIZE))
    async with opened(watched) as image, trio.open_nursery() as nursery:
        await image.grow(SIZE)
        async with image.barrier():
            for _ in range(3):
                nursery.start_soon(image.grow, SIZE + 1000)
            await wait_all_tasks_blocked()
    assert [request.length for request in watched.ended] == [SIZE + 1000]


async def test_growing_to_what_is_there_waits_for_nothing() -> None:
    gate = GatedVolume(MemoryVolume(SIZE))
    async with opened(gate) as image:
        call = write(image, 0, b"a")
        await image.grow(SIZE)
        gate.open()
        await call.result()


@pytest.mark.parametrize("operation", ["flush", "extents"])
@pytest.mark.parametrize("attempts", ["pending", "declined"])
async def test_no_other_request_is_in_flight_during_a_resize(operation: Operation, attempts: str) -> None:
    gate = GatedVolume(MemoryVolume(SIZE), {operation, "resize"}, attempts=attempts)  # type: ignore[arg-type]
    watched = WatchedVolume(gate)
    async with opened(watched) as image, trio.open_nursery() as nursery:

        def ask() -> None:
            if operation == "flush":
                Call(image.flush)
            else:
                nursery.start_soon(lambda: image.seek(0, hole=False))

        ask()
        await gate.wait_held(1)
        nursery.start_soon(image.resize, 100)
        await wait_all_tasks_blocked()
        ask()
        await wait_all_tasks_blocked()
        assert [held.request.operation for held in gate.held] == [operation]
        gate.held[0].let_go()
        await wait_all_tasks_blocked()
        assert [held.request.operation for held in gate.held] == ["resize"]
        gate.open()
        await wait_all_tasks_blocked()
    assert not watched.violations
    assert [request.operation for request in watched.ended] == [operation, "resize", operation]
    assert is_idle(image.guard)


class Layered:
    """An image over one layer that holds as much dirty data as the test says."""

    def __init__(self, nursery: trio.Nursery, volume: Volume | None = None) -> None:
        self.changed: list[str] = []
        below = MemoryVolume(SIZE, attempts="done")
        self.layer = HeldLayer(volume or below)
        top = Link(self.layer)
        layers = [StackLayer(0, "held", self.layer, top, {})]
        stack = Stack(top, Link(below), below, layers, (), Identity("memory:test"), 1, nursery)
        self.image = Image(stack, ImageInfo("disk", "key", SIZE), lambda image: self.changed.append(image.name))


async def test_an_invalidation_stands_between_requests_and_tells_that_the_content_changed(
    nursery: trio.Nursery,
) -> None:
    gate = GatedVolume(MemoryVolume(SIZE), {"write"})
    layered = Layered(nursery, gate)
    layered.layer.dirty = 10
    before = write(layered.image, 0, b"a")
    nursery.start_soon(lambda: layered.image.invalidate(0, dirty=True))
    await wait_all_tasks_blocked()
    assert layered.layer.dirty == 10
    after = read(layered.image, 0, 1)
    gate.open()
    await before.result()
    assert await after.result() == b"a"
    assert (layered.layer.dirty, layered.changed) == (0, ["disk"])


async def test_an_invalidation_that_is_refused_changes_nothing_and_holds_nothing(nursery: trio.Nursery) -> None:
    layered = Layered(nursery)
    layered.layer.dirty = 10
    with pytest.raises(LayerDirty):
        await layered.image.invalidate(0, dirty=False)
    with pytest.raises(BadCommand, match="found layer 1, allowed: 0"):
        await layered.image.invalidate(1, dirty=True)
    assert (layered.layer.dirty, layered.changed) == (10, [])
    assert is_idle(layered.image.guard)


async def test_a_write_back_holds_nothing_up(nursery: trio.Nursery) -> None:
    layered = Layered(nursery)
    layered.layer.dirty = 10
    layered.layer.gate = trio.Event()
    nursery.start_soon(layered.image.writeback, 0)
    await layered.layer.started.wait()
    await write(layered.image, 0, b"a").result()
    layered.layer.gate.set()
    await wait_all_tasks_blocked()
    assert layered.layer.moved == 10
