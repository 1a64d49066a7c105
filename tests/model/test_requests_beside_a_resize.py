"""Requests that wait behind a resize are carried out at the new size."""

from types import SimpleNamespace
from typing import cast

import trio

from fusecache.api import Buffers
from fusecache.images.image import Image
from fusecache.stack.assemble import Stack
from fusecache.stack.link import Link
from fusecache.testing import GatedVolume, MemoryVolume


async def test_writes_at_the_old_end_wait_for_a_resize_and_then_succeed() -> None:
    bare = MemoryVolume(1000, alignment=512, attempts="done")
    gated = GatedVolume(bare, {"write"})
    errors: list[BaseException] = []

    def done(error: BaseException | None, buffers: Buffers = ()) -> None:
        if error is not None:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        stack = SimpleNamespace(top=Link(gated), alignment=512, nursery=nursery, layers=(), missing=())
        image = Image(cast(Stack, stack), await bare.info(), lambda image: None)
        image.write(0, memoryview(b"first".ljust(512)), done)
        nursery.start_soon(image.resize, 2000)
        await trio.testing.wait_all_tasks_blocked()
        image.write(512, memoryview(b"a" * 488), done)
        image.write(990, memoryview(b"b" * 10), done)
        gated.open()
    assert image.size == 2000
    if errors:
        raise ExceptionGroup("requests failed", [error for error in errors if isinstance(error, Exception)])
    assert bare.content.read(512, 600) == b"a" * 478 + b"b" * 10 + bytes(112)
