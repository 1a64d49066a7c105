"""Pool files are made whole or not at all, and only pool files are opened."""

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from fusecache.api.errors import CorruptState, PoolMissing
from fusecache_rwl.medium import create_pool
from fusecache_rwl.pool_file import SMALLEST, open_pool_file
from layers.rwl.tests.support import pools

SIZE = 3 << 20
STEPS = ("open", "posix_fallocate", "pwrite", "fsync", "close", "rename", "unlink")
"""The functions of os that making a pool file calls."""


def test_a_pool_file_is_zeroes_and_wholly_allocated(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    create_pool(path, SIZE)
    assert path.read_bytes() == bytes(SIZE)
    assert path.stat().st_blocks * 512 >= SIZE
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_pool_file_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "pool"
    create_pool(path, SIZE)
    path.write_bytes(b"old" * 10_000)
    create_pool(path, SIZE + 100)
    assert path.read_bytes() == bytes(SIZE + 100)


def dying_before_call(path: Path, number: int) -> bool:
    """Make a pool file in a process that dies before that call of STEPS; False if it came to the end."""
    child = os.fork()
    if child == 0:
        calls = 0

        def dying(function: Any) -> Any:
            def called(*args: Any, **keywords: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == number:
                    os._exit(9)
                return function(*args, **keywords)

            return called

        for name in STEPS:
            setattr(os, name, dying(getattr(os, name)))
        code = 1
        try:
            create_pool(path, SIZE)
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, 9}
    return code == 9


@pytest.mark.parametrize("old", [None, b"old" * 10_000])
def test_a_crash_while_making_one_leaves_the_old_or_the_new_and_nothing_for_good(
    tmp_path: Path, old: bytes | None
) -> None:
    path = tmp_path / "pool"
    seen = set()
    number = 1
    while True:
        path.unlink(missing_ok=True)
        if old is not None:
            path.write_bytes(old)
        died = dying_before_call(path, number)
        there = path.read_bytes() if path.exists() else None
        assert there in {old, bytes(SIZE)}
        # By this name the core finds what is left, where nobody opens the layer again.
        assert {left.name for left in tmp_path.iterdir()} <= {"pool", "pool.new"}
        seen.add(there == old)
        if there is not None:
            open_pool_file(path).release()
            assert list(tmp_path.iterdir()) == [path]
        create_pool(path, SIZE)
        assert path.read_bytes() == bytes(SIZE)
        assert list(tmp_path.iterdir()) == [path]
        if not died:
            break
        number += 1
    assert seen == {True, False}
    assert number > len(STEPS)


def test_a_full_file_system_is_told_and_nothing_is_left() -> None:
    with pools.pool_place("ssd in memory") as place:
        (place / "pool").write_bytes(b"old" * 10_000)
        with pytest.raises(OSError, match=r"no space for a pool file of \d+ bytes \(\d+ are free\)") as caught:
            create_pool(place / "pool", 1 << 46)
        assert caught.value.errno == errno.ENOSPC
        assert (place / "pool").read_bytes() == b"old" * 10_000
        assert list(place.iterdir()) == [place / "pool"]


def test_a_pool_larger_than_files_may_be_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "pool").write_bytes(b"old" * 10_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, limits[1]))
    try:
        with pytest.raises(
            OSError, match=rf"of {1 << 20} bytes is larger than .*: {tmp_path}/pool; .*smaller `size`"
        ) as caught:
            create_pool(tmp_path / "pool", 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert (tmp_path / "pool").read_bytes() == b"old" * 10_000
    assert list(tmp_path.iterdir()) == [tmp_path / "pool"]


@pytest.mark.parametrize("what", ["missing", "file"])
def test_a_directory_that_is_not_there_is_named_and_not_made(tmp_path: Path, what: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PoolMissing, match=f"{tmp_path}/{what} does not exist, and must: make or mount it") as caught:
        create_pool(tmp_path / what / "pool", SIZE)
    assert caught.value.errno == errno.ENODATA
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_pool_too_small_for_a_ring_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="12288"):
        create_pool(tmp_path / "pool", SMALLEST - 1)
    assert not list(tmp_path.iterdir())


def test_what_is_no_pool_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_pool_file(tmp_path / "missing")
    (tmp_path / "short").write_bytes(bytes(SMALLEST - 1))
    with pytest.raises(CorruptState, match="12287"):
        open_pool_file(tmp_path / "short")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CorruptState, match="not a regular file"):
        open_pool_file(tmp_path / "fifo")
    create_pool(tmp_path / "pool", SIZE)
    (tmp_path / "link").symlink_to("pool")
    with pytest.raises(OSError, match="symbolic"):
        open_pool_file(tmp_path / "link")


def test_the_lock_is_held_until_the_last_user_has_released_the_file(tmp_path: Path) -> None:
    create_pool(tmp_path / "pool", SIZE)
    file = open_pool_file(tmp_path / "pool")
    file.share()
    file.release()
    os.fstat(file.fd)
    file.release()
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(file.fd)
    open_pool_file(tmp_path / "pool").release()
