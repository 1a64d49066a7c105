"""The recording medium's states are those that a loss of power, or of the process, can leave."""

import random
from collections.abc import Callable, Sequence

import pytest
import trio

from fusecache.testing import layer_context
from fusecache_rwl.format import RING_OFFSET
from fusecache_rwl.medium import Media
from layers.rwl.tests.support.recording import (
    PAGE,
    RecordingMedium,
    killed_state,
    legal_states,
    open_recording,
    pool_device,
)
from layers.rwl.tests.support.timeline import SECTOR, WORD, Device, Timeline, after_power_loss

SIZE = RING_OFFSET + 64 * 1024
HEADER = b"h" * 64
MEDIA: Sequence[Media] = ("ssd", "pmem")

Play = Callable[[RecordingMedium], None]


def record(media: Media, *plays: Play) -> Device:
    """Return a pool after each of *plays* was begun and all that it waits for has ended."""
    device = pool_device(Timeline(), "pool", SIZE, media)

    async def main() -> None:
        async with layer_context() as context:
            life = device.timeline.begin_life()
            medium = open_recording(device, life, context.completions, random.Random(1))
            for play in plays:
                play(medium)
                while context.completions.outstanding:
                    await trio.lowlevel.checkpoint()

    trio.run(main)
    return device


def append(position: int, filler: bytes, length: int = 4096) -> Play:
    """Return a play that appends *length* bytes of *filler*."""
    return lambda medium: medium.append(position, HEADER, filler * length)


def sync(medium: RecordingMedium) -> None:
    """Sync, and expect no error."""
    medium.sync(lambda error: None)


def states(device: Device, count: int = 200, since: int = 0) -> list[bytes]:
    """Return states of the pool after losses of power."""
    return [state.contents["pool"] for state in legal_states(device.timeline, random.Random(7), count, since=since)]


def place(position: int) -> int:
    """Where a log position is in the pool file."""
    return RING_OFFSET + position


@pytest.mark.parametrize("media", MEDIA)
def test_the_death_of_the_process_takes_nothing_away(media: Media) -> None:
    device = record(media, append(0, b"a"), append(4160, b"b"))
    found = killed_state(device)
    assert found[place(0) : place(4160)] == HEADER + b"a" * 4096
    assert found[place(4160) : place(8320)] == HEADER + b"b" * 4096


def test_on_an_ssd_what_was_synced_is_there_and_the_rest_in_any_subset_of_sectors() -> None:
    device = record("ssd", append(0, b"a"), sync, append(8192, b"b"))
    synced = next(n for n, event in enumerate(device.timeline.events) if not hasattr(event, "data")) + 1
    later = set()
    for found in states(device, since=synced):
        assert found[place(0) : place(4160)] == HEADER + b"a" * 4096
        later.add(tuple(found[at : at + SECTOR].count(b"b") > 0 for at in range(place(8192), place(12288), SECTOR)))
    assert len(later) > 20
    assert (False,) * 8 in later
    assert (True,) * 8 in later


def test_a_sector_of_an_ssd_is_never_torn() -> None:
    device = record("ssd", append(0, b"a"), append(8192, b"b"))
    for found in states(device):
        for at in range(place(8192) + SECTOR, place(8192) + PAGE, SECTOR):
            assert found[at : at + SECTOR] in (b"b" * SECTOR, bytes(SECTOR))


def test_a_sync_covers_nothing_that_was_appended_after_it_was_asked_for() -> None:
    def sync_and_append(medium: RecordingMedium) -> None:
        sync(medium)
        append(8192, b"b")(medium)

    device = record("ssd", append(0, b"a"), sync_and_append)
    found = [after_power_loss(device.timeline, device.timeline.now, random.Random(n))["pool"] for n in range(50)]
    assert all(state[place(64)] == ord("a") for state in found)
    assert {state[place(8192 + 1024)] for state in found} == {0, ord("b")}


def test_what_later_stores_left_in_a_sector_may_be_older_than_in_its_neighbour() -> None:
    device = record("ssd", append(0, b"a"), append(0, b"b"))
    orders = {(found[place(1024)], found[place(2048)]) for found in states(device)}
    assert {(ord("a"), ord("b")), (ord("b"), ord("a")), (0, ord("b")), (ord("b"), 0)} <= orders


def test_on_pmem_an_append_that_returned_is_durable() -> None:
    device = record("pmem", append(0, b"a"))
    for seed in range(20):
        found = after_power_loss(device.timeline, device.timeline.now, random.Random(seed))["pool"]
        assert found == killed_state(device)


def test_on_pmem_a_header_is_stored_after_its_data_and_torn_by_words() -> None:
    device = record("pmem", append(0, b"a"))
    torn_headers, torn_data = set(), set()
    for found in states(device, 400):
        header, data = found[place(0) : place(64)], found[place(64) : place(4160)]
        assert not any(header) or data == b"a" * 4096
        torn_headers.add(tuple(header[at : at + WORD] == b"h" * WORD for at in range(0, 64, WORD)))
        torn_data.add(data.count(b"a"))
        assert all(header[at : at + WORD] in (b"h" * WORD, bytes(WORD)) for at in range(0, 64, WORD))
    assert len(torn_headers) > 5
    assert len(torn_data) > 10


def test_a_superblock_is_durable_when_its_end_was_told_and_torn_before() -> None:
    device = record("ssd", lambda medium: medium.write_superblock(b"s" * 4096, 4096, lambda error: None))
    found = [state[4096:8192].count(b"s") for state in states(device)]
    assert len(set(found)) > 5
    assert after_power_loss(device.timeline, device.timeline.now, random.Random(1))["pool"][4096:8192] == b"s" * 4096


def test_what_a_dead_process_does_has_no_effect() -> None:
    timeline = Timeline()
    device = pool_device(timeline, "pool", SIZE, "ssd")
    life = timeline.begin_life()
    timeline.die_at = timeline.now + 1
    assert device.store(life, 0, b"alive") is not None
    assert device.store(life, 512, b"dead") is None
    timeline.begin_life()
    assert device.store(life, 512, b"dead") is None
    assert killed_state(device)[:516] == b"alive" + bytes(511)
    assert not device.order(life, [0])


def test_the_states_of_a_seed_are_always_the_same() -> None:
    device = record("ssd", append(0, b"a"), sync, append(8192, b"b"))
    assert states(device, 20) == states(device, 20)
