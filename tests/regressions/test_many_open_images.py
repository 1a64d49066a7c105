"""With five hundred images open, the next open and every listing failed with EMFILE."""

import resource
from collections.abc import Callable

import pytest

from tests.support.mounts import Mount, Place

IMAGES = 600


@pytest.fixture
def usual_limit() -> Callable[[], None]:
    """Set the soft limit of open files that Linux gives by default; returns how to take it back."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_images_than_half_the_usual_limit_of_files_are_open_at_once(
    place: Place, mounted: Callable[..., Mount], usual_limit: Callable[[], None]
) -> None:
    for number in range(IMAGES):
        place.image(f"disk-{number}", b"a")
    try:
        mount = mounted(release_after="1min")
    finally:
        usual_limit()
    for number in range(IMAGES):
        assert (mount.path / f"disk-{number}").read_bytes() == b"a"
    assert sum(image["open"] for image in mount.status()["images"]) == IMAGES
