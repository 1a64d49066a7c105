"""Records: the header and its data, and in which order they reach the medium."""

import os
import subprocess
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path

import pmdk
import pytest

if not pmdk.available():
    pytest.skip("pmdk was built without its compiled module", allow_module_level=True)

HEADER = bytes(range(64))


@pytest.fixture
def mapping(tmp_path: Path) -> Iterator[pmdk.Mapping]:
    """A file of 64 KiB, mapped."""
    with pmdk.map_file(tmp_path / "file", 1 << 16, create=True) as mapping:
        yield mapping


@pytest.mark.parametrize(
    "data",
    [b"d" * 4096, bytearray(b"d" * 511), memoryview(b"d" * 9)[3:], memoryview(array("Q", [7] * 64)), b""],
    ids=["bytes", "bytearray", "slice", "words", "empty"],
)
def test_the_data_stands_behind_its_header(mapping: pmdk.Mapping, tmp_path: Path, data: pmdk.Buffer) -> None:
    mapping.append(128, HEADER, data)
    record = HEADER + bytes(data)
    assert (tmp_path / "file").read_bytes() == bytes(128) + record + bytes(mapping.size - 128 - len(record))


def test_a_header_can_stand_alone(mapping: pmdk.Mapping) -> None:
    mapping.append(64, HEADER)
    assert bytes(mapping.buffer[:192]) == bytes(64) + HEADER + bytes(64)


def test_data_may_come_from_the_mapping_itself(mapping: pmdk.Mapping) -> None:
    mapping.memcpy_nodrain(0, b"0123456789" * 100)
    mapping.append(0, b"ab", mapping.buffer[0:1000])
    assert bytes(mapping.buffer[:1002]) == b"ab" + b"0123456789" * 100


def test_data_that_is_not_contiguous_is_refused(mapping: pmdk.Mapping) -> None:
    with pytest.raises((BufferError, ValueError)):
        mapping.append(0, HEADER, memoryview(bytes(64))[::2])
    assert bytes(mapping.buffer) == bytes(mapping.size)


def child(tmp_path: Path, program: str, *, forced: bool, **environment: str) -> subprocess.Popen[str]:
    """Run a program that maps the file of its argument, on what passes for persistent memory or does not."""
    script = tmp_path / "program.py"
    script.write_text(program)
    return subprocess.Popen(
        [sys.executable, script, tmp_path / "file"],
        env={**os.environ, "PMEM_IS_PMEM_FORCE": "1" if forced else "0", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


# Stands in front of libpmem and writes down what it is asked for, and where: the mapping begins at a page.
RECORDER = r"""
#include <libpmem.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static unsigned at(const void *place) { return (uintptr_t)place & 4095; }

void *pmem_memcpy(void *to, const void *from, size_t length, unsigned flags)
{
    printf("copy %zu to %u, %s, %s\n", length, at(to), flags & PMEM_F_MEM_NODRAIN ? "not drained" : "drained",
           flags & PMEM_F_MEM_NONTEMPORAL ? "non-temporal" : "any");
    return memcpy(to, from, length);
}
void pmem_drain(void) { printf("drain\n"); }
void *pmem_memcpy_persist(void *to, const void *from, size_t length)
{
    printf("persist %zu to %u\n", length, at(to));
    return memcpy(to, from, length);
}
int pmem_msync(const void *place, size_t length) { printf("msync %zu at %u\n", length, at(place)); return 0; }
"""

ONE_OF_EACH = """
import ctypes, sys, pmdk
with pmdk.map_file(sys.argv[1], 8192, create=True) as mapping:
    mapping.append(64, b"h" * 64, b"d" * 1024)
    mapping.append(0, b"h" * 64)
    mapping.memcpy_persist(2048, b"s" * 512)
ctypes.CDLL(None).fflush(None)
"""


@pytest.mark.parametrize(
    ("forced", "calls"),
    [
        (
            True,
            [
                "copy 1024 to 128, not drained, non-temporal",
                "drain",
                "persist 64 to 64",
                "persist 64 to 0",
                "persist 512 to 2048",
            ],
        ),
        (False, ["msync 512 at 2048"]),
    ],
    ids=["pmem", "not pmem"],
)
def test_the_data_is_drained_before_the_header_is_copied(tmp_path: Path, forced: bool, calls: list[str]) -> None:
    (tmp_path / "recorder.c").write_text(RECORDER)
    recorder = tmp_path / "recorder.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", recorder, tmp_path / "recorder.c"], check=True)
    with child(tmp_path, ONE_OF_EACH, forced=forced, LD_PRELOAD=str(recorder)) as process:
        output, _ = process.communicate()
    assert process.returncode == 0
    assert output.splitlines() == calls


SLOTS, SLOT = 256, 1 << 16

APPENDING = f"""
import sys, pmdk
with pmdk.map_file(sys.argv[1]) as mapping:
    for slot in range({SLOTS}):
        mapping.append(slot * {SLOT}, bytes([slot % 255 + 1]) * 64, bytes([slot % 255 + 1]) * ({SLOT} - 64))
        if slot == {SLOTS} // 4:
            print("under way", flush=True)
"""


@pytest.mark.parametrize("forced", [True, False], ids=["pmem", "not pmem"])
def test_the_death_of_the_process_leaves_no_header_without_its_data(tmp_path: Path, forced: bool) -> None:
    with pmdk.map_file(tmp_path / "file", SLOTS * SLOT, create=True, sparse=True) as mapping:
        with child(tmp_path, APPENDING, forced=forced) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "under way\n"
            process.kill()
        content = bytes(mapping.buffer)
    slots = [content[slot * SLOT : (slot + 1) * SLOT] for slot in range(SLOTS)]
    complete = [record == bytes([slot % 255 + 1]) * SLOT for slot, record in enumerate(slots)]
    assert all(complete[: SLOTS // 4])
    for slot, record in enumerate(slots):
        assert complete[slot] or record[:64] == bytes(64), f"slot {slot}"
