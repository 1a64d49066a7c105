"""An image that is dirty stays open and locked until it is written back, unless the mount ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from fusecache.api import ImageInfo, ImageRecord
from fusecache.api.errors import ImageBusy, ImageGone, ImageNotFound, VolumeClosed
from fusecache.images.image import Image
from fusecache.images.registry import Registry
from fusecache.stack.assemble import Stack, StackLayer
from fusecache.stack.link import Link
from fusecache.testing.claims import FreeClaim
from fusecache.testing.faulty import Fault, FaultyVolume
from fusecache.testing.gated import GatedVolume
from fusecache.testing.marks import RecordingMark
from fusecache.testing.memory import MemoryBackend
from fusecache.testing.sparse import SparseBytes
from tests.support.images import write
from tests.support.writeback_layer import Pool, WritebackLayer

SIZE = 4096


class Counting(WritebackLayer):
    """Counts how often it is written back."""

    attempts = 0

    async def writeback(self) -> None:
        self.attempts += 1
        await super().writeback()


class Kept:
    """A registry over images with one write-back layer each, whose pools outlive the stacks.

    Attributes:
        layer, faults, gate: of the stack that was opened last; the gate, for changes below, is open at first.
        events: kinds of what was told.
        closed: how many stacks were closed.
        drops: what was dropped of closed images; they wait for *dropping*, as removals for *removing*.
    """

    layer: Counting
    faults: FaultyVolume
    gate: GatedVolume

    def __init__(self, nursery: trio.Nursery, release_after: float) -> None:
        self.backend = MemoryBackend(names={"disk": SIZE, "other": SIZE})
        self.pools: dict[str, Pool] = {}
        self.events: list[str] = []
        self.closed = 0
        self.drops: list[tuple[str, int, bool, bool]] = []
        self.dropping = trio.Event()
        self.dropping.set()
        self.removing = trio.Event()
        self.removing.set()
        self.registry = Registry(
            self.backend,
            open_stack=self._open,
            stack_for=lambda name: None,
            nursery=nursery,
            release_after=release_after,
            emit=lambda kind, text: self.events.append(kind),
            drop_layer=self._drop,
            remove_image=self._remove,
        )

    @asynccontextmanager
    async def _open(self, name: str) -> AsyncIterator[Stack]:
        async with self.backend.open(name, FreeClaim()) as image, trio.open_nursery() as nursery:
            self.gate = GatedVolume(image, attempts="declined")
            self.gate.open()
            self.faults = FaultyVolume(self.gate)
            base = Link(self.faults)
            pool = self.pools.setdefault(name, Pool(SparseBytes(SIZE), SparseBytes(SIZE)))
            self.layer = Counting(pool, base, RecordingMark())
            link = Link(self.layer)
            layers = [StackLayer(0, "writeback", self.layer, link, {})]
            yield Stack(link, base, image, layers, (), image.identity, 1, nursery)
            nursery.cancel_scope.cancel()
        self.closed += 1

    async def _drop(self, name: str, index: int, dirty: bool, torn: bool) -> None:
        await self.dropping.wait()
        self.drops.append((name, index, dirty, torn))

    async def _remove(self, name: str) -> None:
        await self.removing.wait()
        await self.backend.remove(name)

    async def info(self, name: str = "disk") -> ImageInfo:
        return await self.backend.lookup(name)

    async def soiled(self) -> Image:
        """Write to the image and release it."""
        async with self.registry.using("disk") as image:
            await write(image, 0, b"data").result()
            return image

    def below(self) -> bytes:
        return self.backend.images["disk"].content.read(0, 4)


@asynccontextmanager
async def kept(release_after: float = 5.0) -> AsyncIterator[Kept]:
    async with trio.open_nursery() as nursery:
        yield Kept(nursery, release_after)
        nursery.cancel_scope.cancel()


async def test_a_dirty_image_is_written_back_before_it_is_released(autojump_clock: MockClock) -> None:
    async with kept() as world:
        await world.soiled()
        await trio.sleep(4.9)
        assert world.below() == bytes(4)
        await trio.sleep(0.2)
        assert world.below() == b"data"
        assert world.closed == 1
        assert world.events == []


async def test_a_paused_layer_keeps_its_image_open_and_locked(autojump_clock: MockClock) -> None:
    async with kept() as world:
        image = await world.soiled()
        world.layer.set_writeback_rate(0)
        await trio.sleep(1000)
        assert (world.closed, world.below()) == (0, bytes(4))
        assert world.backend.images["disk"].owner is not None
        assert world.registry.opened("disk") is image
        world.layer.set_writeback_rate(None)
        await trio.sleep(10)
        assert (world.closed, world.below()) == (1, b"data")


async def test_a_failed_write_back_is_told_and_tried_again_less_and_less_often(autojump_clock: MockClock) -> None:
    async with kept() as world:
        await world.soiled()
        world.faults.inject(Fault(["write"]))
        await trio.sleep(600)
        assert world.closed == 0
        assert world.events == ["writeback-failed"]
        # After 1, 2, 4 … seconds, and then once a minute.
        assert 12 <= world.layer.attempts <= 16
        world.faults.heal()
        await trio.sleep(61)
        assert (world.closed, world.below()) == (1, b"data")


async def test_whoever_comes_during_the_write_back_uses_the_same_stack(autojump_clock: MockClock) -> None:
    async with kept() as world:
        image = await world.soiled()
        world.gate.close()
        await trio.sleep(6)
        assert world.gate.held
        async with world.registry.using("disk") as again:
            assert again is image
            await wait_all_tasks_blocked()
            assert image.dirty
            await trio.sleep(100)
            assert world.closed == 0
            world.gate.open()
        await trio.sleep(6)
        assert (world.closed, world.below()) == (1, b"data")


async def test_the_end_of_the_mount_keeps_dirty_data_and_does_not_wait(autojump_clock: MockClock) -> None:
    for hangs in (False, True):
        async with kept() as world:
            await world.soiled()
            if hangs:
                world.gate.close()
                await trio.sleep(6)
                assert world.gate.held
            with trio.fail_after(1):
                await world.registry.close()
            assert (world.closed, world.below()) == (1, bytes(4))
            assert world.layer.dirty_bytes == 4


async def test_a_dirty_image_is_neither_renamed_nor_removed(autojump_clock: MockClock) -> None:
    async with kept() as world:
        await world.soiled()
        for change in (world.registry.rename("disk", "new"), world.registry.remove("disk")):
            with pytest.raises(ImageBusy, match="'disk' has dirty data: write it back first"):
                await change
        assert world.registry.opened("disk") is not None
        async with world.registry.using("disk") as image:
            await image.writeback(None)
        await world.registry.rename("disk", "new")
        await world.registry.remove("new")
        assert list(world.backend.images) == ["other"]


@pytest.mark.parametrize("holder", ["here", "elsewhere"])
async def test_an_image_that_is_dirty_by_its_record_is_neither_renamed_nor_removed(holder: str) -> None:
    async with kept() as world:
        world.backend.images["disk"].record = ImageRecord(1, holder, holder)
        for change in (world.registry.rename("disk", "new"), world.registry.remove("disk")):
            with pytest.raises(ImageBusy, match="has dirty data"):
                await change
        world.backend.images["disk"].record = ImageRecord(1)
        await world.registry.rename("disk", "new")


async def test_dirty_data_is_not_dropped_while_a_file_is_open_for_writing() -> None:
    async with kept() as world, world.registry.using("disk") as image:
        await write(image, 0, b"data").result()
        image.writers = 1
        with pytest.raises(ImageBusy, match="open for writing"):
            await image.invalidate(0, dirty=True)
        assert image.dirty
        image.writers = 0
        await world.registry.drop_layer(await world.info(), 0, dirty=True)
        assert not image.dirty
        assert world.drops == []


async def test_a_layer_of_a_closed_image_is_dropped_while_whoever_wants_it_waits() -> None:
    async with kept() as world, trio.open_nursery() as nursery:
        world.dropping = trio.Event()
        opened: list[Image] = []

        async def use() -> None:
            async with world.registry.using("disk") as image:
                opened.append(image)

        info = await world.info()
        for _ in range(2):
            nursery.start_soon(lambda: world.registry.drop_layer(info, 0, dirty=True))
        await wait_all_tasks_blocked()
        nursery.start_soon(use)
        await wait_all_tasks_blocked()
        assert not opened
        world.dropping.set()
        await wait_all_tasks_blocked()
        assert len(opened) == 1
        assert world.drops[0] == ("disk", 0, True, False)


async def test_a_layer_of_a_replaced_image_is_not_dropped() -> None:
    async with kept() as world:
        info = await world.info()
        await world.registry.remove("disk")
        await world.backend.create("disk", SIZE)
        with pytest.raises(ImageGone):
            await world.registry.drop_layer(info, 0, dirty=True)
        assert world.drops == []


async def test_the_end_of_the_mount_does_not_wait_for_a_drop() -> None:
    async with kept() as world, trio.open_nursery() as nursery:
        world.dropping = trio.Event()
        failures: list[Exception] = []
        info = await world.info()

        async def drop() -> None:
            try:
                await world.registry.drop_layer(info, 0, dirty=True)
            except VolumeClosed as error:
                failures.append(error)

        nursery.start_soon(drop)
        await wait_all_tasks_blocked()
        await world.registry.close()
        assert len(failures) == 1
        assert world.drops == []


async def test_whoever_wants_an_image_that_is_being_removed_waits_and_finds_none() -> None:
    async with kept() as world, trio.open_nursery() as nursery:
        world.removing = trio.Event()
        failures: list[Exception] = []

        async def use() -> None:
            try:
                await world.registry.acquire("disk")
            except ImageNotFound as error:
                failures.append(error)

        nursery.start_soon(world.registry.remove, "disk")
        await wait_all_tasks_blocked()
        nursery.start_soon(use)
        await wait_all_tasks_blocked()
        assert not failures
        world.removing.set()
        await wait_all_tasks_blocked()
        assert len(failures) == 1
        assert list(world.backend.images) == ["other"]


async def test_the_end_of_the_mount_does_not_wait_for_a_removal_and_lets_none_begin() -> None:
    async with kept() as world, trio.open_nursery() as nursery:
        world.removing = trio.Event()
        failures: list[Exception] = []

        async def remove() -> None:
            try:
                await world.registry.remove("disk")
            except VolumeClosed as error:
                failures.append(error)

        nursery.start_soon(remove)
        await wait_all_tasks_blocked()
        await world.registry.close()
        await remove()
        assert len(failures) == 2
        assert "disk" in world.backend.images
