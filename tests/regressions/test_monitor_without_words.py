"""A monitor that found its port taken loses what it wrote about that about once in a hundred times, as it ends before
its log is written: ``scripts/ceph start`` then took it for a failure of another kind and gave up.
"""

import os
import shutil
from pathlib import Path

from tests.support.ceph import Cluster, empty_cluster, private_cluster

__all__ = ["empty_cluster", "private_cluster"]

_FIRST_ENDS_WITHOUT_A_WORD = """\
#!/bin/bash
case "$*" in
    *--inject-monmap*) ;;
    *) if mkdir {tried} 2>/dev/null; then exit 1; fi ;;
esac
exec -a ceph-mon {monitor} "$@"
"""


def test_a_monitor_that_ends_without_a_word_is_started_again(private_cluster: Cluster, tmp_path: Path) -> None:
    private_cluster.kill("mon.a")
    monitor = shutil.which("ceph-mon")
    tried, programs = tmp_path / "tried", tmp_path / "bin"
    programs.mkdir()
    wrapper = programs / "ceph-mon"
    wrapper.write_text(_FIRST_ENDS_WITHOUT_A_WORD.format(tried=tried, monitor=monitor))
    wrapper.chmod(0o755)
    private_cluster.start(PATH=f"{programs}:{os.environ['PATH']}")
    assert tried.is_dir()
    assert private_cluster.rbd("ls") == ""
