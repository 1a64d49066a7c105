"""Without Ceph's bindings everything else works, and it is said what to install."""

import subprocess
import sys

import pytest

from tests.support.project import ROOT

OPEN = """
import sys
sys.modules["{module}"] = None
import fusecache.cli.main, fusecache.mount
from fusecache.backends import open_backend
from fusecache.config.schema import RbdConfig
try:
    open_backend(RbdConfig.model_construct(pool="rbd"), None, None)
except Exception as error:
    print(type(error).__name__, error.errno, error)
"""


@pytest.mark.parametrize("module", ["rados", "rbd"])
def test_a_missing_binding_is_named_with_the_packages_to_install(module: str) -> None:
    command = [sys.executable, "-c", OPEN.format(module=module)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    # Where Ceph is not installed at all, either may be missed first.
    assert "NotSupported 95 found no Python module 'r" in result.stdout
    assert "`apt-get install python3-rados python3-rbd`" in result.stdout
