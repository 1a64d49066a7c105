"""A snapshot holds what was acknowledged before it was asked for, is of one instant, and holds changes back for little
more than that."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fusecache.api import Identity, ImageInfo
from fusecache.api.errors import FusecacheError, ImageExists, NotSupported, VolumeReadOnly
from fusecache.images.image import Image
from fusecache.images.requests import ImageFailed
from fusecache.images.snapshot import is_worth_another
from fusecache.stack.assemble import Stack, StackLayer
from fusecache.stack.link import Link
from fusecache.testing.gated import GatedVolume
from fusecache.testing.memory import MemoryVolume
from tests.support.controlled import HeldLayer
from tests.support.images import Call, is_idle, read, write

SIZE = 10_000
STEP = 0.05


class Backend(MemoryVolume):
    """An image whose snapshots are made when the test lets them."""

    def __init__(self) -> None:
        super().__init__(SIZE, attempts="done")
        self.asked = trio.Event()
        self.gate = trio.Event()
        self.gate.set()

    async def make_snapshot(self, name: str) -> None:
        self.asked.set()
        await self.gate.wait()
        await super().make_snapshot(name)

    def snapshot(self, name: str, length: int = 3) -> bytes:
        return self.image.snapshots[name].content.read(0, length)


class PacedLayer(HeldLayer):
    """Writes back *rate* bytes per second; 0 hangs."""

    rate = 0.0
    calls = 0

    async def writeback(self) -> None:
        self.calls += 1
        left: float = self.dirty
        while left > 0:
            await trio.sleep(STEP)
            moved = min(left, self.dirty, self.rate * STEP)
            left, self.dirty, self.moved = left - moved, int(self.dirty - moved), int(self.moved + moved)
        await trio.lowlevel.checkpoint()


class Layered:
    """An image over one layer over :class:`Backend`, reached through a gate where there is one."""

    def __init__(self, nursery: trio.Nursery, *, gated: bool = False) -> None:
        self.backend = Backend()
        self.gate = GatedVolume(self.backend, {"write"})
        below = Link(self.gate if gated else self.backend)
        self.layer = PacedLayer(below)
        top = Link(self.layer)
        layers = [StackLayer(0, "paced", self.layer, top, {})]
        stack = Stack(top, below, self.backend, layers, (), Identity("memory:test"), 1, nursery)
        self.image = Image(stack, ImageInfo("disk", "key", SIZE), lambda image: None)


@asynccontextmanager
async def layered(**options: bool) -> AsyncIterator[Layered]:
    async with trio.open_nursery() as nursery:
        yield Layered(nursery, **options)
        nursery.cancel_scope.cancel()


async def test_what_was_acknowledged_is_in_it_and_a_change_during_the_instant_waits_and_is_not(
    nursery: trio.Nursery,
) -> None:
    async with layered() as disk:
        image, backend = disk.image, disk.backend
        await write(image, 0, b"old").result()
        backend.gate = trio.Event()
        nursery.start_soon(image.snapshot, "s")
        await backend.asked.wait()
        changes = [write(image, 0, b"new"), Call(lambda done: image.discard(1, 1, done))]
        apart = write(image, 5000, b"new")
        assert await read(image, 100, 3).result() == bytes(3)
        await Call(image.flush).result()
        await wait_all_tasks_blocked()
        assert not any(call.replies for call in (*changes, apart))
        backend.gate.set()
        for call in (*changes, apart):
            await call.result()
        assert backend.snapshot("s") == b"old"
        assert await read(image, 0, 3).result() == b"n\0w"
        assert is_idle(image.guard)


async def test_a_change_that_was_begun_is_waited_for_and_is_in_it(nursery: trio.Nursery) -> None:
    async with layered(gated=True) as disk:
        begun = write(disk.image, 0, b"abc")
        await disk.gate.wait_held(1)
        nursery.start_soon(disk.image.snapshot, "s")
        await wait_all_tasks_blocked()
        assert not disk.backend.asked.is_set()
        disk.gate.open()
        await begun.result()
        await disk.backend.asked.wait()
        await wait_all_tasks_blocked()
        assert disk.backend.snapshot("s") == b"abc"


async def test_all_is_written_back_while_nobody_waits(nursery: trio.Nursery, autojump_clock: trio.abc.Clock) -> None:
    async with layered() as disk:
        disk.layer.dirty, disk.layer.rate = 1000, 100.0
        nursery.start_soon(disk.image.snapshot, "s")
        with trio.move_on_after(9.5):
            while True:
                assert write(disk.image, 0, b"a").at_once
                await trio.sleep(0.1)
        assert not disk.backend.asked.is_set()
        await disk.backend.asked.wait()
        assert disk.layer.dirty == 0
        await wait_all_tasks_blocked()


async def test_a_writer_that_outruns_the_write_back_is_slowed_down_and_never_blocked_for_long(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    longest = 0.0
    async with layered() as disk:
        disk.layer.dirty, disk.layer.rate = 2000, 1000.0

        async def outrun() -> None:
            nonlocal longest
            while not disk.backend.asked.is_set():
                begin = trio.current_time()
                await write(disk.image, 0, b"a").result()
                longest = max(longest, trio.current_time() - begin)
                disk.layer.dirty += 200
                await trio.sleep(0.1)

        nursery.start_soon(outrun)
        with trio.fail_after(120):
            await disk.image.snapshot("s")
        assert disk.backend.snapshot("s")
    assert 0.5 < longest < 1.5


async def test_a_writer_whose_queue_outweighs_a_second_of_write_back_does_not_starve_it(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    async with layered() as disk:
        disk.layer.dirty, disk.layer.rate = 1000, 1000.0

        async def outrun() -> None:
            while not disk.backend.asked.is_set():
                await write(disk.image, 0, b"a").result()
                disk.layer.dirty = min(disk.layer.dirty + 3000, 9000)
                await trio.sleep(0.01)

        nursery.start_soon(outrun)
        with trio.fail_after(300):
            await disk.image.snapshot("s")


async def test_a_backend_that_goes_away_in_the_instant_holds_changes_back_for_a_second(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    async with layered(gated=True) as disk:
        # What is under way when changes are to be held back, and what comes then.
        begun = write(disk.image, 0, b"a")
        await disk.gate.wait_held(1)
        nursery.start_soon(disk.image.snapshot, "s")
        await wait_all_tasks_blocked()
        disk.layer.dirty = 100
        disk.gate.operations = frozenset()
        begin = trio.current_time()
        await write(disk.image, 5000, b"b").result()
        assert trio.current_time() - begin < 1.1
        await trio.sleep(60)
        assert write(disk.image, 5000, b"c").at_once
        assert not disk.backend.asked.is_set()
        disk.gate.open()
        disk.layer.rate = 1000.0
        await disk.backend.asked.wait()
        await begun.result()
        await wait_all_tasks_blocked()


async def test_a_write_back_that_fails_makes_no_snapshot_and_holds_nothing() -> None:
    async with layered() as disk:

        async def fail() -> None:
            if disk.image.guard.active:
                raise OSError(5, "the pool is broken")

        disk.layer.writeback = fail  # type: ignore[method-assign]
        with pytest.raises(OSError, match="the pool is broken"):
            await disk.image.snapshot("s")
        assert not disk.backend.image.snapshots
        assert write(disk.image, 0, b"a").at_once
        assert is_idle(disk.image.guard)


async def test_a_backend_that_does_not_answer_is_found_out_before_changes_wait(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with layered() as disk:
        asked, gives_up = trio.Event(), trio.Event()

        async def silent(volume: MemoryVolume) -> ImageInfo:
            asked.set()
            await gives_up.wait()
            raise FusecacheError("the cluster did not answer within 30 s")

        async def ask() -> None:
            with pytest.raises(FusecacheError, match="did not answer"):
                await disk.image.snapshot("s")

        monkeypatch.setattr(MemoryVolume, "info", silent)
        nursery.start_soon(ask)
        await asked.wait()
        assert write(disk.image, 0, b"a").at_once
        gives_up.set()
        await wait_all_tasks_blocked()
        assert not disk.backend.image.snapshots


async def test_what_is_refused_anyway_costs_no_write_back() -> None:
    async with layered() as disk:
        await disk.image.snapshot("s")
        calls = disk.layer.calls
        with pytest.raises(ImageExists):
            await disk.image.snapshot("s")
        disk.backend.read_only = True
        with pytest.raises(VolumeReadOnly):
            await disk.image.snapshot("t")
        disk.image.lose()
        with pytest.raises(VolumeReadOnly, match="lock was taken away"):
            await disk.image.snapshot("t")
        assert disk.layer.calls == calls


async def test_a_backend_without_snapshots_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("check_snapshot", "make_snapshot"):
        monkeypatch.delattr(MemoryVolume, method)
    async with layered() as disk:
        with pytest.raises(NotSupported, match="takes no snapshots"):
            await disk.image.snapshot("s")
        assert not disk.layer.calls


async def test_a_snapshot_that_is_given_up_holds_nothing(nursery: trio.Nursery) -> None:
    async with layered() as disk:
        disk.backend.gate = trio.Event()
        with trio.CancelScope() as scope:
            nursery.start_soon(wait_and_cancel, disk.backend.asked, scope)
            await disk.image.snapshot("s")
        await wait_all_tasks_blocked()
        assert write(disk.image, 0, b"a").at_once
        assert is_idle(disk.image.guard)


async def wait_and_cancel(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def test_where_the_stack_comes_down_in_the_instant_everybody_is_told_and_nothing_is_held(
    nursery: trio.Nursery,
) -> None:
    async with layered() as disk:
        image, told = disk.image, list[Exception]()

        async def ask() -> None:
            try:
                await image.snapshot("s")
            except ImageFailed as error:
                told.append(error)

        disk.backend.gate = trio.Event()
        nursery.start_soon(ask)
        await disk.backend.asked.wait()
        waiting = [write(image, at, b"new") for at in (0, 5000)]
        image.fail(RuntimeError("a task crashed"))
        for call in waiting:
            with pytest.raises(ImageFailed):
                await call.result()
        await wait_all_tasks_blocked()
        assert len(told) == 1
        assert not disk.backend.image.snapshots
        # All but what refuses every later request.
        assert image.guard.active == 1


async def test_before_a_shrink_all_is_written_back_while_nobody_waits(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    async with layered() as disk:
        disk.layer.dirty, disk.layer.rate = 1000, 100.0
        nursery.start_soon(disk.image.resize, SIZE // 2)
        with trio.move_on_after(9.5):
            while True:
                assert write(disk.image, 0, b"a").at_once
                await trio.sleep(0.1)
        assert disk.image.size == SIZE
        await trio.sleep(1)
        assert disk.image.size == SIZE // 2


@pytest.mark.parametrize(
    ("took", "last", "worth"),
    [(5.0, float("inf"), True), (2.0, 5.0, True), (3.0, 5.0, False), (0.05, float("inf"), False), (0.0, 0.0, False)],
)
def test_another_write_back_is_worth_it_where_it_leaves_much_less(took: float, last: float, worth: bool) -> None:
    assert is_worth_another(took, last) == worth
