"""The slot memory: its layout is pinned by bytes, and it takes memory only while it is used."""

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusecache.fuse import slots
from fusecache.fuse.handles import Handles
from fusecache.fuse.slots import HANDLES, MAX_WRITE, SLOTS, SlotMemory, SlotState
from tests.support.nodes import ScriptedFile

HANDLES_AT = 4096
SLOTS_AT = 4096 + 2 * (1 << 20)
STRIDE = 4096 + (1 << 20)


@pytest.fixture
def memory() -> Iterator[SlotMemory]:
    memory = SlotMemory()
    yield memory
    os.close(memory.fd)


def at(memory: SlotMemory, offset: int, length: int) -> bytes:
    """Read the memory file as a successor would."""
    return os.pread(memory.fd, length, offset)


def allocated(memory: SlotMemory) -> int:
    return Path(f"/proc/self/fd/{memory.fd}").stat().st_blocks * 512


def test_the_header_says_what_the_file_is(memory: SlotMemory) -> None:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
    assert at(memory, 0, 64) == b"fusecach" + struct.pack("=IIII", 1, 1024, 65536, 0) + boot_id + bytes(4)
    assert os.fstat(memory.fd).st_size == SLOTS_AT + 1024 * STRIDE
    assert not os.get_inheritable(memory.fd)


def test_init_is_kept_behind_the_header(memory: SlotMemory) -> None:
    memory.record_init(b"i" * 104)
    assert at(memory, 20, 4) == struct.pack("=I", 104)
    assert at(memory, 64, 105) == b"i" * 104 + b"\0"
    memory.record_init(b"j" * 512)
    with pytest.raises(ValueError, match="INIT has 513 bytes; at most 512"):
        memory.record_init(bytes(513))
    assert at(memory, 64, 512) == b"j" * 512


def test_a_slot_lies_where_the_layout_says(memory: SlotMemory) -> None:
    for index in (0, 1, SLOTS - 1):
        slot = memory.slots[index]
        slot.head[:] = bytes(range(80))
        slot.body[:3] = b"abc"
        slot.body[-3:] = b"xyz"
        slot.mark(SlotState.DONE, 16)
        base = SLOTS_AT + index * STRIDE
        assert at(memory, base, 16) == struct.pack("=Qq", 2, 16)
        assert at(memory, base + 16, 112) == bytes(112)
        assert at(memory, base + 128, 80) == bytes(range(80))
        assert at(memory, base + 4096, 3) == b"abc"
        assert at(memory, base + STRIDE - 3, 3) == b"xyz"
        assert len(slot.body) == MAX_WRITE


def test_a_slot_is_free_once_its_unique_is_zero(memory: SlotMemory) -> None:
    slot = memory.slots[5]
    slot.head[:] = b"\xff" * 80
    slot.clear()
    base = SLOTS_AT + 5 * STRIDE
    assert at(memory, base + 128, 80) == b"\xff" * 8 + bytes(8) + b"\xff" * 64


def test_the_most_recently_used_slot_is_taken_first(memory: SlotMemory) -> None:
    assert [memory.free.pop().index for _ in range(3)] == [0, 1, 2]
    memory.free.append(memory.slots[1])
    assert memory.free.pop().index == 1
    assert memory.in_use == 3


def test_idle_slots_give_their_memory_back(memory: SlotMemory) -> None:
    before = allocated(memory)
    for slot in memory.slots[:20]:
        slot.body[:] = b"a" * MAX_WRITE
        slot.used = True
    assert allocated(memory) >= before + 20 * MAX_WRITE
    busy = memory.free.pop()
    memory.trim()
    # The one that is taken, and the eight that are used all the time.
    assert allocated(memory) < before + 9 * MAX_WRITE + (1 << 20)
    assert bytes(busy.body[-1:]) == b"a"
    assert [slot.index for slot in memory.slots if slot.used] == list(range(9))
    assert bytes(memory.slots[19].body) == bytes(MAX_WRITE)


def test_a_handle_is_an_index_and_a_generation(memory: SlotMemory) -> None:
    first = memory.add_handle(77, os.O_RDWR | os.O_DIRECT, creator=True)
    second = memory.add_handle(78, os.O_RDONLY, creator=False)
    assert (first, second) == (1 << 32, 1 << 32 | 1)
    flags = os.O_RDWR | os.O_DIRECT
    assert at(memory, HANDLES_AT, 64) == (
        struct.pack("=IIQI12x", 1, flags, 77, 1) + struct.pack("=IIQI12x", 1, 0, 78, 0)
    )


def test_a_handle_that_was_given_back_is_never_taken_for_its_successor(memory: SlotMemory) -> None:
    first = memory.add_handle(77, 0, creator=True)
    memory.remove_handle(first)
    assert at(memory, HANDLES_AT, 32) == struct.pack("=IIQI12x", 1, 0, 0, 0)
    second = memory.add_handle(78, 0, creator=False)
    assert (first, second) == (1 << 32, 2 << 32)


def test_a_generation_starts_over_after_the_last(memory: SlotMemory) -> None:
    os.pwrite(memory.fd, struct.pack("=I", 0xFFFFFFFF), HANDLES_AT)
    assert memory.add_handle(77, 0, creator=False) == 0


def test_a_file_that_gets_no_handle_is_closed(memory: SlotMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    handles = Handles(memory)
    for _ in range(HANDLES):
        memory.add_handle(1, 0, creator=False)
    file = ScriptedFile()
    with pytest.raises(OSError, match="all 65536 file handles") as caught:
        handles.add(file, 1, 0)
    assert caught.value.errno == errno.ENFILE
    assert (file.closed, handles.files) == (1, {})


def test_handles_lead_to_open_files_until_they_are_closed(memory: SlotMemory) -> None:
    handles = Handles(memory)
    files = [ScriptedFile() for _ in range(3)]
    numbers = [handles.add(file, 1, 0) for file in files]
    assert [handles.files[number] for number in numbers] == files
    for _ in range(2):
        handles.close(numbers[0])
    handles.close_all()
    assert [file.closed for file in files] == [1, 1, 1]
    assert not handles.files


def test_fewer_slots_make_a_smaller_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "SLOTS", 2)
    memory = SlotMemory()
    assert os.fstat(memory.fd).st_size == SLOTS_AT + 2 * STRIDE
    assert len(memory.free) == 2
    os.close(memory.fd)
