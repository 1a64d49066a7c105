"""The first things anybody does with a mount."""

from collections.abc import Callable

from tests.support.mounts import Mount, Place


def test_what_is_written_through_the_mount_is_in_the_backend(place: Place, mounted: Callable[..., Mount]) -> None:
    path = place.image("disk", size=1 << 20)
    mount = mounted()
    with (mount.path / "disk").open("r+b") as file:
        file.seek(4097)
        file.write(b"hello")
    assert path.read_bytes()[4090:4110] == bytes(7) + b"hello" + bytes(8)
    mount.unmount()


def test_what_is_in_the_backend_is_read_through_the_mount(place: Place, mounted: Callable[..., Mount]) -> None:
    place.image("disk", b"from below" * 1000)
    assert (mounted().path / "disk").read_bytes() == b"from below" * 1000
