"""``scripts/ceph``: a cluster that comes back, belongs to its directory, and keeps to itself."""

import fcntl
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.ceph import (
    DAEMONS,
    SCRIPT,
    START_PATIENCE,
    WATCH_TIMEOUT,
    Cluster,
    demand_ceph,
    running_cluster,
    script,
)
from tests.support.mounts import wait_until
from tests.support.project import ROOT

LOOPBACK = "0100007F"
"""127.0.0.1, as /proc/net/tcp writes it on little-endian machines."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster for this module, in a directory whose path is too long for sockets; its tests may stop it."""
    parent = tmp_path_factory.mktemp("a-folder-with-a-long-name-" + "x" * 100)
    with running_cluster(parent / "cluster") as cluster:
        yield cluster


@pytest.fixture
def started(cluster: Cluster) -> Cluster:
    """The cluster of this module, running."""
    cluster.start()
    return cluster


def pids(cluster: Cluster) -> list[int]:
    """Return the pids of all daemons."""
    return [cluster.pid(daemon) for daemon in DAEMONS]


def processes_naming(cluster: Cluster) -> set[int]:
    """Return the pids of all processes whose command line has the cluster's config as a word."""
    found = set()
    for entry in Path("/proc").iterdir():
        # Processes end while we look.
        with suppress(OSError):
            if entry.name.isdigit() and os.fsencode(cluster.conf) in (entry / "cmdline").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


def monitor_port(cluster: Cluster) -> int:
    """Return the port that the cluster's config names."""
    found = re.search(r"(?m)^mon host = \[v2:127\.0\.0\.1:(\d+)\]$", cluster.conf.read_text())
    assert found is not None
    return int(found[1])


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a file or a directory for reading, for the length of a block."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def write_image(cluster: Cluster, name: str, file: Path) -> bytes:
    """Make an image with a content of its own; return the content."""
    content = name.encode().ljust(64, b".") * (1 << 15)
    file.write_bytes(content)
    cluster.rbd("import", file, name)
    return content


def read_image(cluster: Cluster, name: str, file: Path) -> bytes:
    """Return the content of an image."""
    cluster.rbd("export", name, file)
    return file.read_bytes()


def test_start_returns_when_images_can_be_made(ceph_cluster: Cluster, image_name: str) -> None:
    ceph_cluster.rbd("create", "--size", "1G", image_name, timeout=5)
    assert image_name in ceph_cluster.rbd("ls").splitlines()


def test_start_again_changes_nothing(started: Cluster) -> None:
    before, conf = pids(started), started.conf.read_bytes()
    again = script("start", started.directory)
    assert (again.returncode, again.stderr) == (0, "")
    assert (pids(started), started.conf.read_bytes()) == (before, conf)


def test_start_and_env_print_what_a_shell_needs(started: Cluster) -> None:
    start, env = script("start", started.directory), script("env", started.directory)
    assert start.stdout == env.stdout == f"export CEPH_CONF={started.conf}\n"
    shell = ["sh", "-c", f'eval "$({SCRIPT} env {started.directory})" && timeout 20 ceph fsid']
    fsid = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True)
    assert f"fsid = {fsid.stdout}" in started.conf.read_text()


def test_two_starts_at_once_make_one_cluster_that_holds_nothing_of_its_caller(tmp_path: Path) -> None:
    demand_ceph()
    cluster = Cluster(tmp_path / "cluster")
    reader, writer = os.pipe()
    locked = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(locked, fcntl.LOCK_EX)
    command: list[str | Path] = [SCRIPT, "start", cluster.directory]
    try:
        starts = [subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(writer, locked)) for _ in range(2)]
        os.close(writer)
        os.close(locked)
        assert [start.wait(START_PATIENCE) for start in starts] == [0, 0]
        assert processes_naming(cluster) == set(pids(cluster))
        assert json.loads(cluster.ceph("osd", "stat", "-f", "json"))["num_osds"] == 1
        # End of file: no daemon holds the other end of the pipe; nor the caller's lock, nor the script's own.
        assert os.read(reader, 1) == b""
        for path in (tmp_path / "lock", cluster.directory):
            with opened(path) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(reader)
        cluster.discard()


def test_a_start_that_was_killed_is_finished_by_the_next(tmp_path: Path, image_name: str) -> None:
    demand_ceph()
    cluster = Cluster(tmp_path / "cluster")
    command: list[str | Path] = [SCRIPT, "start", cluster.directory]
    try:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as start:
            wait_until((cluster.directory / "mon.a.pid").exists, "the monitor starts")
            start.kill()
        cluster.start()
        cluster.rbd("create", "--size", "1G", image_name)
    finally:
        cluster.discard()


def test_data_survives_a_kill_of_all_daemons(started: Cluster, image_name: str, tmp_path: Path) -> None:
    content = write_image(started, image_name, tmp_path / "in")
    started.kill("osd.0", "mon.a")
    started.start()
    assert read_image(started, image_name, tmp_path / "out") == content


def test_one_daemon_that_was_killed_comes_back(started: Cluster, image_name: str) -> None:
    monitor, osd = pids(started)
    started.kill("osd.0")
    with pytest.raises(subprocess.TimeoutExpired):
        started.rbd("create", "--size", "1G", image_name, timeout=1)
    started.start()
    assert started.pid("mon.a") == monitor
    assert started.pid("osd.0") != osd
    started.rbd("create", "--size", "1G", f"{image_name}-b")


def test_a_monitor_whose_port_was_taken_moves_with_its_data(started: Cluster, image_name: str, tmp_path: Path) -> None:
    content = write_image(started, image_name, tmp_path / "in")
    port = monitor_port(started)
    started.kill("mon.a")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        started.start()
    assert monitor_port(started) != port
    assert read_image(started, image_name, tmp_path / "out") == content


def test_two_clusters_that_race_for_the_same_ports_both_come_up(started: Cluster, private_cluster: Cluster) -> None:
    both = (started, private_cluster)
    for cluster in both:
        cluster.stop()
    ports = r"(?m)^(mon host|ms bind port min|ms bind port max) = .*$"
    lines = iter([found[0] for found in re.finditer(ports, started.conf.read_text())])
    private_cluster.conf.write_text(re.sub(ports, lambda _: next(lines), private_cluster.conf.read_text()))
    assert monitor_port(private_cluster) == monitor_port(started)
    commands: list[list[str | Path]] = [[SCRIPT, "start", cluster.directory] for cluster in both]
    starts = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands]
    assert [start.wait(START_PATIENCE) for start in starts] == [0, 0]
    assert monitor_port(private_cluster) != monitor_port(started)
    assert started.ceph("fsid") != private_cluster.ceph("fsid")


def test_stop_ends_its_own_daemons_and_no_others(
    started: Cluster, ceph_cluster: Cluster, image_name: str, tmp_path: Path
) -> None:
    content = write_image(started, image_name, tmp_path / "in")
    monitor, osd = pids(started)
    stopped = script("stop", started.directory)
    assert (stopped.returncode, stopped.stdout) == (0, "")
    assert stopped.stderr.splitlines() == [
        f"scripts/ceph: stopped osd.0, process {osd}",
        f"scripts/ceph: stopped mon.a, process {monitor}",
    ]
    assert not processes_naming(started)
    assert ceph_cluster.rbd("ls", timeout=10) is not None

    # A pid that is used again, here by a daemon of another cluster, is nobody of ours.
    (started.directory / "osd.0.pid").write_text(f"{ceph_cluster.pid('osd.0')}\n")
    again = script("stop", started.directory)
    assert (again.returncode, again.stderr) == (0, f"scripts/ceph: nothing of {started.directory} runs\n")
    assert processes_naming(ceph_cluster) == set(pids(ceph_cluster))

    started.start()
    assert read_image(started, image_name, tmp_path / "out") == content


def test_only_loopback_is_listened_on(ceph_cluster: Cluster) -> None:
    inodes = set()
    for pid in pids(ceph_cluster):
        links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
        inodes |= {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    local = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        local += [row[1].partition(":")[0] for row in rows if row[9] in inodes]
    assert set(local) == {LOOPBACK}


def test_the_watch_timeout_is_what_the_environment_says(ceph_cluster: Cluster) -> None:
    shown = ceph_cluster.ceph("tell", "osd.0", "config", "get", "osd_client_watch_timeout")
    assert json.loads(shown) == {"osd_client_watch_timeout": str(WATCH_TIMEOUT)}


@pytest.mark.parametrize("seconds", ["", "4", "3601", "5s", "-5", "1e1"])
def test_a_wrong_watch_timeout_is_refused(seconds: str, tmp_path: Path) -> None:
    result = script("start", tmp_path / "cluster", FUSECACHE_CEPH_WATCH_TIMEOUT=seconds)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"found '{seconds}', allowed: a whole number of seconds from 5 to 3600" in result.stderr
    assert not any(tmp_path.iterdir())


def test_a_wrong_kind_of_authentication_is_refused(tmp_path: Path) -> None:
    result = script("start", tmp_path / "cluster", FUSECACHE_CEPH_AUTH="kerberos")
    assert (result.returncode, result.stdout) == (2, "")
    assert "FUSECACHE_CEPH_AUTH: found 'kerberos', allowed: none, cephx" in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["start"],
        ["stop"],
        ["begin", "DIR"],
        ["start", "DIR", "again"],
        ["stop", "DIR", "--purge"],
        ["start", "a folder"],
        ["start", "a,b"],
        ["start", "$host"],
        ["start", "/dev/null"],
    ],
)
def test_wrong_usage_is_told_and_changes_nothing(arguments: list[str], tmp_path: Path) -> None:
    words: list[str | Path] = [SCRIPT, *arguments]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=20)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: scripts/ceph start DIR | stop DIR | env DIR\n")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["stop", "env"])
def test_a_directory_without_a_cluster_is_told(verb: str, tmp_path: Path) -> None:
    result = script(verb, tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert f"{tmp_path} holds no cluster" in result.stderr


@pytest.mark.parametrize("verb", ["start", "stop", "env"])
def test_a_cluster_of_others_is_left_alone(verb: str, tmp_path: Path) -> None:
    demand_ceph()
    (tmp_path / "ceph.conf").write_text("[global]\nmon host = 127.0.0.1\n")
    result = script(verb, tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "is not of scripts/ceph; nothing was changed" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["ceph.conf"]


def test_missing_packages_are_told_as_scripts_setup_installs_them(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    # The script's own folder is no place to find Ceph's program of the same name.
    result = script("start", tmp_path / "cluster", PATH=f"{tmp_path}/bin:{SCRIPT.parent}")
    assert (result.returncode, result.stdout) == (1, "")
    found = re.fullmatch(
        r"scripts/ceph: found no (.+); install: apt-get install --no-install-recommends (.+)\n", result.stderr
    )
    assert found is not None
    assert found[1] == "ceph-mon, ceph-osd, monmaptool, ceph, rbd"
    assert f"rbd_packages=({found[2]})\n" in (ROOT / "scripts" / "setup").read_text()
    assert not (tmp_path / "cluster").exists()


def test_help_tells_what_protects_the_cluster_and_how_to_shorten_locks() -> None:
    result = script("--help")
    assert result.returncode == 0
    assert "There is no\nauthentication" in result.stdout
    assert "FUSECACHE_CEPH_WATCH_TIMEOUT=SECONDS" in result.stdout
