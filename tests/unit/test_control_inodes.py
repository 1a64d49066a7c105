"""The inode numbers of the control directory."""

from hypothesis import given
from hypothesis import strategies as st

from fusecache.control.inodes import LOOKUP_BITS, ROOT, command_inode, report_inode

# Names as the file system gives them: bytes without NUL and slash.
names = st.binary(min_size=1, max_size=8).map(lambda name: name.replace(b"\0", b"-").decode("utf-8", "surrogateescape"))
paths = st.lists(names, min_size=1, max_size=4)


def test_the_numbers_are_the_same_in_every_version() -> None:
    assert ROOT == 0x8000000000000000
    assert report_inode("status") == 0x873C1634C496CDB6
    assert command_inode("images", "key", "flush") == 0xF68FC2BE83EF0000


@given(paths)
def test_the_layout_tells_reports_from_commands(path: list[str]) -> None:
    report, command = report_inode(*path), command_inode(*path)
    assert report >> 62 == 0b10
    assert command >> 62 == 0b11
    assert command % (1 << LOOKUP_BITS) == 0
    assert report != ROOT


@given(paths, paths)
def test_different_paths_have_different_numbers(one: list[str], other: list[str]) -> None:
    assert (report_inode(*one) == report_inode(*other)) == (one == other)
    assert (command_inode(*one) == command_inode(*other)) == (one == other)
