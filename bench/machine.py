"""What was measured on, and with what.

Owns the sections ``machine`` and ``versions`` of the report.
"""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fusecache.fuse.awake import DEVICE, pays


def machine(directory: Path) -> dict[str, Any]:
    """Describe the machine, and the file system that *directory* is on."""
    return {
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "filesystem": _said("stat", "--file-system", "--format=%T", str(directory)),
        "load_average": os.getloadavg()[0],
        "keeps_cpus_awake": pays() and os.access(DEVICE, os.W_OK),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of what takes part; None for what is missing."""
    return {
        "fusecache": version("fusecache"),
        "python": platform.python_version(),
        "pyfuse3": version("pyfuse3"),
        "trio": version("trio"),
        "fio": _said("fio", "--version"),
        "qemu": _said("qemu-storage-daemon", "--version"),
        "ceph": _said("ceph", "--version"),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return "unknown"


def _said(*command: str) -> str | None:
    """Return the first line that a program says."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.partition("\n")[0]
