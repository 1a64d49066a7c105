"""A write-back log in groups over another one: whenever a level may be torn, the image's record says so of a layer."""

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from fusecache.api import DECLINED, Attempt, Done, ImageRecord
from fusecache.api.errors import LayerDirty
from fusecache.config.schema import LayerConfig, StackConfig
from fusecache.mount import running_completions
from fusecache.stack import assemble
from fusecache.stack.assemble import Stack, open_stack
from fusecache.stack.drop import drop_layer
from fusecache.stack.link import Link
from fusecache.state.manifest import decode
from fusecache.state.store import StateStore
from fusecache.testing import ThreadFileSync
from fusecache.testing.memory import MemoryBackend, MemoryVolume

pytest.importorskip("fusecache_rwl", reason="the part rwl is left out")

NAME = "disk"
BLOCK = 4096
GENERATIONS = 12
SIZE = 2 * GENERATIONS * BLOCK


def place(number: int) -> int:
    """Return where a generation has its block: apart, so that each goes down alone, and in another order."""
    return 2 * BLOCK * (5 * number % GENERATIONS)


def states() -> list[bytes]:
    """Return the image after each generation."""
    found = [bytes(SIZE)]
    for number in range(GENERATIONS):
        at = place(number)
        found.append(found[-1][:at] + bytes([number + 1]) * BLOCK + found[-1][at + BLOCK :])
    return found


STATES = states()


class Disk:
    """An image in memory under two logs, and what its record said whenever it or the record changed.

    Attributes:
        torn: what was said of the layers, bottom up, each time that the image was no state between two generations.
    """

    def __init__(self, directory: Path) -> None:
        self.backend = MemoryBackend(attempts="done", names={NAME: SIZE})
        self.torn: list[tuple[str, ...]] = []
        self._store = StateStore(directory)
        options = {"path": str(directory), "size": "16MiB", "writeback_rate": "0", "writeback_depth": 1}
        upper = LayerConfig(index=1, plugin="rwl", options=options | {"order": "grouped"})
        lower = LayerConfig(index=0, plugin="rwl", options=options)
        self._config = StackConfig(images=("*",), layers=(upper, lower))

    @property
    def content(self) -> bytes:
        """The bytes of the image."""
        return self.backend.images[NAME].content.read(0, SIZE)

    def look(self) -> None:
        """See that what is torn is said to be."""
        if self.content not in STATES:
            self.torn.append(self.said())
            assert any(self.torn[-1])

    def said(self) -> tuple[str, ...]:
        """Return what the record says of each layer."""
        record = self.backend.images[NAME].record
        layers = decode(record.manifest.encode()).layers if record is not None and record.manifest else ()
        return tuple(
            "torn" * layer.torn + " beyond" * layer.torn_beyond + "holds" * layer.holds_group for layer in layers
        )

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Stack]:
        """Open the stack."""
        async with (
            running_completions() as completions,
            open_stack(
                backend=self.backend,
                name=NAME,
                configured=self._config,
                store=self._store,
                completions=completions,
                file_sync=ThreadFileSync(completions),
                emit=lambda kind, text: None,
            ) as stack,
        ):
            yield stack

    async def drop(self, index: int, *, torn: bool = False) -> None:
        """Discard a layer's dirty data while the image is closed."""
        await drop_layer(
            backend=self.backend,
            name=NAME,
            configured=self._config,
            store=self._store,
            index=index,
            emit=lambda kind, text: None,
            dirty=True,
            torn=torn,
        )


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk(tmp_path)
    write, set_record = MemoryVolume._write, MemoryVolume.set_record

    def writing(volume: MemoryVolume, offset: int, data: bytes | memoryview) -> None:
        write(volume, offset, data)
        made.look()

    async def setting(volume: MemoryVolume, record: ImageRecord, *, guard: bool) -> None:
        await set_record(volume, record, guard=guard)
        made.look()

    monkeypatch.setattr(MemoryVolume, "_write", writing)
    monkeypatch.setattr(MemoryVolume, "set_record", setting)
    return made


async def fill(stack: Stack, first: int = 0, last: int = GENERATIONS) -> None:
    """Write generations, each with a flush."""
    for number in range(first, last):
        await stack.top.write(place(number), memoryview(bytes([number + 1]) * BLOCK))
        await stack.top.flush()


class Held:
    """The upper log in the middle of its group, some of which is in the lower one: the next write waits for *go*."""

    def __init__(self, below: Link, patch: pytest.MonkeyPatch, after: int = GENERATIONS // 2) -> None:
        self.reached, self.go = trio.Event(), trio.Event()
        self._left = after
        self._refused = False
        self._attempt, self._write = below.try_write, below.write
        patch.setattr(below, "try_write", self._try_write)
        patch.setattr(below, "write", self._wait_and_write)

    def go_on(self, writes: int) -> None:
        """Let it go on for so many writes."""
        go, self.go, self.reached, self._left = self.go, trio.Event(), trio.Event(), writes - 1
        go.set()

    def refuse(self) -> None:
        """Have this write fail, and all that follow."""
        self._refused = True
        self.go.set()

    def _try_write(self, offset: int, data: memoryview, done: Done) -> Attempt:
        self._left -= 1
        return DECLINED if self._left < 0 else self._attempt(offset, data, done)

    async def _wait_and_write(self, offset: int, data: memoryview) -> None:
        if self._left < 0:
            self.reached.set()
            await self.go.wait()
        if self._refused:
            raise OSError(errno.EIO, "refused")
        await self._write(offset, data)


async def test_while_a_group_goes_through_both_logs_one_of_them_is_said_to_leave_it_torn(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with disk.open() as stack:
        await fill(stack)
        held = Held(stack.layers[0].link, monkeypatch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stack.writeback, 1)
            await held.reached.wait()
            # Half of the group goes down to the image, and the lower log is clean.
            await stack.writeback(0)
            assert disk.content not in STATES
            assert disk.said() == ("", "torn")
            with pytest.raises(LayerDirty, match=r"lies under dirty layers.*: 1"):
                await stack.invalidate(0, dirty=True, torn=True)
            with pytest.raises(LayerDirty, match=r"layer 1 is in the middle .* --layer 1 --dirty --torn"):
                await stack.invalidate(1, dirty=True)
            held.go.set()
        assert disk.content not in STATES
        assert disk.said() == ("holds", "")
        with pytest.raises(LayerDirty, match="--layer 0 --dirty --torn"):
            await stack.invalidate(0, dirty=True)
        await stack.writeback()
        assert disk.content == STATES[-1]
    assert set(disk.torn) == {("", "torn"), ("holds", "")}
    assert disk.said() == ()


async def test_what_is_left_of_a_group_that_was_discarded_is_asked_about_down_to_the_image(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with disk.open() as stack, trio.open_nursery() as nursery:
        await fill(stack)
        held = Held(stack.layers[0].link, monkeypatch)
        waiting = trio.CancelScope()

        async def write_back() -> None:
            with waiting:
                await stack.writeback(1)

        nursery.start_soon(write_back)
        await held.reached.wait()
        waiting.cancel()
        held.go.set()
        await stack.invalidate(1, dirty=True, torn=True)
        assert disk.said() == ("holds", "")
        with pytest.raises(LayerDirty, match="--layer 0 --dirty --torn"):
            await stack.invalidate(0, dirty=True)
    with pytest.raises(LayerDirty, match="--layer 0 --dirty --torn"):
        await disk.drop(0)
    await disk.drop(0, torn=True)
    assert disk.said() == ()


async def test_a_group_that_is_whole_in_the_lower_log_is_torn_in_the_image_until_all_of_it_is_there(
    disk: Disk,
) -> None:
    async with disk.open() as stack:
        await fill(stack)
        await stack.writeback(1)
        assert disk.content == STATES[0]
        assert disk.said() == ("holds", "")
        with pytest.raises(LayerDirty, match=r"layer 0 holds writes .* --layer 0 --dirty --torn"):
            await stack.invalidate(0, dirty=True)
        assert not disk.torn
        await stack.writeback(0)
        assert set(disk.torn) == {("holds", "")}
        # It is clean, and has nothing to lose.
        await stack.invalidate(0, dirty=True)
    assert disk.content == STATES[-1]
    assert disk.said() == ()


def fails(stack: Stack, patch: pytest.MonkeyPatch) -> None:
    """Have the upper log fail as soon as it is to retire anything."""
    layer: Any = stack.layers[1].layer

    def failing(data: bytes, at: int, done: Done) -> None:
        done(OSError(errno.EIO, "the medium fails"))

    patch.setattr(layer._log.medium, "write_superblock", failing)


async def test_what_an_upper_log_saved_before_it_died_is_torn_in_both_levels_until_all_it_recovers_is_there(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = GENERATIONS // 2
    async with disk.open() as stack:
        await fill(stack, 0, half)
        held = [Held(stack.layers[0].link, monkeypatch, 3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stack.writeback, 1)
            await held[0].reached.wait()
            await fill(stack, half, GENERATIONS)
            fails(stack, monkeypatch)
            # The rest of the group, all of it again, as it is not retired, and one of those that follow.
            held[0].go_on(half - 3 + half + 1)
            await held[0].reached.wait()
            nursery.cancel_scope.cancel()
        held[0].refuse()
    assert disk.said() == ("", "torn beyond")
    with pytest.raises(LayerDirty, match="--layer 1 --dirty --torn"):
        await disk.drop(1)
    linked, links = assemble._linked, []

    def linking(opened: AsyncExitStack, link: Link) -> Link:
        links.append(link)
        if len(links) == 2:
            # Before the upper log is opened, which begins at once.
            held.append(Held(link, monkeypatch, 3))
        return linked(opened, link)

    monkeypatch.setattr(assemble, "_linked", linking)
    async with disk.open() as stack:
        await held[1].reached.wait()
        await stack.writeback(0)
        assert disk.content not in STATES
        assert disk.said() == ("", "torn beyond")
        held[1].go.set()
        await stack.writeback(1)
        assert disk.said() == ("holds", "")
        await stack.writeback()
    assert disk.content == STATES[-1]
    assert disk.said() == ()


async def test_what_goes_down_generation_by_generation_is_never_torn(disk: Disk) -> None:
    async with disk.open() as stack:
        for number in range(GENERATIONS):
            await stack.top.write(place(number), memoryview(bytes([number + 1]) * BLOCK))
            await stack.writeback(1)
        assert disk.said() == ("", "")
        await stack.writeback(0)
    assert not disk.torn


@pytest.mark.parametrize("way", ["open", "closed"])
async def test_the_lower_log_of_a_group_is_discarded_only_if_torn_will_do(disk: Disk, way: str) -> None:
    async with disk.open() as stack:
        await fill(stack)
        await stack.writeback(1)
        await stack.top.write(0, memoryview(b"\xff" * BLOCK))

    @asynccontextmanager
    async def discards() -> AsyncIterator[Callable[..., Any]]:
        if way == "closed":
            yield disk.drop
        else:
            async with disk.open() as stack:
                yield partial(stack.invalidate, dirty=True)

    opened: AbstractAsyncContextManager[Callable[..., Any]] = discards()
    async with opened as discard:
        # What lies on top of a whole group goes without a question.
        await discard(1)
        with pytest.raises(LayerDirty, match="--layer 0 --dirty --torn"):
            await discard(0)
        await discard(0, torn=True)
    assert disk.content == STATES[0]
    assert disk.said() == ()
