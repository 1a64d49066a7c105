"""Every check of a volume's asynchronous methods catches a volume that breaks its promise."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import pytest
import trio

from fusecache.api import Buffers, Extent, Volume
from fusecache.testing import MemoryVolume, check_volume
from fusecache.testing import volume_checks as checks
from fusecache.testing.harness import keep
from tests.contract.broken import opened

SIZE: Final = 32768 + 517


class OddAlignment(MemoryVolume):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.alignment = 3


class BornWithGarbage(MemoryVolume):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.content.write(size - 1, b"\xee")


class ShortAtTheEnd(MemoryVolume):
    async def read(self, offset: int, length: int) -> Buffers:
        buffers = await super().read(offset, length)
        return [bytes(buffers[0])[:-1]] if offset and offset + length == self.size else buffers


class SpillsOneByte(MemoryVolume):
    async def write(self, offset: int, data: memoryview) -> None:
        await super().write(offset, data)
        if offset + len(data) < self.size:
            self.content.write(offset + len(data), b"\0")


class LosesTheLastPartialBlock(MemoryVolume):
    async def write(self, offset: int, data: memoryview) -> None:
        whole = self.size // 512 * 512
        if kept := data[: max(0, whole - offset)]:
            await super().write(offset, kept)


class ZeroesNothing(MemoryVolume):
    async def write_zeroes(self, offset: int, length: int) -> None:
        await trio.lowlevel.checkpoint()


class DiscardsWholeBlocksOnly(MemoryVolume):
    async def discard(self, offset: int, length: int) -> None:
        start, end = -(-offset // 4096) * 4096, (offset + length) // 4096 * 4096
        if start < end:
            await super().discard(start, end - start)


class ExtentsOfEverything(MemoryVolume):
    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await super().extents(0, self.size)


class SharesItsStorage(MemoryVolume):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.shared = bytearray(size)

    async def read(self, offset: int, length: int) -> Buffers:
        self.shared[:] = self.content.read(0, len(self.shared))
        return [memoryview(self.shared)[offset : offset + length]]


class KeepsTheCallersData(MemoryVolume):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.kept: list[tuple[int, memoryview]] = []

    async def write(self, offset: int, data: memoryview) -> None:
        self.kept.append((offset, data))

    async def read(self, offset: int, length: int) -> Buffers:
        for at, data in self.kept:
            self.content.write(at, data)
        self.kept.clear()
        return await super().read(offset, length)


class FlushesTheWrongWay(MemoryVolume):
    async def flush(self) -> None:
        self.content.punch(0, 1)


class RemembersWhatWasCutOff(MemoryVolume):
    cut_off = b""

    async def resize(self, size: int) -> None:
        old = self.size
        if size < old:
            self.cut_off = self.content.read(size, old - size)
        await super().resize(size)
        if size > old:
            self.content.write(old, self.cut_off[: size - old])


class OneScratchForAll(MemoryVolume):
    async def write(self, offset: int, data: memoryview) -> None:
        self.scratch = offset, bytes(data)
        await trio.lowlevel.checkpoint()
        self.content.write(*self.scratch)


class ForgetsAcrossABoundary(MemoryVolume):
    async def write(self, offset: int, data: memoryview) -> None:
        room = 8192 - offset % 8192
        await super().write(offset, data[:room] if offset % 2 else data)


class GoesOnAfterACancellation(MemoryVolume):
    async def write(self, offset: int, data: memoryview) -> None:
        copy = bytes(data)
        trio.lowlevel.spawn_system_task(self._later, offset, copy)
        await trio.lowlevel.checkpoint()
        self.content.write(offset, copy)

    async def _later(self, offset: int, data: bytes) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        self.content.write(offset, data)


class CancelledReadsDropData(MemoryVolume):
    async def read(self, offset: int, length: int) -> Buffers:
        try:
            return await super().read(offset, length)
        except trio.Cancelled:
            self.content.punch(offset, length)
            raise


class CancelledChangesSpill(MemoryVolume):
    async def discard(self, offset: int, length: int) -> None:
        try:
            await super().discard(offset, length)
        except trio.Cancelled:
            self.content.punch(0, self.size)
            raise


class HalfResized(MemoryVolume):
    async def resize(self, size: int) -> None:
        self.size, old = 0, self.size
        await trio.lowlevel.checkpoint()
        self.size = old
        await super().resize(size)


BROKEN: Final[Sequence[tuple[Callable[[Volume], Awaitable[None]], type[MemoryVolume]]]] = (
    (checks.geometry_is_sound, OddAlignment),
    (checks.what_was_never_written_reads_as_zeroes, BornWithGarbage),
    (checks.a_read_returns_exactly_what_was_asked, ShortAtTheEnd),
    (checks.a_change_stays_inside_its_range, SpillsOneByte),
    (checks.a_change_stays_inside_its_range, LosesTheLastPartialBlock),
    (checks.write_zeroes_reads_as_zeroes, ZeroesNothing),
    (checks.a_discard_reads_as_zeroes, DiscardsWholeBlocksOnly),
    (checks.extents_cover_exactly_what_was_asked, ExtentsOfEverything),
    (checks.read_buffers_belong_to_the_caller, SharesItsStorage),
    (checks.written_data_may_be_changed_after_the_return, KeepsTheCallersData),
    (checks.a_flush_changes_nothing_that_is_read, FlushesTheWrongWay),
    (checks.a_resize_keeps_what_stays_and_adds_zeroes, RemembersWhatWasCutOff),
    (checks.requests_that_do_not_overlap_run_together, OneScratchForAll),
    (checks.any_sequence_of_requests_reads_like_a_byte_array, ForgetsAcrossABoundary),
    (checks.a_cancelled_change_touches_only_its_range, GoesOnAfterACancellation),
    (checks.a_cancelled_change_touches_only_its_range, CancelledChangesSpill),
    (checks.a_cancelled_read_or_flush_has_no_effect, CancelledReadsDropData),
    (checks.a_cancelled_resize_has_the_old_size_or_the_new, HalfResized),
)


@pytest.mark.parametrize(("check", "broken"), BROKEN, ids=[broken.__name__ for _, broken in BROKEN])
async def test_a_check_catches_a_broken_volume(
    check: Callable[[Volume], Awaitable[None]], broken: type[MemoryVolume]
) -> None:
    promise = check.__name__.replace("_", " ")
    with pytest.raises(AssertionError, match=f"^{promise}: (?!raised)"):
        await keep(check, partial(opened, broken, SIZE))


@pytest.mark.parametrize("broken", [broken for _, broken in BROKEN])
async def test_check_volume_lets_no_broken_volume_pass(broken: type[MemoryVolume]) -> None:
    with pytest.raises(AssertionError, match=r"\(size \d+\): "):
        await check_volume(partial(opened, broken))


def test_every_check_is_seen_to_fail() -> None:
    assert {check for check, _ in BROKEN} == set(checks.VOLUME_CHECKS)


async def test_an_unexpected_exception_is_reported_with_the_promise() -> None:
    class Raises(MemoryVolume):
        async def flush(self) -> None:
            raise ZeroDivisionError

    with pytest.raises(AssertionError, match=r"^a flush changes nothing that is read: raised ZeroDivisionError\(\)"):
        await keep(checks.a_flush_changes_nothing_that_is_read, partial(opened, Raises, SIZE))


async def test_a_volume_that_hangs_is_reported_with_the_promise(autojump_clock: trio.testing.MockClock) -> None:
    class Hangs(MemoryVolume):
        async def flush(self) -> None:
            await trio.sleep_forever()

    with pytest.raises(AssertionError, match=r"^a flush changes nothing that is read: no end after 30 s"):
        await keep(checks.a_flush_changes_nothing_that_is_read, partial(opened, Hangs, SIZE))
