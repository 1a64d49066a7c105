"""Names of images: what may be done to them, and what a mount allows only where its configuration does."""

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.callers import outcome, shell
from tests.support.mounts import Mount, Place

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2


@pytest.fixture
def root(place: Place, mounted: Callable[..., Mount]) -> Path:
    """A mount of one image whose configuration allows no change of names."""
    place.image("disk", b"content")
    return mounted().path


@pytest.fixture
def free(place: Place, mounted: Callable[..., Mount]) -> Path:
    """A mount of one image whose configuration allows to create, rename and remove."""
    place.image("disk", b"content")
    return mounted(create=True, rename=True, remove=True).path


def renameat2(old: Path, new: Path, flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    ok = libc.renameat2(-1, os.fsencode(old), -1, os.fsencode(new), flags) == 0
    return 0 if ok else ctypes.get_errno()


FORBIDDEN: dict[str, Callable[[Path], object]] = {
    "create": lambda root: os.open(root / "new", os.O_CREAT | os.O_WRONLY),
    "rename": lambda root: (root / "disk").rename(root / "new"),
    "unlink": lambda root: (root / "disk").unlink(),
    "mkdir": lambda root: (root / "new").mkdir(),
    "rmdir": lambda root: (root / ".control").rmdir(),
    "mknod": lambda root: os.mknod(root / "new"),
    "mkfifo": lambda root: os.mkfifo(root / "new"),
    "symlink": lambda root: (root / "new").symlink_to("disk"),
    "link": lambda root: (root / "new").hardlink_to(root / "disk"),
    "chmod": lambda root: (root / "disk").chmod(0o666),
    "chown": lambda root: os.chown(root / "disk", 1, 1),
    "chmod of the root": lambda root: root.chmod(0o777),
    "create in .control": lambda root: (root / ".control" / "new").touch(),
    "mkdir in .control": lambda root: (root / ".control" / "new").mkdir(),
    "unlink in .control": lambda root: (root / ".control" / "flush").unlink(),
    "rename in .control": lambda root: (root / ".control" / "flush").rename(root / ".control" / "new"),
    "chmod in .control": lambda root: (root / ".control" / "flush").chmod(0o666),
}


def test_by_default_names_owners_and_modes_are_eperm_to_change(root: Path, place: Place) -> None:
    before = sorted(root.iterdir()), (root / "disk").stat()
    outcomes = {what: outcome(attempt, root) for what, attempt in FORBIDDEN.items()}
    assert outcomes == dict.fromkeys(FORBIDDEN, errno.EPERM)
    assert (sorted(root.iterdir()), (root / "disk").stat()) == before
    assert [path.name for path in place.images.iterdir()] == ["disk"]


def test_no_configuration_allows_anything_but_images(free: Path) -> None:
    for what in ("mkdir", "mknod", "mkfifo", "symlink", "link", "rmdir", "chmod", "chown"):
        assert outcome(FORBIDDEN[what], free) == errno.EPERM, what


@pytest.mark.parametrize("what", ["create", "rename", "remove"])
def test_each_switch_allows_one_thing(place: Place, mounted: Callable[..., Mount], what: str) -> None:
    place.image("disk", b"content")
    root = mounted(**{what: True}).path
    attempts: dict[str, Callable[[], object]] = {
        "create": lambda: (root / "new").write_bytes(b""),
        "rename": lambda: (root / "disk").rename(root / "other"),
        "remove": (root / ("other" if what == "rename" else "disk")).unlink,
    }
    for name, attempt in attempts.items():
        if name == what:
            attempt()
        else:
            with pytest.raises(PermissionError):
                attempt()


def test_copying_to_a_new_name_makes_an_image(free: Path, place: Place) -> None:
    (place.root / "source").write_bytes(os.urandom(300_001))
    result = shell("cp source mnt/new && cmp source mnt/new", place.root)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (place.images / "new").read_bytes() == (place.root / "source").read_bytes()


@pytest.mark.parametrize("command", ["dd if=source of=mnt/new bs=64k status=none", "cat source > mnt/new"])
def test_a_shell_makes_an_image(free: Path, place: Place, command: str) -> None:
    (place.root / "source").write_bytes(os.urandom(300_001))
    result = shell(command, place.root)
    assert result.returncode == 0, result.stderr
    assert (place.images / "new").read_bytes() == (place.root / "source").read_bytes()


def test_the_creators_handle_grows_the_image_by_writing_and_by_ftruncate(free: Path, place: Place) -> None:
    fd = os.open(free / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    try:
        assert os.write(fd, b"first") == 5
        os.ftruncate(fd, 100_000)
        assert os.fstat(fd).st_size == 100_000
        assert os.pwrite(fd, b"last", 199_996) == 4
        assert os.pread(fd, 300_000, 0) == b"first" + bytes(199_991) + b"last"
        assert (free / "new").stat().st_size == 200_000
    finally:
        os.close(fd)
    assert (place.images / "new").stat().st_size == 200_000


def test_the_creators_handle_does_not_shrink_the_image(free: Path) -> None:
    fd = os.open(free / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    try:
        os.ftruncate(fd, 1000)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 999)
    finally:
        os.close(fd)


def test_other_handles_of_a_new_image_do_not_grow_it(free: Path) -> None:
    creator = os.open(free / "new", os.O_CREAT | os.O_EXCL | os.O_RDWR)
    try:
        os.write(creator, b"0123456789")
        other = os.open(free / "new", os.O_CREAT | os.O_RDWR)
        try:
            with pytest.raises(OSError, match="No space left"):
                os.pwrite(other, b"x", 10)
            with pytest.raises(PermissionError):
                os.ftruncate(other, 20)
        finally:
            os.close(other)
    finally:
        os.close(creator)
    with (free / "new").open("r+b", buffering=0) as later, pytest.raises(OSError, match="No space left"):
        os.pwrite(later.fileno(), b"x", 10)


def test_a_creator_with_o_append_appends(free: Path, place: Place) -> None:
    fd = os.open(free / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND)
    try:
        for _ in range(5):
            assert os.write(fd, b"line\n") == 5
    finally:
        os.close(fd)
    assert (place.images / "new").read_bytes() == b"line\n" * 5


def test_two_processes_that_create_one_name_do_not_meet_halfway(free: Path) -> None:
    os.close(os.open(free / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    with pytest.raises(FileExistsError):
        os.open(free / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.close(os.open(free / "new", os.O_CREAT | os.O_WRONLY))


def test_a_renamed_image_has_its_content_under_the_new_name_only(free: Path, place: Place) -> None:
    (free / "disk").rename(free / "moved")
    assert (free / "moved").read_bytes() == b"content"
    assert not (free / "disk").exists()
    assert sorted(path.name for path in free.iterdir()) == [".control", "moved"]
    assert [path.name for path in place.images.iterdir()] == ["moved"]


def test_an_open_image_is_renamed_and_goes_on_working(free: Path, place: Place) -> None:
    with (free / "disk").open("r+b", buffering=0) as file:
        (free / "disk").rename(free / "moved")
        file.write(b"CON")
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_size == 7
    assert (free / "moved").read_bytes() == b"CONtent"
    assert (free / ".control/images/moved/flush").read_text() == "idle\n"
    assert (place.images / "moved").read_bytes() == b"CONtent"


def test_a_rename_never_replaces_an_image(free: Path, place: Place) -> None:
    place.image("other", b"precious")
    with pytest.raises(FileExistsError):
        (free / "disk").rename(free / "other")
    assert renameat2(free / "disk", free / "other", RENAME_NOREPLACE) == errno.EEXIST
    assert renameat2(free / "disk", free / "other", RENAME_EXCHANGE) == errno.EINVAL
    assert (free / "disk").read_bytes() == b"content"
    assert (free / "other").read_bytes() == b"precious"


def test_renameat2_noreplace_to_a_free_name_works(free: Path) -> None:
    assert renameat2(free / "disk", free / "moved", RENAME_NOREPLACE) == 0
    assert (free / "moved").read_bytes() == b"content"


def test_an_image_is_not_renamed_into_the_control_directory_nor_to_its_name(free: Path) -> None:
    for target in (free / ".control" / "disk", free / ".control" / "images" / "new"):
        with pytest.raises(OSError, match="Invalid cross-device link") as caught:
            (free / "disk").rename(target)
        assert caught.value.errno == errno.EXDEV
    with pytest.raises(OSError, match=r"Directory not empty|Is a directory|busy|exists"):
        (free / "disk").rename(free / ".control")
    assert (free / "disk").read_bytes() == b"content"


def test_an_unlinked_image_is_gone_from_the_backend(free: Path, place: Place) -> None:
    (free / "disk").read_bytes()
    (free / "disk").unlink()
    assert not (free / "disk").exists()
    assert not list(place.images.iterdir())


def test_unlinking_an_open_image_is_ebusy(free: Path, place: Place) -> None:
    with (free / "disk").open("rb") as file:
        with pytest.raises(OSError, match="busy") as caught:
            (free / "disk").unlink()
        assert caught.value.errno == errno.EBUSY
        assert file.read() == b"content"
    assert (place.images / "disk").exists()
    (free / "disk").unlink()


def test_inode_numbers_survive_a_rename_and_a_remount(free: Path, place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("other")
    before = (free / "disk").stat().st_ino
    control = [path.stat().st_ino for path in (free / ".control", free / ".control/status")]
    assert before != (free / "other").stat().st_ino
    assert {entry.name: entry.inode() for entry in os.scandir(free)}["disk"] == before
    (free / "disk").rename(free / "moved")
    assert (free / "moved").stat().st_ino == before
    shell("umount mnt", place.root)
    root = mounted().path
    assert (root / "moved").stat().st_ino == before
    assert [path.stat().st_ino for path in (root / ".control", root / ".control/status")] == control


def test_names_of_all_kinds_are_images(place: Place, mounted: Callable[..., Mount]) -> None:
    names = {"with blank", "ümläut", "-dash", ".hidden", "x" * 255, "new\nline", "quote'\"", os.fsdecode(b"\xff\xfe")}
    for name in names:
        place.image(name, os.fsencode(name))
    root = mounted(create=True).path
    assert {path.name for path in root.iterdir()} == names | {".control"}
    for name in names:
        assert (root / name).read_bytes() == os.fsencode(name)
        assert (root / ".control/images" / name / "flush").read_text() == "idle\n"
    with pytest.raises(OSError, match="too long"):
        (root / ("x" * 256)).touch()


def test_what_is_no_regular_file_is_not_shown(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk")
    (place.images / "folder").mkdir()
    (place.images / "link").symlink_to("disk")
    os.mkfifo(place.images / "pipe")
    (place.images / ".control").write_text("an image that is in the way")
    mount = mounted()
    assert sorted(path.name for path in mount.path.iterdir()) == [".control", "disk"]
    for name in ("folder", "link", "pipe"):
        with pytest.raises(FileNotFoundError):
            (mount.path / name).lstat()
    assert (mount.path / ".control").is_dir()
    for told in (mount.log.read_text(), mount.events()):
        assert "the image named .control is not shown" in told


def test_an_image_that_does_not_exist_is_enoent(root: Path) -> None:
    for attempt in (os.stat, os.listdir, lambda path: os.open(path, os.O_RDONLY)):
        with pytest.raises(FileNotFoundError):
            attempt(root / "nothing")


def test_an_image_is_no_directory_and_the_root_no_file(root: Path) -> None:
    with pytest.raises(NotADirectoryError):
        (root / "disk" / "x").stat()
    with pytest.raises(IsADirectoryError):
        root.open("wb")


def test_extended_attributes_are_not_supported(root: Path) -> None:
    for attempt in (
        lambda: os.getxattr(root / "disk", "user.x"),
        lambda: os.setxattr(root / "disk", "user.x", b"1"),
    ):
        with pytest.raises(OSError, match="not supported"):
            attempt()
