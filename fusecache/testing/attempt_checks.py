"""The promises of :mod:`fusecache.api.volume` that hold for the synchronous attempts.

Owns one check for each. It must not know which attempts a volume takes: one that declines everything keeps them all.
Every check receives a volume of its own, fresh, reading as zeroes.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from fusecache.api.ranges import align_down
from fusecache.api.volume import DECLINED, DONE, PENDING, Attempt, Volume
from fusecache.testing.harness import AttemptWatch, Broken, content, expect, expect_bytes, fetch, pattern, put, settle
from fusecache.testing.volume_checks import random_span, spans_of

_RANDOM_STEPS: Final = 150

Start = Callable[[AttemptWatch], object]


def _starts(volume: Volume, offset: int, data: bytearray) -> Sequence[tuple[str, Start, bytes]]:
    """Return each changing attempt on the range of *data*: its name, how to make it, and what the range holds then."""
    length = len(data)
    zeroes = bytes(length)
    return (
        ("try_write", lambda watch: volume.try_write(offset, memoryview(data), watch.done), bytes(data)),
        ("try_write_zeroes", lambda watch: volume.try_write_zeroes(offset, length, watch.done), zeroes),
        ("try_discard", lambda watch: volume.try_discard(offset, length, watch.done), zeroes),
    )


async def _read(volume: Volume, offset: int, length: int) -> bytes:
    """Read by an attempt, or asynchronously where that is declined."""
    watch = AttemptWatch()
    outcome = await watch.outcome(lambda watch: volume.try_read(offset, length, watch.done), length)
    return await fetch(volume, offset, length) if outcome is DECLINED else b"".join(watch.buffers)


async def attempts_read_and_change_like_the_asynchronous_methods(volume: Volume) -> None:
    """A seeded run of random attempts, the declined ones run asynchronously, agrees with a byte array throughout."""
    rng = random.Random(volume.size)
    expected = bytearray(volume.size)
    for step in range(_RANDOM_STEPS):
        offset, length = random_span(volume, rng)
        name, start, new = rng.choice(_starts(volume, offset, bytearray(pattern(length, step))))
        if await AttemptWatch().outcome(start) is DECLINED:
            await _asynchronously(volume, name, offset, new)
        if not step % 8 and await AttemptWatch().outcome(lambda watch: volume.try_flush(watch.done)) is DECLINED:
            await volume.flush()
        expected[offset : offset + length] = new
        offset, length = random_span(volume, rng)
        wanted = bytes(expected[offset : offset + length])
        expect_bytes(await fetch(volume, offset, length), wanted, offset)
        expect_bytes(await _read(volume, offset, length), wanted, offset)


async def done_is_called_once_after_pending_and_never_otherwise(volume: Volume) -> None:
    """And on the loop's thread, and not from inside the attempt; here with the two ends and the whole volume."""
    for offset, length in spans_of(volume):
        for name, start, _ in _starts(volume, offset, bytearray(pattern(length, 1))):
            await _named(name, AttemptWatch().outcome(start))
        await _named("try_read", _read(volume, offset, length))
        await _named("try_flush", AttemptWatch().outcome(lambda watch: volume.try_flush(watch.done)))


async def _named(name: str, call: Awaitable[object]) -> None:
    try:
        await call
    except Broken as error:
        raise Broken(f"{name}: {error}") from None


async def a_declined_attempt_has_no_effect(volume: Volume) -> None:
    """The bytes are as before, at once and later."""
    before = pattern(volume.size, 2)
    for offset, length in spans_of(volume):
        for name, start, _ in _starts(volume, offset, bytearray(pattern(length, 3))):
            await put(volume, 0, before)
            if await AttemptWatch().outcome(start) is DECLINED:
                expect(await content(volume) == before, f"{name} returned DECLINED and changed the volume")


async def an_attempt_stays_inside_its_range(volume: Volume) -> None:
    """Its whole range changes and not one byte beside it."""
    for offset, length in spans_of(volume):
        for name, start, new in _starts(volume, offset, bytearray(pattern(length, 4))):
            before = pattern(volume.size, 5)
            await put(volume, 0, before)
            if await AttemptWatch().outcome(start) is DECLINED:
                continue
            expected = before[:offset] + new + before[offset + length :]
            found = await content(volume)
            expect(found == expected, f"{name} of [{offset}, {offset + length}) left other bytes than it should")


async def pending_read_buffers_belong_to_the_caller(volume: Volume) -> None:
    """What happens to the volume later does not change them."""
    data = pattern(volume.size, 6)
    await put(volume, 0, data)
    watch = AttemptWatch()
    if await watch.outcome(lambda watch: volume.try_read(0, volume.size, watch.done), volume.size) is PENDING:
        await put(volume, 0, pattern(volume.size, 7))
        await _read(volume, 0, volume.size)
        expect_bytes(b"".join(watch.buffers), data)


async def the_data_of_an_attempt_may_be_changed_after_its_end(volume: Volume) -> None:
    """The volume copies what it needs longer: than the attempt on DONE, than the call of ``done`` on PENDING."""
    data = pattern(volume.size, 8)
    buffer = bytearray(data)
    outcome = await AttemptWatch().outcome(lambda watch: volume.try_write(0, memoryview(buffer), watch.done))
    buffer[:] = bytes(len(buffer))
    await volume.flush()
    if outcome is not DECLINED:
        expect_bytes(await content(volume), data)


async def attempts_that_do_not_overlap_run_together(volume: Volume) -> None:
    """Many at once, each of its own range, all end and are as if they came one after the other."""
    step = max(volume.alignment, align_down(volume.size // 24, volume.alignment))
    expected = bytearray(pattern(volume.size, 9))
    await put(volume, 0, bytes(expected))
    begun: list[tuple[AttemptWatch, Attempt, bytearray]] = []
    for number, offset in enumerate(range(0, volume.size, step)):
        data = bytearray(pattern(min(step, volume.size - offset), 50 + number))
        _, start, new = _starts(volume, offset, data)[number % 3]
        watch = AttemptWatch()
        outcome = watch.begin(start)
        if outcome is DONE:
            data[:] = bytes(len(data))
        if outcome is not DECLINED:
            expected[offset : offset + len(new)] = new
        begun.append((watch, outcome, data))
    for watch, outcome, _ in begun:
        await watch.end(outcome)
    expect_bytes(await content(volume), bytes(expected))


async def attempts_and_asynchronous_requests_run_together(volume: Volume) -> None:
    """A pending attempt and an asynchronous request beside it, of other ranges, do not disturb each other."""
    half = align_down(volume.size // 2, volume.alignment)
    if not half:
        return
    await put(volume, 0, pattern(volume.size, 20))
    low, high = pattern(half, 21), pattern(volume.size - half, 22)
    watch = AttemptWatch()
    outcome = watch.begin(lambda watch: volume.try_write(0, memoryview(bytearray(low)), watch.done))
    await put(volume, half, high)
    if await watch.end(outcome) is DECLINED:
        await put(volume, 0, low)
    await settle()
    expect_bytes(await content(volume), low + high)


async def _asynchronously(volume: Volume, name: str, offset: int, new: bytes) -> None:
    if name == "try_write":
        await put(volume, offset, new)
    elif name == "try_write_zeroes":
        await volume.write_zeroes(offset, len(new))
    else:
        await volume.discard(offset, len(new))


ATTEMPT_CHECKS: Final[Sequence[Callable[[Volume], Awaitable[None]]]] = (
    attempts_read_and_change_like_the_asynchronous_methods,
    done_is_called_once_after_pending_and_never_otherwise,
    a_declined_attempt_has_no_effect,
    an_attempt_stays_inside_its_range,
    pending_read_buffers_belong_to_the_caller,
    the_data_of_an_attempt_may_be_changed_after_its_end,
    attempts_that_do_not_overlap_run_together,
    attempts_and_asynchronous_requests_run_together,
)
