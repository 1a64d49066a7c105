"""The samples under etc/ are what they claim to be."""

import configparser
import tomllib
from pathlib import Path

from tests.support.project import ROOT, name_of

KINDS = {".toml", ".service", ".fstab"}


def samples(suffix: str) -> list[Path]:
    """Return the samples of one kind."""
    found = sorted((ROOT / "etc").rglob(f"*{suffix}"))
    assert found, f"found no *{suffix} below etc/"
    return found


def test_every_sample_is_of_a_kind_that_is_checked_here() -> None:
    assert {path.suffix for path in (ROOT / "etc").rglob("*") if path.is_file()} <= KINDS


def test_every_toml_sample_parses() -> None:
    for path in samples(".toml"):
        assert tomllib.loads(path.read_text())


def test_every_unit_sample_parses_and_has_what_systemd_needs() -> None:
    for path in samples(".service"):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read(path)
        assert set(unit.sections()) == {"Unit", "Service", "Install"}, name_of(path)
        for key in ("ExecStart", "ExecStop"):
            assert unit["Service"][key].startswith("/"), f"{name_of(path)}: {key}"


def test_every_fstab_sample_has_six_fields_and_our_type() -> None:
    for path in samples(".fstab"):
        lines = [line.split() for line in path.read_text().splitlines() if line and not line.startswith("#")]
        assert lines, name_of(path)
        for fields in lines:
            assert len(fields) == 6
            assert fields[2] == "fusecache"
