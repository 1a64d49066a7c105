"""Files in memory: what can be mapped, what a range may be, and how long memory stays mapped."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pmdk
import pytest

if not pmdk.available():
    pytest.skip("pmdk was built without its compiled module", allow_module_level=True)

SIZE = 1 << 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A place for a file; nothing is there."""
    return tmp_path / "file"


@pytest.fixture
def mapping(path: Path) -> Iterator[pmdk.Mapping]:
    """A file of SIZE zeroes, mapped."""
    with pmdk.map_file(path, SIZE, create=True) as mapping:
        yield mapping


def test_a_new_file_is_allocated_and_its_owners_alone(path: Path) -> None:
    with pmdk.map_file(path, SIZE, create=True) as mapping:
        assert (mapping.size, mapping.path) == (SIZE, str(path))
        status = path.stat()
        assert (status.st_size, status.st_mode & 0o777) == (SIZE, 0o600)
        assert status.st_blocks * 512 >= SIZE
        assert bytes(mapping.buffer) == bytes(SIZE)


def test_a_sparse_file_holds_no_space(path: Path) -> None:
    with pmdk.map_file(path, SIZE, create=True, sparse=True, mode=0o640):
        assert (path.stat().st_size, path.stat().st_blocks) == (SIZE, 0)
        assert path.stat().st_mode & 0o777 == 0o640 & ~current_umask()


def current_umask() -> int:
    """Return the umask of this process."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def test_a_file_is_mapped_whole_and_shared(path: Path) -> None:
    path.write_bytes(b"abc" * 1000)
    with pmdk.map_file(path) as mapping, pmdk.map_file(path) as other:
        assert mapping.size == 3000
        assert bytes(mapping.buffer) == b"abc" * 1000
        mapping.buffer[0:3] = b"xyz"
        assert bytes(other.buffer[:6]) == b"xyzabc"
        assert path.read_bytes() == b"xyz" + b"abc" * 999


def test_a_file_on_an_ordinary_disk_is_not_taken_for_persistent_memory(mapping: pmdk.Mapping) -> None:
    if os.environ.get("PMEM_IS_PMEM_FORCE") == "1":
        assert mapping.is_pmem
    assert isinstance(mapping.is_pmem, bool)


def test_errors_carry_errno_and_path(path: Path) -> None:
    with pytest.raises(FileNotFoundError) as missing:
        pmdk.map_file(path)
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, str(path))

    path.write_bytes(b"there")
    with pytest.raises(FileExistsError) as there:
        pmdk.map_file(path, SIZE, create=True, exclusive=True)
    assert there.value.filename == str(path)
    assert path.read_bytes() == b"there"

    with pytest.raises(OSError, match=r"File too large|No space left on device") as full:
        pmdk.map_file(path.with_name("vast"), 1 << 62, create=True)
    assert full.value.filename == str(path.with_name("vast"))


@pytest.mark.parametrize(
    ("length", "options"),
    [
        (0, {"create": True}),
        (-1, {"create": True}),
        (1 << 63, {"create": True}),
        (SIZE, {}),
        (0, {"exclusive": True}),
        (0, {"sparse": True}),
    ],
)
def test_a_length_that_does_not_fit_the_options_is_refused(path: Path, length: int, options: dict[str, bool]) -> None:
    with pytest.raises(ValueError, match="allowed: "):
        pmdk.map_file(path, length, **options)
    assert not path.exists()


def test_a_path_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zero byte"):
        pmdk.map_file(f"{tmp_path}/file\0more", SIZE, create=True)
    assert not list(tmp_path.iterdir())


RANGED: dict[str, Callable[[pmdk.Mapping, int, int], None]] = {
    "append": lambda mapping, offset, length: mapping.append(offset, b"", b"x" * length),
    "append header": lambda mapping, offset, length: mapping.append(offset, b"x" * length),
    "append both": lambda mapping, offset, length: mapping.append(offset, b"x", b"x" * (length - 1)),
    "memcpy_persist": lambda mapping, offset, length: mapping.memcpy_persist(offset, b"x" * length),
    "memcpy_nodrain": lambda mapping, offset, length: mapping.memcpy_nodrain(offset, b"x" * length),
    "persist": lambda mapping, offset, length: mapping.persist(offset, length),
    "flush": lambda mapping, offset, length: mapping.flush(offset, length),
    "msync": lambda mapping, offset, length: mapping.msync(offset, length),
}


@pytest.mark.parametrize("name", RANGED)
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (-1, 1),
        (-1, 2),
        (SIZE, 1),
        (SIZE - 1, 2),
        (SIZE + 1, 0),
        (0, SIZE + 1),
        (1 << 62, 8),
        (1 << 64, 1),
        (-1 << 64, 1),
    ],
)
def test_a_range_outside_of_the_mapping_is_refused_and_nothing_changes(
    mapping: pmdk.Mapping, name: str, offset: int, length: int
) -> None:
    length = max(length, 1) if name == "append both" else length
    with pytest.raises(ValueError, match=f"found {length} bytes at {offset}, allowed: within 0 to {SIZE}"):
        RANGED[name](mapping, offset, length)
    assert bytes(mapping.buffer) == bytes(SIZE)


@pytest.mark.parametrize("name", ["persist", "flush", "msync"])
@pytest.mark.parametrize("length", [-1, -SIZE, -1 << 64])
def test_a_negative_length_is_refused(mapping: pmdk.Mapping, name: str, length: int) -> None:
    with pytest.raises(ValueError, match="allowed: "):
        RANGED[name](mapping, 8, length)


@pytest.mark.parametrize("name", RANGED)
@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (SIZE - 1, 1), (1, SIZE - 2)])
def test_a_range_up_to_either_end_is_taken(mapping: pmdk.Mapping, name: str, offset: int, length: int) -> None:
    RANGED[name](mapping, offset, length)
    expected = bytearray(SIZE)
    if name not in ("persist", "flush", "msync"):
        expected[offset : offset + length] = b"x" * length
    assert bytes(mapping.buffer) == expected


@pytest.mark.parametrize("name", ["persist", "flush", "msync", "memcpy_persist", "memcpy_nodrain"])
@pytest.mark.parametrize("offset", [0, SIZE])
def test_an_empty_range_is_taken(mapping: pmdk.Mapping, name: str, offset: int) -> None:
    RANGED[name](mapping, offset, 0)


@pytest.mark.parametrize("name", RANGED)
def test_a_closed_mapping_refuses_all(mapping: pmdk.Mapping, name: str) -> None:
    mapping.close()
    mapping.close()
    assert repr(mapping) == f"<Mapping of {mapping.path!r}, {SIZE} bytes, closed>"
    with pytest.raises(ValueError, match="closed"):
        RANGED[name](mapping, 0, 1)
    with pytest.raises(ValueError, match="closed"):
        _ = mapping.buffer


def is_mapped(path: Path) -> bool:
    """Say whether this process has *path* mapped."""
    return str(path) in Path("/proc/self/maps").read_text()


def test_memory_is_unmapped_with_the_last_view_of_it(path: Path) -> None:
    mapping = pmdk.map_file(path, SIZE, create=True)
    view = mapping.buffer[8:16]
    mapping.close()
    view[:] = b"still on"
    assert path.read_bytes()[8:16] == b"still on"
    assert is_mapped(path)
    del view
    assert not is_mapped(path)


def test_memory_is_unmapped_by_close_where_nobody_looks(path: Path) -> None:
    mapping = pmdk.map_file(path, SIZE, create=True)
    assert is_mapped(path)
    mapping.close()
    assert not is_mapped(path)
