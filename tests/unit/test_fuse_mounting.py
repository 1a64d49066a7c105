"""What is found at a mountpoint, and what a mount refuses to go over."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from fusecache.fuse import mounting
from fusecache.fuse.mounting import MountEntry, find_mount, is_stale, mounts, parse_mountinfo, prepare, unmount


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        (
            b"36 35 98:0 / / rw,noatime master:1 - ext4 /dev/root rw,errors=continue",
            MountEntry(Path("/"), "ext4", "/dev/root"),
        ),
        (
            b"36 35 0:50 / /mnt rw - fuse.fusecache fusecache rw",
            MountEntry(Path("/mnt"), "fuse.fusecache", "fusecache"),
        ),
        (
            b"36 35 0:50 / /a\\040b\\011c\\012d\\134040 rw shared:1 master:2 - nfs host:/x\\040y rw",
            MountEntry(Path("/a b\tc\nd\\040"), "nfs", "host:/x y"),
        ),
        (b"36 35 0:50 / /mnt rw - tmpfs  rw", MountEntry(Path("/mnt"), "tmpfs", "")),
        (
            "36 35 0:50 / /ü\u2028\x0c\x1c\r\x85 rw - tmpfs x rw".encode(),
            MountEntry(Path("/ü\u2028\x0c\x1c\r\x85"), "tmpfs", "x"),
        ),
        (b"36 35 0:50 / /\xff rw - tmpfs x rw", MountEntry(Path("/\udcff"), "tmpfs", "x")),
    ],
)
def test_a_line_of_mountinfo_is_read(line: bytes, entry: MountEntry) -> None:
    assert parse_mountinfo(line + b"\n" + line + b"\n") == [entry, entry]


def test_the_mounts_of_this_process_are_read() -> None:
    found = mounts()
    assert Path("/proc") in [entry.mountpoint for entry in found]
    assert all(entry.fstype for entry in found)


def test_the_uppermost_of_several_mounts_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    entries = [MountEntry(tmp_path, kind, kind) for kind in ("ext4", "tmpfs")]
    monkeypatch.setattr(mounting, "mounts", lambda: [*entries, MountEntry(tmp_path / "below", "nfs", "nfs")])
    assert find_mount(tmp_path) == entries[1]
    assert find_mount(tmp_path / "below" / "..") == entries[1]
    assert find_mount(tmp_path / "other") is None


def test_a_mountpoint_is_found_through_a_link_above_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    entry = MountEntry(tmp_path / "real" / "mnt", "tmpfs", "x")
    monkeypatch.setattr(mounting, "mounts", lambda: [entry])
    monkeypatch.chdir(tmp_path)
    assert find_mount(Path("link/mnt")) == entry


def test_a_mountpoint_is_found_through_links_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "real" / "mnt").mkdir(parents=True)
    for name, target in {
        "link": "real/mnt",
        "absolute": str(tmp_path / "real" / "mnt"),
        "chain": "real/../link/",
        "loop": "loop",
    }.items():
        (tmp_path / name).symlink_to(target)
    entry = MountEntry(tmp_path / "real" / "mnt", "tmpfs", "x")
    monkeypatch.setattr(mounting, "mounts", lambda: [entry])
    monkeypatch.chdir(tmp_path)
    for name in ("link", "absolute", "chain", "link/"):
        assert find_mount(Path(name)) == entry
    for name in ("loop", "real", "nothing", "real/mnt/link"):
        assert find_mount(Path(name)) is None


def test_an_empty_directory_can_be_mounted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mnt").mkdir()
    monkeypatch.chdir(tmp_path)
    assert prepare(Path("mnt")) == tmp_path / "mnt"
    assert not is_stale(tmp_path / "mnt")


def make_nothing(path: Path) -> None:
    """Leave the path alone."""


def make_file(path: Path) -> None:
    path.write_bytes(b"")


def make_full(path: Path) -> None:
    path.mkdir()
    (path / "file").write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "number", "found"),
    [
        (make_nothing, errno.ENOENT, "nothing"),
        (make_file, errno.ENOTDIR, "a file"),
        (make_full, errno.ENOTEMPTY, "a directory with files in it"),
    ],
)
def test_anything_but_an_empty_directory_is_refused_with_what_was_found(
    make: Callable[[Path], object], number: int, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "mnt"
    make(path)
    with pytest.raises(OSError, match=f"{path}: found {found}, allowed: an empty directory") as caught:
        prepare(path)
    assert caught.value.errno == number


@pytest.mark.parametrize(
    ("fstype", "found"),
    [("tmpfs", "a mount of type tmpfs"), ("fuse.fusecache", "a mount of fusecache that is being served")],
)
def test_a_mountpoint_in_use_is_refused(
    fstype: str, found: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mounting, "mounts", lambda: [MountEntry(tmp_path, fstype, "x")])
    with pytest.raises(OSError, match=found) as caught:
        prepare(tmp_path)
    assert caught.value.errno == errno.EBUSY


def test_stale_mounts_of_ours_are_cleared_away_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = [MountEntry(tmp_path, "fuse.fusecache", "fusecache")] * 2
    monkeypatch.setattr(mounting, "mounts", lambda: list(found))
    monkeypatch.setattr(mounting, "is_stale", lambda path: True)
    monkeypatch.setattr(mounting, "unmount", lambda path, lazy: found.pop())
    assert prepare(tmp_path) == tmp_path
    assert not found


def test_unmounting_where_nothing_is_mounted_fails(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"unmount {tmp_path}") as caught:
        unmount(tmp_path)
    assert caught.value.errno in (errno.EINVAL, errno.EPERM)
    assert tmp_path.exists()


def test_a_mount_that_is_refused_leaves_no_descriptor(tmp_path: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(OSError, match=r"mount on|fusermount3|/dev/fuse"):
        mounting.mount(tmp_path / "none", allow_other=False)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
