"""The file of a layer that the config had no more stayed for ever when its image was removed before it was opened
again: only the layers in the config were asked for their files."""

from collections.abc import Callable

from tests.support.mounts import PASSTHROUGH, Mount, Place


def test_a_removed_image_takes_the_files_of_layers_with_it_that_the_config_has_no_more(
    place: Place, mounted: Callable[..., Mount]
) -> None:
    for name in ("disk", "other"):
        place.image(name, size=4096)
    place.layers = [{"plugin": "kept"}, {"plugin": "kept"}]
    mount = mounted()
    for name in ("disk", "other"):
        (mount.path / name).read_bytes()
    mount.unmount()
    assert len(list(place.pools.iterdir())) == 4
    place.layers = [PASSTHROUGH]
    mount = mounted(remove=True)
    (mount.path / "disk").unlink()
    assert not (place.images / "disk").exists()
    assert len(list(place.pools.iterdir())) == 2
    (mount.path / "other").read_bytes()
    assert not list(place.pools.iterdir())
