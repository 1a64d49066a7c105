"""The clients of a backend: who waits for a cluster that is away, and how long."""

from typing import Any, cast

import pytest
import trio

from fusecache.api import FusecacheError

pytest.importorskip("rbd")

from fusecache.backends.rbd import clients as module
from fusecache.backends.rbd.clients import Clients


class Away:
    """Stands for a client whose cluster never answers; connecting takes one second."""

    lost = False

    def __init__(self, *_: Any) -> None:
        pass

    async def connect(self) -> None:
        await trio.sleep(1)
        raise FusecacheError("the monitors did not answer")


async def test_all_who_wait_for_one_attempt_to_connect_fail_with_it(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(module, "Client", Away)
    clients = Clients(cast(Any, None), cast(Any, None))
    took: list[float] = []

    async def ask() -> None:
        with pytest.raises(FusecacheError, match="did not answer"):
            async with clients.lent():
                pass
        took.append(trio.current_time())

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
    assert max(took) - began < 1.5
    await ask()
    assert took[-1] - began < 2.5
