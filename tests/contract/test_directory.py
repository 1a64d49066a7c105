"""The directory backend keeps the contract, with the host's page cache and without."""

from functools import partial
from pathlib import Path

import pytest

from fusecache.testing import check_backend
from tests.support.places import copy_image, fingerprint, fresh_directory


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
async def test_the_directory_backend_keeps_the_contract(tmp_path: Path, direct: bool) -> None:
    await check_backend(partial(fresh_directory, tmp_path, direct=direct), copy=copy_image, fingerprint=fingerprint)
