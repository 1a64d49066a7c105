"""``scripts/setup``: the part ``rbd``, Ceph's programs and the two Python modules of Debian."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ceph import demand_ceph
from tests.support.project import ROOT

PACKAGES = ("ceph-mon", "ceph-osd", "ceph-common", "python3-rbd", "python3-rados")


class Checkout:
    """A checkout with an environment in which nothing is installed, and where pip installs nothing.

    Attributes:
        root: where it is.
        python: the interpreter of its environment.
        site: where its packages are.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python = root / ".venv" / "bin" / "python"
        self.site = root / ".venv" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
        self._tools = root.parent / "tools"
        (root / "scripts").mkdir(parents=True)
        for name in ("pyproject.toml", "scripts/setup"):
            shutil.copy(ROOT / name, root / name)
        self._tools.mkdir()
        self.answer_for_packages("echo installed")
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", root / ".venv"], check=True, timeout=60)
        (root / ".venv" / "bin" / "pip").symlink_to("/bin/true")
        (self.site / "pip").mkdir()
        (self.site / "pip" / "__main__.py").write_text("")

    def answer_for_packages(self, action: str) -> None:
        """Make Debian answer every question for a package by a shell command."""
        tool = self._tools / "dpkg-query"
        tool.write_text(f"#!/bin/sh\n{action}\n")
        tool.chmod(0o755)

    def setup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``scripts/setup`` of the checkout, without what only pip could compile."""
        command: list[str | Path] = [self.root / "scripts" / "setup", "--without", "pmem", *arguments]
        environment = {**os.environ, "PATH": f"{self._tools}:{os.environ['PATH']}"}
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )

    def can_import(self, module: str) -> bool:
        """Say whether the environment has *module*."""
        return subprocess.run([self.python, "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A checkout in which nothing was set up, on a machine with all packages."""
    return Checkout(tmp_path / "checkout")


def test_the_environment_gets_the_two_modules_and_no_others(checkout: Checkout) -> None:
    demand_ceph()
    first = checkout.setup()
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Linking rados rbd of Debian into .venv" in first.stdout
    assert checkout.can_import("rados, rbd")
    # It comes with them and lies beside them.
    assert not checkout.can_import("ceph_argparse")
    second = checkout.setup()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert checkout.setup("--check").stdout == "nothing is missing\n"


def test_modules_that_went_missing_are_listed_and_come_back(checkout: Checkout) -> None:
    demand_ceph()
    checkout.setup()
    next(checkout.root.glob(".venv/lib/fusecache-rbd/rbd.*")).unlink()
    listed = checkout.setup("--check")
    assert (listed.returncode, listed.stdout) == (1, "missing: rados rbd in .venv\n")
    assert checkout.setup().returncode == 0
    assert checkout.can_import("rados, rbd")


def test_without_rbd_the_environment_has_no_modules_until_the_part_is_wanted_again(checkout: Checkout) -> None:
    demand_ceph()
    checkout.setup()
    left_out = checkout.setup("--without", "rbd")
    assert left_out.returncode == 0, left_out.stdout + left_out.stderr
    assert not checkout.can_import("rbd")
    assert not checkout.can_import("rados")
    assert checkout.setup("--check", "--without", "rbd").stdout == "nothing is missing\n"
    assert checkout.setup().returncode == 0
    assert checkout.can_import("rados, rbd")


def test_a_python_that_the_modules_are_not_built_for_is_told(checkout: Checkout) -> None:
    (checkout.site / "foreign.pth").write_text(
        "import sysconfig; sysconfig.get_config_vars()['EXT_SUFFIX'] = '.foreign.so'\n"
    )
    result = checkout.setup()
    assert result.returncode == 1
    assert "Debian's python3-rados is not built for the Python of .venv: found no /" in result.stderr
    assert "--without rbd" in result.stderr
    assert checkout.setup("--without", "rbd").returncode == 0


def test_check_lists_the_packages_unless_they_are_left_out(checkout: Checkout) -> None:
    checkout.answer_for_packages("exit 1")
    lines = {f"missing: Debian package {name}" for name in PACKAGES}
    assert lines <= set(checkout.setup("--check").stdout.splitlines())
    assert lines.isdisjoint(checkout.setup("--check", "--without", "rbd").stdout.splitlines())
