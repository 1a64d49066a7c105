"""The pmem engine is used where the file is on persistent memory, and nowhere else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fusecache.api import Completions
from fusecache.testing import ThreadFileSync
from fusecache_rwl.format import HEADER_SIZE, RING_OFFSET
from fusecache_rwl.medium import create_pool, open_medium
from fusecache_rwl.pool_file import open_pool_file
from layers.rwl.tests.support import pools

pytestmark = pytest.mark.skipif(not pools.WITH_PMEM, reason="the part pmem is left out")

SIZE = RING_OFFSET + (1 << 20)

PROGRAM = """
import ctypes, os, sys
from pathlib import Path
from fusecache.api import Completions
from fusecache.testing import ThreadFileSync
from fusecache_rwl.medium import open_medium

libc = ctypes.CDLL(None)
if libc.mlockall(2 | 4):  # MCL_FUTURE | MCL_ONFAULT, as the daemon does
    print("not locked", file=sys.stderr)
completions = Completions()
medium = open_medium(Path(sys.argv[1]), "pmem", completions, ThreadFileSync(completions))
medium.append(64, b"H" * 64, b"d" * 4096)
assert medium.sync(print) is medium.persists
locked = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck"))
print(medium.media, medium.durability, medium.persists, int(locked.split()[1]) * 1024 < medium.size)
sys.stdout.flush()
os.kill(os.getpid(), 9)
"""
"""Opens a pool as pmem, appends a record, says what the medium is, and is killed."""


def run(path: Path, *, force: bool) -> str:
    """Run PROGRAM; libpmem looks at the environment when it is loaded, so it takes a process of its own."""
    environment = {**os.environ, "PMEM_IS_PMEM_FORCE": "1" if force else "0"}
    command = [sys.executable, "-c", PROGRAM, str(path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == -9, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize(("force", "said"), [(True, "pmem pmem True True"), (False, "ssd fdatasync False True")])
def test_the_engine_fits_the_memory_and_a_killed_process_leaves_its_records(force: bool, said: str) -> None:
    with pools.pool_place("pmem") as place:
        # Larger than all else that the process locks.
        create_pool(place / "pool", 256 << 20)
        assert run(place / "pool", force=force) == said
        with (place / "pool").open("rb") as file:
            file.seek(RING_OFFSET + 64)
            assert file.read(HEADER_SIZE + 4096) == b"H" * HEADER_SIZE + b"d" * 4096


async def test_without_pmdk_the_ssd_engine_serves_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pmdk", None)
    with pools.pool_place("pmem") as place:
        create_pool(place / "pool", SIZE)
        completions = Completions()
        medium = open_medium(place / "pool", "pmem", completions, ThreadFileSync(completions))
        assert (medium.media, medium.durability, medium.persists) == ("ssd", "fdatasync", False)
        await medium.close()
        completions.close()


async def test_a_view_outlives_the_medium_and_nothing_else_does() -> None:
    with pools.pool_place("pmem") as place:
        create_pool(place / "pool", SIZE)
        async with pools.opened(place / "pool", "pmem") as medium:
            medium.append(0, b"H" * HEADER_SIZE, b"data")
            view = medium.read_now(HEADER_SIZE, 4)
        assert view is not None
        assert bytes(view) == b"data"
        assert view.readonly
        open_pool_file(place / "pool").release()


async def test_everything_is_durable_at_once() -> None:
    with pools.pool_place("pmem") as place:
        create_pool(place / "pool", SIZE)
        async with pools.opened(place / "pool", "pmem") as medium:
            medium.append(0, b"H" * HEADER_SIZE, b"data")
            assert await pools.synced(medium) is None
            assert medium.sync(print) is True
