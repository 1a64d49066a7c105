"""What commands make of a control directory's files."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from fusecache.cli import mounted, status
from fusecache.cli.failure import Failure
from fusecache.cli.mounted import Ending, Mounted, NotAnswering, appended, ending_of
from fusecache.cli.output import print_table
from fusecache.cli.status import image_row

EVENTS = [
    "2026-01-01T00:00:00Z command-failed a/flush: found 'x', allowed: \"all\"",
    "2026-01-01T00:00:01Z command-failed a/flush: flush all: the backend is full",
    "2026-01-01T00:00:02Z mounted a/flush: flush all",
    "2026-01-01T00:00:03Z command-done b/flush: flush all",
]


@given(st.lists(st.integers(), unique=True), st.integers(0, 20), st.integers(0, 20))
def test_new_lines_are_found_whatever_was_dropped_before_them(numbers: list[int], old_end: int, new_begin: int) -> None:
    lines = [str(number) for number in numbers]
    assert list(appended(lines[:old_end], lines[min(old_end, new_begin) :])) == lines[old_end:]


def test_the_ending_is_that_of_the_command_that_ended_last() -> None:
    assert ending_of(EVENTS, "a/flush: flush all") == Ending("command-failed", "the backend is full")
    assert ending_of(EVENTS[:1], "a/flush") == Ending("command-failed", "found 'x', allowed: \"all\"")
    done = ending_of([*EVENTS, "2026-01-01T00:00:04Z command-done a/flush: flush all"], "a/flush: flush all")
    assert done is not None
    assert not done.failed
    refused = ending_of(["2026-01-01T00:00:04Z command-refused a/discard: discard 0: layer 0 is dirty"], "a/discard")
    assert refused == Ending("command-refused", "discard 0: layer 0 is dirty")
    assert refused.refused
    other = ending_of(EVENTS, "b/flush: flush all")
    assert other is not None
    assert not other.failed
    assert ending_of(EVENTS, "a/flush: flush 1") is None


@pytest.fixture
def mount(tmp_path: Path) -> Mounted:
    (tmp_path / ".control").mkdir()
    (tmp_path / ".control" / "events").touch()
    return Mounted(tmp_path)


def test_a_mount_that_does_not_answer_is_given_up(mount: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounted, "ANSWER_WITHIN", 0.1)
    # Nobody ever opens the other end.
    os.mkfifo(mount.mountpoint / ".control" / "status.json")
    with pytest.raises(NotAnswering, match="does not answer within"):
        mount.status()


def test_a_file_that_cannot_be_read_is_named(mount: Mounted) -> None:
    with pytest.raises(Failure, match=r"^/.*/\.control/status\.json: No such file or directory$"):
        mount.status()


@pytest.fixture
def away(mount: Mounted) -> Mounted:
    """Return a mount with an open image, whose backend does not answer."""
    image = {"name": "disk", "size": 4096, "open": True, "state": "clean", "note": "", "layers": []}
    content = {"mountpoint": "mnt", "backend": "rbd:pool", "pid": 7, "complete": False, "images": [image]}
    (mount.mountpoint / ".control" / "status.json").write_text(json.dumps(content))
    return mount


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_list_of_images_that_is_not_complete_says_so(
    away: Mounted, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "mount_at", lambda path: away)
    result = CliRunner().invoke(status.command, [str(away.mountpoint), *options])
    assert result.exit_code == 1
    assert "disk" in result.stdout
    assert result.stderr == (
        f"fusecache: {away.mountpoint}: the backend does not answer: images that are not open may be missing\n"
    )
    monkeypatch.setattr(status, "all_mounts", lambda: [away])
    result = CliRunner().invoke(status.command, options)
    assert (result.exit_code, "may be missing" in result.stderr) == (1, True)


def test_an_image_that_is_not_listed_while_the_backend_is_away_is_not_known(away: Mounted) -> None:
    assert away.image_status("disk")["open"]
    with pytest.raises(Failure, match="whether there is an image 'closed', which is not open, is not known"):
        away.image_status("closed")


@pytest.mark.parametrize("image", ["gone", "../..", "", ".", ".."])
def test_what_is_no_image_gets_no_command(mount: Mounted, image: str) -> None:
    (mount.mountpoint / ".control" / "flush").touch()
    with pytest.raises(Failure, match="there is no image"):
        mount.flush(image, None)
    assert (mount.mountpoint / ".control" / "flush").read_text() == ""


def layer(index: int, **figures: Any) -> dict[str, Any]:
    zeroes: dict[str, Any] = {"dirty_bytes": 0, "oldest_dirty_seconds": None, "hits": 0, "misses": 0, "replicas": []}
    return {"index": index, "plugin": f"p{index}", **zeroes, **figures}


def test_an_images_row_sums_up_its_layers() -> None:
    layers = [
        layer(0, hits=2, misses=1, dirty_bytes=1024, oldest_dirty_seconds=1.0),
        layer(1, hits=1, misses=3, dirty_bytes=1024, oldest_dirty_seconds=7.4, replicas=[{"state": "in-sync"}]),
    ]
    image = {"name": "disk", "size": 1 << 30, "open": True, "state": "dirty", "layers": layers}
    assert image_row(image) == ("disk", "1GiB", "yes", "dirty", "1:p1 0:p0", "2KiB", "7s", "75%", "in-sync")
    image = {"name": "disk", "size": 266115584, "open": False, "state": "clean", "layers": []}
    assert image_row(image) == ("disk", "253.8MiB", "no", "clean", "-", "0", "-", "-", "-")


def test_without_a_terminal_tables_are_aligned_lines(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("name", "size"), [("a\nb", "1"), ("long name", "22")])
    assert capsys.readouterr().out == "NAME       SIZE\na\\nb       1\nlong name  22\n"
