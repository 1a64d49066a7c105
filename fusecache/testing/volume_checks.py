"""The promises of :mod:`fusecache.api.volume` that hold for the asynchronous methods.

Owns one check for each; attempts are checked in :mod:`fusecache.testing.attempt_checks`. It must not know what kind of
volume it looks at. Every check receives a volume of its own, fresh, reading as zeroes.
"""

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Final

import trio

from fusecache.api.ranges import Extent, ExtentKind, align_down
from fusecache.api.volume import Volume
from fusecache.testing.harness import (
    Broken,
    cancelled_at_each_await,
    content,
    expect,
    expect_bytes,
    fetch,
    pattern,
    put,
    settle,
)

_RANDOM_STEPS: Final = 150


def spans_of(volume: Volume) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of requests worth trying: both ends, one unit, odd middles, everything."""
    unit, size = volume.alignment, volume.size
    tail = align_down(size - 1, unit)
    yield 0, min(unit, size)
    yield tail, size - tail
    yield 0, size
    third = align_down(size // 3, unit)
    if third:
        yield third, third
        yield unit, third
        yield third, size - third


def random_span(volume: Volume, rng: random.Random) -> tuple[int, int]:
    """Return (offset, length) of a request inside the contract; every fifth or so reaches the end."""
    units = -(-volume.size // volume.alignment)
    start = rng.randrange(units)
    end = units if rng.random() < 0.2 else min(units, start + 1 + int(rng.expovariate(4 / units)))
    return start * volume.alignment, min(end * volume.alignment, volume.size) - start * volume.alignment


async def geometry_is_sound(volume: Volume) -> None:
    """``alignment`` and ``preferred_io`` are powers of two, the first not above the second."""
    for name in ("alignment", "preferred_io"):
        value = getattr(volume, name)
        expect(isinstance(value, int) and value > 0 and not value & (value - 1), f"{name} is {value!r}")
    expect(volume.alignment <= volume.preferred_io, f"found {volume.alignment=} above {volume.preferred_io=}")
    expect(volume.read_only is False, f"a volume opened for writing has {volume.read_only=}")


async def what_was_never_written_reads_as_zeroes(volume: Volume) -> None:
    """A fresh volume reads as zeroes."""
    expect_bytes(await content(volume), bytes(volume.size))


async def a_read_returns_exactly_what_was_asked(volume: Volume) -> None:
    """Length and place are right at both ends, for one unit, and for everything."""
    data = pattern(volume.size, 1)
    await put(volume, 0, data)
    for offset, length in spans_of(volume):
        expect_bytes(await fetch(volume, offset, length), data[offset : offset + length], offset)


async def a_change_stays_inside_its_range(volume: Volume) -> None:
    """Writes, zeroes and discards change their whole range and not one byte beside it, also in a last partial unit."""
    for number, (offset, length) in enumerate(spans_of(volume)):
        for change in ("write", "write_zeroes", "discard"):
            before = pattern(volume.size, 2 * number)
            await put(volume, 0, before)
            new = pattern(length, 2 * number + 1) if change == "write" else bytes(length)
            await _change(volume, change, offset, new)
            expected = before[:offset] + new + before[offset + length :]
            try:
                expect_bytes(await content(volume), expected)
            except Broken as error:
                raise Broken(f"after {change} of [{offset}, {offset + length}) {error}") from None


async def write_zeroes_reads_as_zeroes(volume: Volume) -> None:
    """No byte written before shows through."""
    await _clearing(volume, volume.write_zeroes)


async def a_discard_reads_as_zeroes(volume: Volume) -> None:
    """No byte written before shows through, however small and oddly placed the range."""
    await _clearing(volume, volume.discard)


async def _clearing(volume: Volume, clear: Callable[[int, int], Awaitable[None]]) -> None:
    for offset, length in spans_of(volume):
        await put(volume, 0, pattern(volume.size, 3))
        await clear(offset, length)
        expect_bytes(await fetch(volume, offset, length), bytes(length), offset)


async def extents_cover_exactly_what_was_asked(volume: Volume) -> None:
    """In order, without gap, overlap or empty run; and a hole reads as zeroes."""
    third = max(volume.alignment, align_down(volume.size // 3, volume.alignment))
    if third < volume.size:
        await put(volume, third, pattern(min(third, volume.size - third), 4))
    await volume.discard(0, min(third, volume.size))
    for offset, length in spans_of(volume):
        extents = await volume.extents(offset, length)
        _expect_exact(extents, offset, length)
        for extent in extents:
            if extent.kind is ExtentKind.HOLE:
                data = await content(volume)
                expect_bytes(data[extent.offset : extent.end], bytes(extent.length), extent.offset)


def _expect_exact(extents: Sequence[Extent], offset: int, length: int) -> None:
    at = offset
    for extent in extents:
        expect(isinstance(extent, Extent) and isinstance(extent.kind, ExtentKind), f"found {extent!r} for an extent")
        expect(extent.offset == at and extent.length > 0, f"found {extent} where an extent from {at} on was due")
        at = extent.end
    expect(at == offset + length, f"extents of [{offset}, {offset + length}) end at {at}")


async def read_buffers_belong_to_the_caller(volume: Volume) -> None:
    """What happens to the volume later does not change them, and changing them does not change the volume."""
    data = pattern(volume.size, 5)
    await put(volume, 0, data)
    kept = await volume.read(0, volume.size)
    await put(volume, 0, pattern(volume.size, 6))
    await fetch(volume, 0, volume.size)
    await volume.discard(0, volume.size)
    expect_bytes(b"".join(kept), data)
    await put(volume, 0, data)
    for buffer in await volume.read(0, volume.size):
        view = memoryview(buffer)
        if not view.readonly:
            view[:] = bytes(len(view))
    expect_bytes(await content(volume), data)


async def written_data_may_be_changed_after_the_return(volume: Volume) -> None:
    """The volume copies what it needs of a write's data longer than the call."""
    data = pattern(volume.size, 7)
    buffer = bytearray(data)
    await volume.write(0, memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    await volume.flush()
    expect_bytes(await content(volume), data)


async def a_flush_changes_nothing_that_is_read(volume: Volume) -> None:
    """Also with nothing to flush, and twice."""
    await volume.flush()
    data = pattern(volume.size, 8)
    await put(volume, 0, data)
    await volume.flush()
    await volume.flush()
    expect_bytes(await content(volume), data)


async def a_resize_keeps_what_stays_and_adds_zeroes(volume: Volume) -> None:
    """What was cut off is gone for good, also where the new end lies inside a unit; zero is a length too."""
    unit, old = volume.alignment, volume.size
    data = pattern(old, 9)
    await put(volume, 0, data)
    expected = data
    for size in (old + 3 * unit, old, align_down(old // 2, unit), old // 3, old, 0, old + unit - 1, old):
        await volume.resize(size)
        expect(volume.size == size, f"after a resize to {size} the size is {volume.size}")
        expected = expected[:size] + bytes(max(0, size - len(expected)))
        expect_bytes(await content(volume), expected)
        if size:
            last = align_down(size - 1, unit)
            await put(volume, last, pattern(size - last, size))
            expected = expected[:last] + pattern(size - last, size)


async def requests_that_do_not_overlap_run_together(volume: Volume) -> None:
    """Many changes and reads at once, each of its own range, are as if they came one after the other."""
    unit = volume.alignment
    step = max(unit, align_down(volume.size // 48, unit))
    before = pattern(volume.size, 10)
    await put(volume, 0, before)
    expected = bytearray(before)
    failures: list[str] = []

    async def read(offset: int, length: int) -> None:
        if await fetch(volume, offset, length) != before[offset : offset + length]:
            failures.append(f"a read of [{offset}, {offset + length}) beside changes found other data")

    async with trio.open_nursery() as nursery:
        for number, offset in enumerate(range(0, volume.size, step)):
            length = min(step, volume.size - offset)
            kind = ("write", "write_zeroes", "discard", "read")[number % 4]
            if kind == "read":
                nursery.start_soon(read, offset, length)
                continue
            new = pattern(length, 100 + number) if kind == "write" else bytes(length)
            expected[offset : offset + length] = new
            nursery.start_soon(_change, volume, kind, offset, new)
        nursery.start_soon(volume.flush)
    expect(not failures, "; ".join(failures))
    expect_bytes(await content(volume), bytes(expected))


async def any_sequence_of_requests_reads_like_a_byte_array(volume: Volume) -> None:
    """A seeded run of random requests agrees with a byte array throughout."""
    rng = random.Random(volume.size)
    expected = bytearray(volume.size)
    for step in range(_RANDOM_STEPS):
        offset, length = random_span(volume, rng)
        kind = rng.choice(("write", "write", "write_zeroes", "discard", "read", "flush"))
        if kind == "flush":
            await volume.flush()
        elif kind != "read":
            new = pattern(length, step) if kind == "write" else bytes(length)
            await _change(volume, kind, offset, new)
            expected[offset : offset + length] = new
        expect_bytes(await fetch(volume, offset, length), expected[offset : offset + length], offset)
    expect_bytes(await content(volume), bytes(expected))


async def a_cancelled_change_touches_only_its_range(volume: Volume) -> None:
    """Cancelled at any await, a change leaves old or new bytes in its range, keeps all others, and is over."""
    before = pattern(volume.size, 11)
    for change in ("write", "write_zeroes", "discard"):
        for offset, length in list(spans_of(volume))[-3:]:
            new = pattern(length, 12) if change == "write" else bytes(length)
            await put(volume, 0, before)

            async def look(where: str, change: str = change, offset: int = offset, new: bytes = new) -> None:
                where = f"{change} of [{offset}, {offset + len(new)}) {where}"
                after = await content(volume)
                _expect_mixture(after, before, offset, new, where)
                await settle()
                expect(await content(volume) == after, f"{where}: it went on after the call had ended")
                await put(volume, 0, before)

            await cancelled_at_each_await(partial(_change, volume, change, offset, new), look)


def _expect_mixture(found: bytes, before: bytes, offset: int, new: bytes, where: str) -> None:
    end = offset + len(new)
    outside = found[:offset] == before[:offset] and found[end:] == before[end:]
    expect(outside, f"{where}: bytes outside the range have changed")
    inside = found[offset:end]
    # Nearly always one of the two, which is quickly said.
    mixed = inside in (before[offset:end], new) or all(
        byte in (old, fresh) for byte, old, fresh in zip(inside, before[offset:end], new, strict=True)
    )
    expect(mixed, f"{where}: the range holds bytes that are neither old nor new")


async def a_cancelled_read_or_flush_has_no_effect(volume: Volume) -> None:
    """Everything acknowledged is there afterwards, and the volume goes on working."""
    data = pattern(volume.size, 13)
    await put(volume, 0, data)

    async def look(where: str) -> None:
        expect(await content(volume) == data, f"{where}: the content has changed")

    await cancelled_at_each_await(lambda: volume.read(0, volume.size), look)
    await cancelled_at_each_await(volume.flush, look)
    await cancelled_at_each_await(lambda: volume.extents(0, volume.size), look)


async def a_cancelled_resize_has_the_old_size_or_the_new(volume: Volume) -> None:
    """Whatever stays keeps its bytes; whatever is added reads as zeroes."""
    old = volume.size
    data = pattern(old, 14)
    for size in (old + volume.alignment, align_down(old // 2, volume.alignment)):
        await put(volume, 0, data)

        async def look(where: str, size: int = size) -> None:
            expect(volume.size in (old, size), f"{where}: the size is {volume.size}")
            kept = data[: volume.size]
            expect_bytes(await content(volume), kept + bytes(volume.size - len(kept)))
            await volume.resize(old)
            await put(volume, 0, data)

        await cancelled_at_each_await(partial(volume.resize, size), look)


async def _change(volume: Volume, kind: str, offset: int, new: bytes) -> None:
    if kind == "write":
        await volume.write(offset, memoryview(new))
    elif kind == "write_zeroes":
        await volume.write_zeroes(offset, len(new))
    else:
        await volume.discard(offset, len(new))


VOLUME_CHECKS: Final[Sequence[Callable[[Volume], Awaitable[None]]]] = (
    geometry_is_sound,
    what_was_never_written_reads_as_zeroes,
    a_read_returns_exactly_what_was_asked,
    a_change_stays_inside_its_range,
    write_zeroes_reads_as_zeroes,
    a_discard_reads_as_zeroes,
    extents_cover_exactly_what_was_asked,
    read_buffers_belong_to_the_caller,
    written_data_may_be_changed_after_the_return,
    a_flush_changes_nothing_that_is_read,
    a_resize_keeps_what_stays_and_adds_zeroes,
    requests_that_do_not_overlap_run_together,
    any_sequence_of_requests_reads_like_a_byte_array,
    a_cancelled_change_touches_only_its_range,
    a_cancelled_read_or_flush_has_no_effect,
    a_cancelled_resize_has_the_old_size_or_the_new,
)
