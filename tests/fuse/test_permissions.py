"""Who may do what with a mount: nobody but its owner, unless the configuration says otherwise."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.callers import shell
from tests.support.mounts import PATIENCE, Mount, Place, fusecache

STRANGER = 65534
"""A user, and a group, without any rights."""

GROUP = 54321
"""A group without a name."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def place() -> Iterator[Place]:
    """A place of one image that every user can reach."""
    root = Path(tempfile.mkdtemp(prefix="fusecache-test-"))
    root.chmod(0o755)
    place = Place(root)
    place.image("disk", b"content")
    yield place
    shutil.rmtree(root)


def as_user(script: str, place: Place, *, uid: int = STRANGER, gid: int = STRANGER) -> tuple[int, str]:
    """Run a shell script in the place's root as another user; return its exit status and all that it printed."""
    change = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    result = subprocess.run(
        [*change, "sh", "-c", script],
        cwd=place.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return result.returncode, result.stdout


def allowed(script: str, place: Place, *, uid: int = STRANGER, gid: int = STRANGER) -> bool:
    """Say whether another user may do something; anything else than a refusal fails the test."""
    status, output = as_user(script, place, uid=uid, gid=gid)
    assert status == 0 or "Permission denied" in output or "Operation not permitted" in output, output
    return status == 0


def test_by_default_nobody_else_gets_in(place: Place, mounted: Callable[..., Mount]) -> None:
    mounted()
    for script in (
        "ls mnt",
        "cat mnt/disk",
        "stat mnt/disk",
        "cat mnt/.control/status",
        "echo all > mnt/.control/flush",
    ):
        assert not allowed(script, place), script


def test_with_allow_other_others_see_names_and_reports_and_no_more(place: Place, mounted: Callable[..., Mount]) -> None:
    mounted(allow_other=True)
    for script in ("ls -l mnt mnt/.control", "cat mnt/.control/status", "cat mnt/.control/images/disk/layers/0/state"):
        assert allowed(script, place), script
    for script in (
        "cat mnt/disk",
        "echo x > mnt/disk",
        "truncate -s 0 mnt/disk",
        "echo all > mnt/.control/flush",
        "cat mnt/.control/flush",
        "echo 0 > mnt/.control/images/disk/discard",
        "chmod 666 mnt/disk",
        "chown 65534 mnt/disk",
    ):
        assert not allowed(script, place), script
    assert (place.images / "disk").read_bytes() == b"content"


def test_mode_owner_and_group_are_the_configured_ones(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted(allow_other=True, mode="0640", owner=STRANGER, group=GROUP)
    found = (mount.path / "disk").stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o640, STRANGER, GROUP)
    assert allowed("cat mnt/disk && printf x > mnt/disk", place)
    assert allowed("cat mnt/disk", place, uid=1234, gid=GROUP)
    assert not allowed("printf x > mnt/disk", place, uid=1234, gid=GROUP)
    assert not allowed("cat mnt/disk", place, uid=1234)
    assert (place.images / "disk").read_bytes() == b"xontent"


def test_everybody_may_write_where_the_mode_says_so(place: Place, mounted: Callable[..., Mount]) -> None:
    mounted(allow_other=True, mode="0666")
    assert allowed("printf C > mnt/disk && cat mnt/disk", place)
    assert (place.images / "disk").read_bytes() == b"Content"


def test_the_control_group_gives_commands_and_reads_no_image(place: Place, mounted: Callable[..., Mount]) -> None:
    mount = mounted(allow_other=True, control_group=GROUP)
    found = (mount.control / "flush").stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o660, 0, GROUP)
    for script in (
        "echo all > mnt/.control/flush",
        "cat mnt/.control/flush",
        "echo 0 > mnt/.control/images/disk/discard",
        "echo 0 > mnt/.control/images/disk/layers/0/writeback_rate",
    ):
        assert allowed(script, place, uid=1234, gid=GROUP), script
        assert not allowed(script, place, uid=1234), script
    assert not allowed("cat mnt/disk", place, uid=1234, gid=GROUP)


def test_only_the_owner_of_the_root_creates_renames_and_removes(place: Place, mounted: Callable[..., Mount]) -> None:
    mounted(allow_other=True, create=True, rename=True, remove=True, owner=STRANGER)
    script = "printf new > mnt/new && mv mnt/new mnt/moved && cat mnt/moved && rm mnt/moved"
    for step in ("printf new > mnt/new", "mv -f mnt/disk mnt/moved", "rm -f mnt/disk"):
        assert not allowed(step, place, uid=1234, gid=1234), step
    assert as_user(script, place) == (0, "new")


def test_the_mount_option_lets_others_in_too(place: Place) -> None:
    result = fusecache("mount", "-o", "allow_other", place.write_config(), place.mountpoint)
    assert result.returncode == 0, result.stderr
    try:
        assert allowed("ls mnt", place)
    finally:
        assert fusecache("unmount", place.mountpoint).returncode == 0


UNPRIVILEGED = """
fusecache() { "$PYTHON" -m fusecache "$@"; }
fusecache mount config.toml mnt || exit 2
trap 'fusecache unmount mnt || exit 3' EXIT
set -e
test "$(stat -c %u mnt/disk)" = "$(id -u)"
test "$(cat mnt/disk)" = content
printf C > mnt/disk
sync mnt/disk
echo all > mnt/.control/flush
"""


def test_a_user_without_privileges_mounts_and_unmounts(place: Place) -> None:
    if not allowed(f"test -x {sys.executable}", place):
        pytest.skip("this checkout is out of other users' reach")
    place.write_config()
    for path in (place.root, place.mountpoint, place.images, place.images / "disk"):
        os.chown(path, STRANGER, STRANGER)
    script = f"PYTHON={sys.executable}\n{UNPRIVILEGED}"
    if allowed("exec 3<> /dev/fuse", place):
        status, output = as_user(script, place)
    else:
        status, output = with_a_device_for_everybody(script, place)
    assert status == 0, output
    assert (place.images / "disk").read_bytes() == b"Content"
    assert not place.mountpoint.is_mount()


def with_a_device_for_everybody(script: str, place: Place) -> tuple[int, str]:
    """Run *script* as another user where ``/dev/fuse`` is open to all, as Debian has it; containers often do not."""
    (place.root / "script").write_text(script)
    become = f"setpriv --reuid={STRANGER} --regid={STRANGER} --clear-groups"
    device = "mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse"
    result = shell(f"unshare --mount sh -c '{device} && exec {become} sh script' 2>&1", place.root)
    return result.returncode, result.stdout
