"""The directory backend keeps the contract, with the host's page cache and without, and where there is no ring."""

from functools import partial
from pathlib import Path

import pytest

from fusecache.backends import directory
from fusecache.testing import check_backend
from tests.support.places import copy_image, fingerprint, fresh_directory


@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
async def test_the_directory_backend_keeps_the_contract(tmp_path: Path, direct: bool) -> None:
    await check_backend(partial(fresh_directory, tmp_path, direct=direct), copy=copy_image, fingerprint=fingerprint)


async def test_the_directory_backend_keeps_the_contract_without_a_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "open_ring", lambda completions: None)
    await check_backend(partial(fresh_directory, tmp_path), copy=copy_image, fingerprint=fingerprint)
