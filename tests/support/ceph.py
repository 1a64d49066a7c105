"""Real Ceph clusters for tests.

Owns how a test gets a cluster of ``scripts/ceph``, what it can run against it, and how it hurts it; every cluster is
gone at the end, also where tests fail. It must not know what is tested.

Everything here blocks its thread; under trio, call it through ``trio.to_thread.run_sync``.
"""

import contextlib
import itertools
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from tests.support.project import ROOT

SCRIPT = ROOT / "scripts" / "ceph"

WATCH_TIMEOUT = 5
"""Seconds after which a client that died loses its exclusive locks: the least that works."""

PATIENCE = 30.0
"""Seconds after which a program that uses a cluster counts as hanging."""

START_PATIENCE = 100.0
"""Seconds that ``scripts/ceph`` may take; a start takes about 5, one of a cluster that was stopped 2."""

PROGRAMS = ("ceph-mon", "ceph-osd", "ceph", "rbd")

Daemon = Literal["mon.a", "osd.0"]
DAEMONS: tuple[Daemon, ...] = ("mon.a", "osd.0")

_numbers = itertools.count(1)


def script(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``scripts/ceph`` to its end, whatever that is, with *variables* in its environment."""
    return _run([str(SCRIPT), *map(str, arguments)], {**os.environ, **variables}, START_PATIENCE)


def _run(command: list[str], environment: dict[str, str], timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Cluster:
    """A one-node cluster with a pool ``rbd``, in a directory of its own. Not started by making the object.

    Attributes:
        directory: what ``scripts/ceph`` gets as DIR; need not exist.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def conf(self) -> Path:
        """The config that selects this cluster: ``conf=`` of qemu, ``conffile=`` of rados, CEPH_CONF of the others."""
        return self.directory / "ceph.conf"

    @property
    def environment(self) -> dict[str, str]:
        """The environment for a program that uses this cluster."""
        without = {name: value for name, value in os.environ.items() if name != "CEPH_ARGS"}
        return {**without, "CEPH_CONF": str(self.conf), "LC_ALL": "C"}

    def start(self, **variables: str) -> None:
        """Bring up the daemons that do not run; return when images can be made, so also when the OSD is up again."""
        result = script("start", self.directory, FUSECACHE_CEPH_WATCH_TIMEOUT=str(WATCH_TIMEOUT), **variables)
        assert result.returncode == 0, f"scripts/ceph start ended with {result.returncode}:\n{result.stderr}"

    def stop(self) -> None:
        """End the daemons that run, in order; the data stays."""
        result = script("stop", self.directory)
        assert result.returncode == 0, f"scripts/ceph stop ended with {result.returncode}:\n{result.stderr}"

    def discard(self) -> None:
        """Stop the daemons and remove the data, whatever state the cluster is in."""
        if self.conf.exists():
            self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def pid(self, daemon: Daemon) -> int:
        """Return the process of *daemon*, which runs."""
        return int((self.directory / f"{daemon}.pid").read_text())

    def kill(self, *daemons: Daemon) -> None:
        """Kill *daemons*, which run, by SIGKILL; return when they are dead. :meth:`start` brings them back.

        The monitor believes for many minutes that a killed OSD is up: requests to it hang meanwhile.
        """
        for daemon in daemons:
            pidfd = os.pidfd_open(self.pid(daemon))
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                assert poll.poll(PATIENCE * 1000), f"{daemon} has not died within {PATIENCE:g} s"
            finally:
                os.close(pidfd)

    def attempt(self, *command: str | Path, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run any program against this cluster to its end, whatever that is.

        Raises:
            subprocess.TimeoutExpired: it has not ended after *timeout* seconds, and was killed.
        """
        return _run(list(map(str, command)), self.environment, timeout)

    def run(self, *command: str | Path, timeout: float = PATIENCE) -> str:
        """Run any program against this cluster, which must succeed; return what it wrote to standard output.

        Raises:
            subprocess.TimeoutExpired: as in :meth:`attempt`.
        """
        result = self.attempt(*command, timeout=timeout)
        line = shlex.join(map(str, command))
        assert result.returncode == 0, f"{line} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
        return result.stdout

    def rbd(self, *arguments: str | Path, timeout: float = PATIENCE) -> str:
        """Run ``rbd``, as :meth:`run` does."""
        return self.run("rbd", *arguments, timeout=timeout)

    def ceph(self, *arguments: str | Path, timeout: float = PATIENCE) -> str:
        """Run ``ceph``, as :meth:`run` does."""
        return self.run("ceph", *arguments, timeout=timeout)


@contextmanager
def running_cluster(directory: Path, *, begin_as: Path | None = None, **variables: str) -> Iterator[Cluster]:
    """Run a new cluster in *directory* for the length of a block; skip the test where there is no Ceph.

    With *begin_as* it is a copy of the stopped cluster in that directory, and has its identity; otherwise it is made
    with *variables* in the environment.
    """
    demand_ceph()
    cluster = Cluster(directory)
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.discard)
        if begin_as is not None:
            _copy(begin_as, cluster)
        cluster.start(**variables)
        yield cluster


def _copy(source: Path, copy: Cluster) -> None:
    # The OSD's data are a sparse file of 32 GiB.
    subprocess.run(["cp", "--archive", "--sparse=always", source, copy.directory], check=True)
    conf = copy.conf.read_text()
    copy.conf.write_text(conf.replace(str(source.resolve()), str(copy.directory.resolve())))


def demand_ceph() -> None:
    """Skip the test where Ceph is not installed."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(f"Ceph is not installed, found no {', '.join(missing)}; scripts/setup installs it")


@pytest.fixture(scope="session")
def ceph_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that all tests share: make images in it, and leave its daemons alone."""
    with running_cluster(tmp_path_factory.mktemp("ceph") / "cluster") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def empty_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of a cluster that was made and stopped: what each private one begins as, in less than half the
    time that a new one takes."""
    # Not shorter than where the copies are: its daemons have sockets there only where the path is not too long.
    directory = tmp_path_factory.mktemp("what-every-private-cluster-begins-as") / "cluster"
    with running_cluster(directory) as cluster:
        cluster.stop()
        yield directory


@pytest.fixture
def private_cluster(tmp_path: Path, empty_cluster: Path) -> Iterator[Cluster]:
    """A cluster of one test, which may hurt it. Takes 2 s."""
    with running_cluster(tmp_path / "cluster", begin_as=empty_cluster) as cluster:
        yield cluster


@pytest.fixture
def image_name(request: pytest.FixtureRequest) -> str:
    """A name for an image that no other test of this run uses; the image does not exist."""
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', request.node.name)[:60]}-{next(_numbers)}"
